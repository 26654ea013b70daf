//! The run file: one TOML document, every field with a default.
//!
//! [`load`] layers it (defaults, preset, file, environment, `--set`), [`RunConfig::validate`]
//! checks it, and both tell every problem at once. Field names are the field's own.

mod devices;
mod errors;
mod hints;
mod layers;
mod lines;
mod lora;
mod paths;
mod preset;
mod schema;
mod sections;
mod validate;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use devices::{Devices, InvalidDevices, SeveralDevices};
pub use errors::{ConfigErrors, Problem};
pub use layers::{load, load_on_node, preset};
pub use lines::key_lines;
pub use lora::LoraSection;
pub use paths::{InvalidPathMove, PathMove};
pub use preset::Preset;
pub use schema::schema;
pub use sections::*;

use crate::{ids::RunId, worker::Role};

/// Everything that defines a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The preset that the file builds on; its values are already in this one.
    pub preset: Preset,
    /// The run's name: 1 to 64 letters, digits, dots, dashes or underscores.
    #[schemars(
        with = "String",
        length(min = 1, max = 64),
        regex(pattern = "^[A-Za-z0-9._-]+$")
    )]
    pub name: RunId,
    /// The run folder: record, checkpoints, adapters, logs and the report.
    pub run_dir: String,
    /// The seed that all randomness is derived from.
    pub seed: u64,
    /// Iterations until the run is finished.
    pub iterations: u32,
    /// The base editor.
    pub model: ModelConfig,
    /// The training pairs.
    pub dataset: DatasetConfig,
    /// Sampling.
    pub rollout: RolloutConfig,
    /// Scoring.
    pub reward: RewardConfig,
    /// The low-variance group filter.
    pub filter: FilterConfig,
    /// From rewards to advantages.
    pub advantage: AdvantageConfig,
    /// Training.
    pub learner: LearnerConfig,
    /// Thresholds of what is told as an alarm; 0 switches one off.
    pub alarms: AlarmConfig,
    /// Where checkpoints go, and which stay.
    pub checkpoint: CheckpointConfig,
    /// The adapter, and what it starts from.
    pub lora: LoraSection,
    /// Processes, deadlines and limits.
    pub cluster: ClusterConfig,
    /// Pictures while it runs.
    pub samples: SamplesConfig,
    /// Held-out evaluation.
    pub evaluation: EvaluationConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            preset: Preset::None,
            name: RunId::new("run").expect("a valid name"),
            run_dir: "runs/run".into(),
            seed: 0,
            iterations: 300,
            model: ModelConfig::default(),
            dataset: DatasetConfig::default(),
            rollout: RolloutConfig::default(),
            reward: RewardConfig::default(),
            filter: FilterConfig::default(),
            advantage: AdvantageConfig::default(),
            learner: LearnerConfig::default(),
            alarms: AlarmConfig::default(),
            checkpoint: CheckpointConfig::default(),
            lora: LoraSection::default(),
            cluster: ClusterConfig::default(),
            samples: SamplesConfig::default(),
            evaluation: EvaluationConfig::default(),
        }
    }
}

impl RunConfig {
    /// Reads a whole run file, as [`RunConfig::to_toml`] wrote it; checks types, not values.
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        toml::from_str(text).map_err(|error| ConfigErrors::one(Problem::text("run file", error)))
    }

    /// The devices on which a role's workers compute, and the key that says so.
    pub fn devices_of(&self, role: Role) -> (&'static str, &Devices) {
        match role {
            Role::Rollout => ("model.device", &self.model.device),
            Role::Reward => ("reward.device", &self.reward.device),
            Role::Learner => ("learner.device", &self.learner.device),
        }
    }

    /// The device of a worker of this role that was given none of its own.
    ///
    /// # Errors
    /// If the run file leaves it open which of several it is.
    pub fn device_of(&self, role: Role) -> Result<DeviceName, SeveralDevices> {
        let (key, devices) = self.devices_of(role);
        let several = || SeveralDevices {
            key,
            devices: devices.clone(),
        };
        devices.only().ok_or_else(several)
    }

    /// The resolved run file.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a config has only string keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_files_round_trip() {
        for preset in Preset::ALL {
            let config = super::preset(preset);
            assert_eq!(RunConfig::from_toml(&config.to_toml()), Ok(config));
        }
    }

    #[test]
    fn unknown_keys_of_a_resolved_file_are_errors() {
        let error = RunConfig::from_toml("seed = 1\nsede = 2\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("sede"), "{error}");
    }
}
