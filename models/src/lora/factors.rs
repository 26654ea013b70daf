use super::{LoraAdapter, Projection};
use crate::weights::TensorMap;

/// The factors of an adapter under the names that a file has them by.
pub(super) fn named_factors(
    adapter: &LoraAdapter,
    projections: &[Projection],
    prefix: &str,
) -> TensorMap {
    let mut tensors = TensorMap::new();
    for (slot, projection) in projections.iter().enumerate() {
        let Some(pair) = adapter.pair(slot) else {
            continue;
        };
        for (factor, tensor) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            let name = format!("{prefix}.{}.{factor}.weight", projection.name);
            tensors.insert(name, tensor.val().into_data());
        }
    }
    tensors
}
