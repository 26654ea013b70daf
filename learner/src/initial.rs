//! An adapter that a run starts from, as the flat vector that its learners train.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use retouch_models::lora::{LoraAdapter, LoraConfig, Projection, load_adapter};
use retouch_models::weights::LoadError;

/// Relative difference of alphas that are equal: schemes that scale by other than alpha / rank round.
const ALPHA_TOLERANCE: f64 = 1e-6;
/// Layers that a message names.
const NAMES_MAX: usize = 3;

/// Why a run can't start from an adapter.
#[derive(Debug, thiserror::Error)]
pub enum InitialError {
    /// The adapter can't be read, or is another model's.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The adapter is of another size than the one that the run trains.
    #[error("{}: {}; the adapter's are {settings}", path.display(), .differences.join("; "))]
    Other {
        /// The adapter.
        path: PathBuf,
        /// What differs, a phrase each.
        differences: Vec<String>,
        /// The adapter's own, as arguments of a command.
        settings: String,
    },
    /// No policy has such numbers.
    #[error("{}: a factor of the adapter is NaN or infinite", .0.display())]
    NotFinite(PathBuf),
}

/// Reads an adapter as [`LoraAdapter::to_flat`] has it, for a run that trains one of `lora` on `projections`.
///
/// # Errors
/// See [`InitialError`].
pub fn read(
    path: &Path,
    lora: &LoraConfig,
    projections: &[Projection],
) -> Result<Vec<f32>, InitialError> {
    let adapter = load_adapter(path, projections, &Device::flex())?;
    let found = Found::of(&adapter, projections);
    let differences = found.differences(lora, projections);
    if !differences.is_empty() {
        return Err(InitialError::Other {
            path: path.to_owned(),
            differences,
            settings: found.settings(),
        });
    }
    let flat = adapter.to_flat();
    match flat.iter().all(|value| value.is_finite()) {
        true => Ok(flat),
        false => Err(InitialError::NotFinite(path.to_owned())),
    }
}

/// What an adapter's own section `[lora]` would be.
struct Found<'a> {
    ranks: BTreeSet<usize>,
    scale: f64,
    layers: Vec<&'a str>,
}

impl<'a> Found<'a> {
    fn of(adapter: &LoraAdapter, projections: &'a [Projection]) -> Self {
        let slots = projections.iter().enumerate();
        let pairs = slots.filter_map(|(slot, projection)| Some((adapter.pair(slot)?, projection)));
        let (ranks, layers) = pairs
            .map(|(pair, projection)| (pair.a.val().dims()[0], projection.name.as_str()))
            .unzip();
        Self {
            ranks,
            scale: adapter.scale(),
            layers,
        }
    }

    /// The one rank of all layers, if they have one.
    fn rank(&self) -> Option<usize> {
        let rank = self.ranks.first().copied();
        rank.filter(|_| self.ranks.len() == 1)
    }

    fn alpha(&self) -> f64 {
        self.scale * self.rank().unwrap_or(1) as f64
    }

    fn differences(&self, lora: &LoraConfig, projections: &[Projection]) -> Vec<String> {
        let mut found = Vec::new();
        match self.rank() {
            None => found.push(format!(
                "its layers have the ranks {:?}, and a run trains one",
                self.ranks
            )),
            Some(rank) if rank != lora.rank => {
                found.push(format!("lora.rank = {} is not its rank {rank}", lora.rank));
            }
            Some(_) => {}
        }
        let alpha = self.alpha();
        if self.rank().is_some() && (alpha - lora.alpha).abs() > ALPHA_TOLERANCE * alpha.abs() {
            found.push(format!(
                "lora.alpha = {} is not its alpha {alpha}",
                lora.alpha
            ));
        }
        let named = projections
            .iter()
            .map(|projection| projection.name.as_str());
        let has = |name: &&str| self.layers.contains(name);
        let absent: Vec<&str> = named
            .filter(|name| lora.targets(name) && !has(name))
            .collect();
        if !absent.is_empty() {
            let names = some(&absent);
            found.push(format!(
                "lora.target_modules names layers that it has not: {names}"
            ));
        }
        let layers = self.layers.iter().copied();
        let others: Vec<&str> = layers.filter(|name| !lora.targets(name)).collect();
        if !others.is_empty() {
            let names = some(&others);
            found.push(format!(
                "lora.target_modules leaves out layers that it has: {names}"
            ));
        }
        found
    }

    /// What would make a run file fit.
    fn settings(&self) -> String {
        let rank = self.rank().map(|rank| format!("--set lora.rank={rank} "));
        let modules: BTreeSet<&str> = self.layers.iter().map(|name| module(name)).collect();
        let modules = Vec::from_iter(modules);
        format!(
            "{}--set lora.alpha={} --set 'lora.target_modules={modules:?}'",
            rank.unwrap_or_default(),
            self.alpha(),
        )
    }
}

/// The end of a layer's name by which all blocks' layers of its kind are meant: `to_q`, `to_out.0`.
fn module(name: &str) -> &str {
    let is_number = |segment: &str| segment.bytes().all(|byte| byte.is_ascii_digit());
    let mut from = name.rfind('.').map_or(0, |dot| dot + 1);
    if is_number(&name[from..]) {
        from = name[..from.saturating_sub(1)]
            .rfind('.')
            .map_or(0, |dot| dot + 1);
    }
    &name[from..]
}

fn some(names: &[&str]) -> String {
    let shown = names[..names.len().min(NAMES_MAX)].join(", ");
    match names.len() - names.len().min(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use retouch_models::lora::{save_diffusers, save_peft};

    use super::*;

    fn projections() -> Vec<Projection> {
        let layers = ["to_q", "to_k", "to_out.0", "ff.net.2"];
        let blocks = (0..2).flat_map(|block| layers.map(|layer| format!("blocks.{block}.{layer}")));
        let projection = |name| Projection {
            name,
            in_features: 6,
            out_features: 4,
        };
        blocks.map(projection).collect()
    }

    fn lora(rank: usize, alpha: f64, modules: &[&str]) -> LoraConfig {
        LoraConfig {
            rank,
            alpha,
            target_modules: modules.iter().map(ToString::to_string).collect(),
        }
    }

    /// An adapter that changes something, as a folder, with its flat form.
    fn saved(config: &LoraConfig) -> (tempfile::TempDir, Vec<f32>) {
        let folder = tempfile::tempdir().unwrap();
        let len = retouch_models::lora::flat_len(config, &projections());
        let flat: Vec<f32> = (0..len).map(|i| (i as f32).sin()).collect();
        let adapter = LoraAdapter::from_flat(config, &projections(), &flat, &Device::flex());
        save_peft(folder.path(), &adapter, config, &projections()).unwrap();
        save_diffusers(folder.path(), &adapter, config, &projections()).unwrap();
        (folder, flat)
    }

    #[test]
    fn an_adapter_of_the_runs_size_is_its_own_flat_form() {
        let config = lora(2, 3.0, &["to_q", "to_out.0"]);
        let (folder, flat) = saved(&config);
        let file = folder.path().join("pytorch_lora_weights.safetensors");
        for path in [folder.path(), &file] {
            assert_eq!(read(path, &config, &projections()).unwrap(), flat);
        }
    }

    #[test]
    fn other_sizes_are_refused_with_the_settings_that_fit() {
        let (folder, _) = saved(&lora(2, 3.0, &["to_q", "to_out.0"]));
        let refused = |other: LoraConfig| {
            let error = read(folder.path(), &other, &projections()).unwrap_err();
            error.to_string()
        };
        let text = refused(lora(4, 8.0, &["to_q", "ff.net.2"]));
        for part in [
            "lora.rank = 4 is not its rank 2",
            "lora.alpha = 8 is not its alpha 3",
            "names layers that it has not: blocks.0.ff.net.2, blocks.1.ff.net.2",
            "leaves out layers that it has: blocks.0.to_out.0, blocks.1.to_out.0",
            "--set lora.rank=2 --set lora.alpha=3 --set 'lora.target_modules=[\"to_out.0\", \"to_q\"]'",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = refused(lora(2, 6.0, &["to_q", "to_out.0"]));
        assert!(
            text.contains("alpha") && !text.contains("is not its rank"),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_adapter_and_no_number_is_refused() {
        let config = lora(2, 3.0, &["to_q"]);
        let error = read("nowhere".as_ref(), &config, &projections()).unwrap_err();
        assert!(
            error.to_string().starts_with("nowhere: there is no such"),
            "{error}"
        );
        let folder = tempfile::tempdir().unwrap();
        let mut flat = vec![0.5; retouch_models::lora::flat_len(&config, &projections())];
        flat[3] = f32::NAN;
        let adapter = LoraAdapter::from_flat(&config, &projections(), &flat, &Device::flex());
        save_peft(folder.path(), &adapter, &config, &projections()).unwrap();
        let error = read(folder.path(), &config, &projections()).unwrap_err();
        assert!(matches!(error, InitialError::NotFinite(_)), "{error}");
    }
}
