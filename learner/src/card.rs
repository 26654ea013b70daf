//! What an adapter's folder says of itself: a model card for people and the Hub, and how the adapter was sampled with when
//! it was measured, for `retouch edit`.

use std::{fmt::Write, fs, io, path::Path};

use retouch_models::{
    hub,
    lora::{LoraConfig, name_base},
    solver::Solver,
    weights::LoadError,
};
use retouch_proto::{
    Iteration, RunConfig,
    files::{PUBLIC, write_whole},
};
use serde::{Deserialize, Serialize};

use crate::sft::SftOptions;

/// The file of [`Sampling`].
pub const SAMPLING_FILE: &str = "sampling.json";
/// The card, as the Hub looks for it.
pub const CARD_FILE: &str = "README.md";

/// How edits are sampled with an adapter; what is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Solver steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_inference_steps: Option<usize>,
    /// The sampler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver: Option<Solver>,
    /// Guidance that is given to the model as an input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Classifier-free guidance; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub true_cfg_scale: Option<f64>,
    /// Prompt tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sequence_length: Option<usize>,
}

impl Sampling {
    /// Of an adapter's folder; nothing is known where it has no such file.
    ///
    /// # Errors
    /// If the file is there and can't be read.
    pub fn read(folder: &Path) -> io::Result<Self> {
        match fs::read(folder.join(SAMPLING_FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(Self::default())
            }
            Err(error) => Err(error),
        }
    }
}

/// A model card.
#[derive(Clone, Debug)]
pub struct Card {
    base: String,
    /// One sentence of how it was made.
    origin: String,
    settings: Vec<(&'static str, String)>,
    results: Option<String>,
    sampling: Sampling,
}

impl Card {
    /// Of the EMA adapter that a run exports after an iteration.
    pub fn of_run(config: &RunConfig, iteration: Iteration) -> Self {
        let (rollout, learner, evaluation) = (&config.rollout, &config.learner, &config.evaluation);
        let judges = config.reward.terms.iter();
        let judges: Vec<String> = judges
            .map(|term| format!("{} ({})", term.name, term.path))
            .collect();
        let (groups, size) = (rollout.groups_per_iteration, rollout.group_size);
        Self {
            base: config.model.path.clone(),
            origin: format!(
                "Post-trained by reinforcement learning (DiffusionNFT with a multimodal judge's digit logits as the reward) \
                 by retouch {}: the EMA after iteration {iteration} of the run `{}`.",
                env!("CARGO_PKG_VERSION"),
                config.name,
            ),
            settings: [
                ("data", config.dataset.path.clone()),
                ("judges", judges.join(", ")),
                ("groups per iteration", format!("{groups} of {size} edits")),
                (
                    "sampled for training",
                    format!("{}, {} steps", rollout.solver, rollout.num_inference_steps),
                ),
                ("learning rate", learner.learning_rate.to_string()),
                (
                    "nft_beta, kl_beta",
                    format!("{}, {}", learner.nft_beta, learner.kl_beta),
                ),
                ("seed", config.seed.to_string()),
            ]
            .into_iter()
            .chain(lora(&config.lora.adapter))
            .collect(),
            results: None,
            sampling: Sampling {
                num_inference_steps: Some(evaluation.num_inference_steps as usize),
                solver: Some(evaluation.solver),
                guidance_scale: Some(evaluation.guidance_scale),
                true_cfg_scale: Some(evaluation.true_cfg_scale),
                max_sequence_length: Some(config.model.max_sequence_length as usize),
            },
        }
    }

    /// Of an adapter that supervision made.
    pub(crate) fn of_sft(options: &SftOptions, config: &LoraConfig) -> Self {
        Self {
            base: options.base.display().to_string(),
            origin: format!(
                "Fine-tuned by supervision (flow matching) by retouch {}.",
                env!("CARGO_PKG_VERSION")
            ),
            settings: [
                ("data", options.dataset.display().to_string()),
                ("size", format!("{} x {}", options.height, options.width)),
                (
                    "updates",
                    format!("{} of {} rows", options.steps, options.batch_size),
                ),
                ("learning rate", options.adamw.learning_rate.to_string()),
                ("seed", options.seed.to_string()),
            ]
            .into_iter()
            .chain(lora(config))
            .collect(),
            results: None,
            sampling: Sampling {
                guidance_scale: Some(options.guidance_scale),
                max_sequence_length: Some(options.max_sequence_length),
                ..Sampling::default()
            },
        }
    }

    /// With what a held-out evaluation found, in lines of text.
    pub fn with_results(self, results: String) -> Self {
        let results = Some(results);
        Self { results, ..self }
    }

    /// Writes card and settings into an adapter's folder, and has its configuration name the base.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn write(&self, folder: &Path) -> Result<(), LoadError> {
        name_base(folder, &self.base)?;
        let sampling = serde_json::to_string_pretty(&self.sampling).map_err(io::Error::from);
        let path = folder.join(SAMPLING_FILE);
        let written = sampling.and_then(|text| write_whole(&path, text + "\n", PUBLIC));
        written.map_err(|source| LoadError::Io { path, source })?;
        self.write_text(folder)
    }

    /// Writes the card alone, in place of one that is there.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_text(&self, folder: &Path) -> Result<(), LoadError> {
        let path = folder.join(CARD_FILE);
        let written = write_whole(&path, self.text(), PUBLIC);
        written.map_err(|source| LoadError::Io { path, source })
    }

    fn text(&self) -> String {
        let mut text = "---\n".to_owned();
        // The Hub takes ids alone.
        if hub::is_id(self.base.as_ref()) {
            let _ = writeln!(text, "base_model: {}", self.base);
        }
        text +=
            "library_name: peft\npipeline_tag: image-to-image\ntags:\n- lora\n- retouch\n---\n\n";
        let _ = writeln!(text, "# A LoRA for image editing\n\n{}\n", self.origin);
        let _ = writeln!(text, "| | |\n|---|---|\n| base | `{}` |", self.base);
        for (name, value) in &self.settings {
            let _ = writeln!(text, "| {name} | {} |", value.replace('|', "\\|"));
        }
        if let Some(results) = &self.results {
            let _ = writeln!(text, "\n## Results\n\n```\n{results}\n```");
        }
        let _ = writeln!(
            text,
            "\n## Use\n\n```sh\nretouch edit in.png \"make the car red\" --model {0} --adapter . --output out.png\n```\n\n\
             takes the sampling settings of `{SAMPLING_FILE}`.\n\n```python\nfrom diffusers import DiffusionPipeline\n\n\
             pipeline = DiffusionPipeline.from_pretrained(\"{0}\")\npipeline.load_lora_weights(\".\", \
             weight_name=\"pytorch_lora_weights.safetensors\")\n```",
            self.base
        );
        text
    }
}

fn lora(config: &LoraConfig) -> [(&'static str, String); 2] {
    [
        ("rank, alpha", format!("{}, {}", config.rank, config.alpha)),
        ("layers", config.target_modules.join(", ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(base: &str) -> RunConfig {
        let mut config = RunConfig::default();
        config.model.path = base.into();
        config.model.max_sequence_length = 17;
        config.evaluation.num_inference_steps = 8;
        config
    }

    #[test]
    fn a_card_names_base_settings_and_results() {
        let card = Card::of_run(&config("org/base"), Iteration(30));
        let text = card.text();
        assert!(
            text.starts_with("---\nbase_model: org/base\nlibrary_name: peft\n"),
            "{text}"
        );
        for part in [
            "after iteration 30",
            "| base | `org/base` |",
            "| learning rate |",
            "--model org/base",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("## Results"));
        let text = card.with_results("judge 0.5 -> 0.7".into()).text();
        assert!(
            text.contains("## Results\n\n```\njudge 0.5 -> 0.7\n```"),
            "{text}"
        );
        let text = Card::of_run(&config("models/tiny/editor"), Iteration(1)).text();
        assert!(text.starts_with("---\nlibrary_name"), "{text}");
    }

    #[test]
    fn sampling_settings_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(Sampling::read(path).unwrap(), Sampling::default());
        fs::write(path.join("adapter_config.json"), "{\"r\": 4}").unwrap();
        Card::of_run(&config("org/base"), Iteration(1))
            .write(path)
            .unwrap();
        let sampling = Sampling::read(path).unwrap();
        assert_eq!(
            (sampling.num_inference_steps, sampling.max_sequence_length),
            (Some(8), Some(17))
        );
        let text = fs::read_to_string(path.join("adapter_config.json")).unwrap();
        assert!(
            text.contains("\"base_model_name_or_path\": \"org/base\"") && text.contains("\"r\": 4"),
            "{text}"
        );
        // A file instead of a folder has no settings beside it that are its own.
        assert_eq!(
            Sampling::read(&path.join("adapter_config.json")).unwrap(),
            Sampling::default()
        );
        fs::write(path.join(SAMPLING_FILE), "{").unwrap();
        assert!(Sampling::read(path).is_err());
    }
}
