//! An adapter file beside a model's layers: which belongs to which, and what does not fit.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};

use super::file::StoredLayer;
use super::format::Spelling;
use super::listed::listed;
use super::{AdapterFile, LoraAdapter, LoraPair, Projection};
use crate::weights::{LoadError, folded};

impl AdapterFile {
    /// The adapter for a model with the given projections, f32 whatever the file has: factors stay wide.
    ///
    /// # Errors
    /// If layers do not fit the model's: the error says which, and why.
    pub fn load(
        &self,
        projections: &[Projection],
        device: &Device,
    ) -> Result<LoraAdapter, LoadError> {
        let fitted = self.fit(projections)?;
        let scales = || fitted.values().map(|layer| self.scale(layer));
        let first = scales().next().unwrap_or(1.0);
        // One scale serves all layers: where they differ, B takes each layer's own.
        let (scale, apart) = match scales().all(|scale| scale == first) {
            true => (first, false),
            false => (1.0, true),
        };
        let pair = |layer: &StoredLayer| {
            let factors = self.factors(layer, Some(DType::F32));
            let [a, b] = factors.map(|data| Tensor::<2>::from_data(data, (device, DType::F32)));
            let b = if apart { b * self.scale(layer) } else { b };
            LoraPair {
                a: Param::from_tensor(a),
                b: Param::from_tensor(b),
            }
        };
        let pairs = (0..projections.len()).map(|slot| fitted.get(&slot).map(|layer| pair(layer)));
        Ok(LoraAdapter::from_pairs(pairs.collect(), scale))
    }

    /// Whether it is for a model with the given projections; no factor is read.
    ///
    /// # Errors
    /// As [`AdapterFile::load`].
    pub fn check(&self, projections: &[Projection]) -> Result<(), LoadError> {
        self.fit(projections).map(drop)
    }

    /// The layers by the slots of the projections that they change.
    pub(super) fn fit(
        &self,
        projections: &[Projection],
    ) -> Result<BTreeMap<usize, &StoredLayer>, LoadError> {
        let slots = Slots::new(projections);
        let (mut fitted, mut misfits) = (BTreeMap::new(), Misfits::default());
        for layer in self.layers() {
            let Some(slot) = slots.find(layer) else {
                misfits.no_such(layer);
                continue;
            };
            match other_width(layer, &projections[slot]) {
                Some(width) => misfits.other_width.push((layer, width)),
                None if fitted.contains_key(&slot) => misfits.twice.push(layer),
                None => {
                    fitted.insert(slot, layer);
                }
            }
        }
        let problems = misfits.problems(projections);
        match problems.is_empty() {
            true => Ok(fitted),
            false => Err(LoadError::Adapter {
                path: self.path().to_owned(),
                format: self.format(),
                problems,
            }),
        }
    }
}

/// The slots of a model's projections by their names in either spelling.
struct Slots<'a> {
    dotted: BTreeMap<&'a str, usize>,
    underscored: BTreeMap<String, usize>,
}

impl<'a> Slots<'a> {
    fn new(projections: &'a [Projection]) -> Self {
        let names = || {
            projections
                .iter()
                .enumerate()
                .map(|(slot, p)| (p.name.as_str(), slot))
        };
        Self {
            dotted: names().collect(),
            underscored: names()
                .map(|(name, slot)| (name.replace('.', "_"), slot))
                .collect(),
        }
    }

    fn find(&self, layer: &StoredLayer) -> Option<usize> {
        let name = layer.name.as_str();
        match layer.spelling {
            Spelling::Dotted => self.dotted.get(name),
            Spelling::Underscored => self.underscored.get(name),
        }
        .copied()
    }
}

/// Some of the layers that there are.
fn there_are(projections: &[Projection]) -> String {
    let names = projections.iter().map(|p| (p.name.as_str(), String::new()));
    format!(" (there are {})", listed(&folded(names), ", "))
}

/// What is different about the widths of a layer, if anything is.
fn other_width(layer: &StoredLayer, projection: &Projection) -> Option<String> {
    let (found, expected) = (layer.in_features, projection.in_features);
    if found != expected {
        return Some(format!(" expects {expected} inputs, the file has {found}"));
    }
    let (found, expected) = (layer.out_features, projection.out_features);
    (found != expected).then(|| format!(" expects {expected} outputs, the file has {found}"))
}

/// Layers before and behind the blocks, by the beginnings of diffusers' and Black Forest Labs' names. Nothing outside of
/// the blocks is adapted here (`dit/blocks.rs`).
const OUTSIDE: [&str; 11] = [
    "x_embedder",
    "context_embedder",
    "time_text_embed",
    "norm_out",
    "proj_out",
    "img_in",
    "txt_in",
    "time_in",
    "vector_in",
    "guidance_in",
    "final_layer",
];

/// The layers of a file that a model can't take.
#[derive(Default)]
struct Misfits<'a> {
    unknown: Vec<&'a StoredLayer>,
    outside: Vec<&'a StoredLayer>,
    other_width: Vec<(&'a StoredLayer, String)>,
    twice: Vec<&'a StoredLayer>,
}

impl<'a> Misfits<'a> {
    /// Takes a layer that is none of the model's projections.
    fn no_such(&mut self, layer: &'a StoredLayer) {
        let is_outside = OUTSIDE.iter().any(|name| layer.name.starts_with(name));
        match is_outside {
            true => self.outside.push(layer),
            false => self.unknown.push(layer),
        }
    }

    /// A sentence for each kind.
    fn problems(self, projections: &[Projection]) -> Vec<String> {
        let plain = |layers: &[&StoredLayer]| -> Vec<(String, String)> {
            layers
                .iter()
                .map(|layer| (layer.name.clone(), String::new()))
                .collect()
        };
        let widths = self.other_width.into_iter();
        let widths = widths
            .map(|(layer, width)| (layer.name.clone(), width))
            .collect();
        [
            (
                "unknown layer",
                plain(&self.unknown),
                there_are(projections),
            ),
            (
                "layer outside of the blocks, which adapters do not change here",
                plain(&self.outside),
                String::new(),
            ),
            ("other width", widths, String::new()),
            ("twice in the file", plain(&self.twice), String::new()),
        ]
        .into_iter()
        .filter(|(_, layers, _)| !layers.is_empty())
        .map(|(kind, layers, more)| {
            let lines = folded(
                layers
                    .iter()
                    .map(|(name, rest)| (name.as_str(), rest.clone())),
            );
            format!("{kind} ({}): {}{more}", layers.len(), listed(&lines, ", "))
        })
        .collect()
    }
}
