//! What a checkpoint consists of, and whose it is.

use retouch_proto::run_folder::is_part_of_checkpoint;
use retouch_proto::{ContentHash, Iteration, RunConfig};
use serde::{Deserialize, Serialize};

use crate::settings;

const FORMAT: u32 = 1;

/// A checkpoint's own description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Version of this description.
    format: u32,
    /// The iteration after which the run goes on.
    pub iteration: Iteration,
    /// Whose it is.
    pub run: RunIdentity,
    /// What there is beside this.
    pub files: Vec<ManifestFile>,
}

/// What makes a run the same run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunIdentity {
    /// The resolved run file.
    pub config_toml: String,
    /// The hash of the dataset's rows.
    pub dataset: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestFile {
    /// Its place in the run folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The hash of its content.
    pub blake3: ContentHash,
}

impl RunIdentity {
    /// `key: there -> here` for everything that makes the run here another one.
    pub(super) fn differences(&self, here: &Self) -> Vec<String> {
        let given = RunConfig::from_toml(&here.config_toml).expect("written by this program");
        let mut differences = settings::differences(&self.config_toml, &given)
            .unwrap_or_else(|problem| vec![format!("its run file can't be read: {problem}")]);
        if self.dataset != here.dataset {
            let (there, here) = (&self.dataset, &here.dataset);
            differences.push(format!("the dataset's rows hash to {there} -> {here}"));
        }
        differences
    }
}

impl Manifest {
    /// Of a checkpoint whose files are not known yet.
    pub(super) fn new(iteration: Iteration, run: RunIdentity) -> Self {
        Self {
            format: FORMAT,
            iteration,
            run,
            files: Vec::new(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("names, numbers and hashes")
    }

    /// Reads what [`to_json`](Self::to_json) wrote. Names must be of parts of checkpoints.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT {
            let found = manifest.format;
            return Err(format!(
                "it has format {found}, this program reads {FORMAT}"
            ));
        }
        let stranger = manifest
            .files
            .iter()
            .find(|file| !is_part_of_checkpoint(&file.name));
        match stranger {
            Some(file) => Err(format!("{:?} is no part of a checkpoint", file.name)),
            None => Ok(manifest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str) -> Manifest {
        let run = RunIdentity {
            config_toml: "seed = 1".into(),
            dataset: "rows".into(),
        };
        let file = ManifestFile {
            name: name.into(),
            bytes: 1,
            blake3: ContentHash([0; 32]),
        };
        Manifest {
            files: vec![file],
            ..Manifest::new(Iteration(3), run)
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_understood() {
        let json = manifest("checkpoints/3/run.db").to_json();
        retouch_hostile::bombard(json.as_bytes(), |bytes| {
            let _ = Manifest::from_json(bytes);
        });
    }

    #[test]
    fn only_parts_of_checkpoints_may_be_named() {
        let others = [
            "../x",
            "/etc/passwd",
            "adapters/../run.db",
            "",
            "run.db",
            "credentials/control/token",
        ];
        for name in others {
            let error = Manifest::from_json(manifest(name).to_json().as_bytes()).unwrap_err();
            assert!(error.contains(&format!("{name:?} is no part")), "{error}");
        }
        let fine = manifest("adapters/ab12/adapter_model.safetensors");
        assert_eq!(Manifest::from_json(fine.to_json().as_bytes()), Ok(fine));
    }

    #[test]
    fn another_format_is_refused_by_number() {
        let mut newer = manifest("adapters/a/b");
        newer.format = 2;
        let error = Manifest::from_json(newer.to_json().as_bytes()).unwrap_err();
        assert_eq!(error, "it has format 2, this program reads 1");
    }
}
