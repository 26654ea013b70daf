use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};

use super::{LoadError, Misshaped, Names, Weights};

impl Weights {
    /// Fills every float parameter of `module` with the tensor of its name, as f32.
    ///
    /// Parameters that were not initialised yet never are: they take the file's values straight
    /// away. Devices and gradient settings stay as the module has them.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] with all names that are missing, unexpected or of another shape.
    pub fn load<M: Module>(&self, module: M, names: &Names) -> Result<M, LoadError> {
        self.load_as(module, names, DType::F32)
    }

    /// As [`Weights::load`], with the parameters stored as `dtype` (f32, bf16 or f16).
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_as<M: Module>(
        &self,
        module: M,
        names: &Names,
        dtype: DType,
    ) -> Result<M, LoadError> {
        let mut loader = Loader {
            weights: self,
            names,
            dtype,
            path: Vec::new(),
            used: BTreeSet::new(),
            missing: Vec::new(),
            misshaped: Vec::new(),
        };
        let module = module.map(&mut loader);
        loader.finish().map(|()| module)
    }
}

struct Loader<'a> {
    weights: &'a Weights,
    names: &'a Names,
    dtype: DType,
    path: Vec<String>,
    used: BTreeSet<String>,
    missing: Vec<String>,
    misshaped: Vec<Misshaped>,
}

impl Loader<'_> {
    fn finish(self) -> Result<(), LoadError> {
        let unexpected: Vec<String> = self
            .weights
            .names()
            .filter(|name| self.names.owns(name) && !self.used.contains(*name))
            .map(str::to_owned)
            .collect();
        if self.missing.is_empty() && unexpected.is_empty() && self.misshaped.is_empty() {
            return Ok(());
        }
        Err(LoadError::Mismatch {
            path: self.weights.path().to_owned(),
            missing: self.missing,
            unexpected,
            misshaped: self.misshaped,
        })
    }
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.names.key(&self.path.join("."));
        self.used.insert(name.clone());
        let Some(found) = self.weights.shape(&name) else {
            self.missing.push(name);
            return param;
        };
        let expected = param.lazy_shape().as_slice().to_vec();
        if found != expected {
            let found = found.to_vec();
            self.misshaped.push(Misshaped {
                name,
                found,
                expected,
            });
            return param;
        }
        let Some(data) = self.weights.data(&name) else {
            self.missing
                .push(format!("{name} (in a readable element type)"));
            return param;
        };
        let device = param.lazy_device();
        let data = data.convert_dtype(self.dtype);
        let id = param.id;
        param.transform_for_load(Tensor::from_data(data, (&device, self.dtype)), id)
    }
}
