use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use super::error::Mistyped;
use super::quantised::scheme_in;
use super::{Misfit, Misshaped, Names, Weights};

/// Names and shapes of the tensors that a module takes from a checkpoint.
///
/// It is read off the module, whose parameters need not exist yet: making a table of a model of any
/// size allocates none of it. Loading, `Misfit`s and memory estimates all start from it.
#[derive(Debug, Clone)]
pub struct Table {
    names: Names,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Table {
    /// The table of `module`, whose checkpoint names are `names`.
    pub fn of<M: Module>(module: &M, names: &Names) -> Self {
        let mut collector = Collector {
            names,
            path: Vec::new(),
            shapes: BTreeMap::new(),
        };
        module.visit(&mut collector);
        Self {
            names: *names,
            shapes: collector.shapes,
        }
    }

    /// Names and shapes, sorted by name.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> u64 {
        let values = |shape: &Vec<usize>| shape.iter().map(|&side| side as u64).product::<u64>();
        self.shapes.values().map(values).sum()
    }

    /// Multiply-adds of all matrix products and convolutions: the weight called `name` is applied at `places(name)`
    /// rows of a matrix, or pixels of a convolution's output.
    pub(crate) fn multiply_adds(&self, places: impl Fn(&str) -> u64) -> u64 {
        let matrices = self.shapes.iter().filter(|(_, shape)| shape.len() > 1);
        let values = |shape: &Vec<usize>| shape.iter().map(|&side| side as u64).product::<u64>();
        matrices
            .map(|(name, shape)| places(name) * values(shape))
            .sum()
    }

    /// The names in `weights` that are this component's and not ignored.
    pub fn owned<'a>(&'a self, weights: &'a Weights) -> impl Iterator<Item = &'a str> {
        weights.names().filter(|name| self.names.owns(name))
    }

    /// All that does not fit between the module and a file.
    pub fn misfit(&self, weights: &Weights) -> Misfit {
        let mut misfit = Misfit {
            quantised: scheme_in(weights),
            ..Misfit::default()
        };
        for (name, expected) in &self.shapes {
            match weights.shape(name) {
                None => misfit.missing.push(name.clone()),
                Some(found) if found != expected => misfit.misshaped.push(Misshaped {
                    name: name.clone(),
                    found: found.to_vec(),
                    expected: expected.clone(),
                }),
                Some(_) if !weights.is_float(name) => misfit.unreadable.push(Mistyped {
                    name: name.clone(),
                    found: weights.dtype_name(name).unwrap_or_default(),
                }),
                Some(_) => {}
            }
        }
        let unexpected = self
            .owned(weights)
            .filter(|name| !self.shapes.contains_key(*name));
        misfit.unexpected = unexpected.map(str::to_owned).collect();
        misfit
    }
}

struct Collector<'a> {
    names: &'a Names,
    path: Vec<String>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl ModuleVisitor for Collector<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.names.key(&self.path.join("."));
        let shape = param.lazy_shape().as_slice().to_vec();
        self.shapes.insert(name, shape);
    }
}
