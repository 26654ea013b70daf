use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};

use super::{LoraAdapter, LoraPair, Projection};
use crate::weights::Names;

/// The module with the adapter's products added to its weights, W + scale B A.
///
/// It gives the adapter's outputs without its extra layers, for a copy of the targeted weights.
pub(crate) fn merge<M: Module>(
    module: M,
    names: &Names,
    projections: &[Projection],
    adapter: &LoraAdapter,
) -> M {
    let slots = projections.iter().enumerate();
    module.map(&mut Merger {
        names,
        adapter,
        slots: slots
            .map(|(slot, p)| (format!("{}.weight", p.name), slot))
            .collect(),
        path: Vec::new(),
    })
}

struct Merger<'a> {
    names: &'a Names,
    adapter: &'a LoraAdapter,
    /// Slots by the names of the weights.
    slots: BTreeMap<String, usize>,
    path: Vec<String>,
}

impl ModuleMapper for Merger<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let slot = self.slots.get(&self.names.key(&self.path.join(".")));
        let Some(pair) = slot.and_then(|slot| self.adapter.pair(*slot)) else {
            return param;
        };
        param.map(|weight| merged(weight, pair, self.adapter.scale()))
    }
}

/// W + scale B A, in W's element type.
///
/// # Shapes
/// * weight: `[out, in]`
pub(crate) fn merged<const D: usize>(weight: Tensor<D>, pair: &LoraPair, scale: f64) -> Tensor<D> {
    let product = pair.b.val().matmul(pair.a.val()) * scale;
    // Added before rounding to a narrow base's type, so that it is rounded once.
    let (dtype, product) = (weight.dtype(), product.reshape(weight.dims()));
    (weight.cast(DType::F32) + product).cast(dtype)
}
