use std::collections::BTreeSet;

use burn::module::Param;
use burn::tensor::{Device, Tensor};

use super::peft_config::PeftConfig;
use super::{LoraAdapter, LoraPair, Projection};
use crate::weights::{LoadError, Misfit, Misshaped, TensorMap, Weights};

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

/// An adapter of the factors in a file, f32 whatever the file has: factors stay wide.
pub(super) fn load_factors(
    weights: &Weights,
    prefix: &str,
    config: &PeftConfig,
    projections: &[Projection],
    device: &Device,
) -> Result<LoraAdapter, LoadError> {
    let mut check = Check {
        weights,
        used: BTreeSet::new(),
        misfit: Misfit::default(),
    };
    let named = projections.iter().map(|projection| {
        let names = Names::of(prefix, projection);
        check
            .has_pair(&names, projection)
            .then_some((names, projection))
    });
    let named: Vec<_> = named.collect();
    check.finish()?;
    let scale = config.scale();
    let pair = |(names, projection): (Names, &Projection)| {
        let (a, b): (Tensor<2>, Tensor<2>) = (
            weights.tensor(&names.a, device)?,
            weights.tensor(&names.b, device)?,
        );
        // One scale serves all layers: where a layer has its own rank or alpha, B takes the rest.
        let own = config.scale_of(&projection.name, a.dims()[0]);
        let b = if own == scale { b } else { b * (own / scale) };
        Ok(LoraPair {
            a: Param::from_tensor(a),
            b: Param::from_tensor(b),
        })
    };
    let pairs = named.into_iter().map(|named| named.map(pair).transpose());
    let pairs: Vec<_> = pairs.collect::<Result<_, LoadError>>()?;
    if pairs.iter().all(Option::is_none) {
        return Err(LoadError::format(
            weights.path(),
            "the adapter has no factors",
        ));
    }
    Ok(LoraAdapter::from_pairs(pairs, scale))
}

/// The names of a layer's factors.
struct Names {
    a: String,
    b: String,
}

impl Names {
    fn of(prefix: &str, projection: &Projection) -> Self {
        let name = |factor: &str| format!("{prefix}.{}.{factor}.weight", projection.name);
        Self {
            a: name("lora_A"),
            b: name("lora_B"),
        }
    }
}

/// What of an adapter file fits, and what does not.
struct Check<'a> {
    weights: &'a Weights,
    used: BTreeSet<String>,
    misfit: Misfit,
}

impl Check<'_> {
    /// Whether the file has both factors of a layer, in shapes that fit.
    fn has_pair(&mut self, names: &Names, projection: &Projection) -> bool {
        let shape = |name: &str| self.weights.shape(name).map(<[usize]>::to_vec);
        let (found_a, found_b) = (shape(&names.a), shape(&names.b));
        self.used.extend([names.a.clone(), names.b.clone()]);
        let (found_a, found_b) = match (found_a, found_b) {
            (None, None) => return false,
            (Some(found_a), Some(found_b)) => (found_a, found_b),
            (found_a, _) => {
                let missing = if found_a.is_none() {
                    &names.a
                } else {
                    &names.b
                };
                self.misfit.missing.push(missing.clone());
                return false;
            }
        };
        let rank = found_a.first().copied().unwrap_or(0);
        self.has_shape(&names.a, found_a, [rank, projection.in_features])
            & self.has_shape(&names.b, found_b, [projection.out_features, rank])
    }

    fn has_shape(&mut self, name: &str, found: Vec<usize>, expected: [usize; 2]) -> bool {
        let fits = found == expected;
        if !fits {
            self.misfit.misshaped.push(Misshaped {
                name: name.to_owned(),
                found,
                expected: expected.to_vec(),
            });
        }
        fits
    }

    fn finish(mut self) -> Result<(), LoadError> {
        let unexpected = self
            .weights
            .names()
            .filter(|name| !self.used.contains(*name));
        self.misfit.unexpected = unexpected.map(str::to_owned).collect();
        if self.misfit.is_none() {
            return Ok(());
        }
        Err(LoadError::OtherModel {
            path: self.weights.path().to_owned(),
            misfit: Box::new(self.misfit),
        })
    }
}
