//! From a source image and an instruction to candidates, on the device.

use std::{path::Path, sync::Arc, time::Instant};

use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use retouch_models::{
    device,
    editor::{
        Condition, EditError, EditRequest, Editor, EditorSource, ImageSize, Parts, SampleOptions,
        SourceSize,
    },
    exchange,
    lora::{LoraAdapter, LoraConfig, flat_len},
    noise,
    weights::LoadError,
};
use retouch_proto::{
    ContentHash, GroupId,
    config::RunConfig,
    seed::{self, Purpose},
    task::RolloutTimings,
};
use thiserror::Error;

use crate::lru::Lru;

/// Conditions that are kept: a refilled or remade group comes soon after.
const CONDITIONS_MAX: usize = 8;
/// Adapters that are kept: the current one and its predecessor.
const ADAPTERS_MAX: usize = 2;

/// A group that could not be sampled.
#[derive(Debug, Error)]
pub enum SampleError {
    /// The instruction or image can't be encoded, or the outcome not decoded.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The adapter does not fit the model.
    #[error("adapter {hash}: {source}")]
    Adapter {
        /// The adapter's hash.
        hash: ContentHash,
        /// What does not fit.
        source: Box<LoadError>,
    },
    /// The model gave no numbers.
    #[error("candidate {sample} of group {group} is not finite")]
    NotFinite {
        /// The group.
        group: GroupId,
        /// Which of its candidates.
        sample: usize,
    },
}

/// A group to be sampled.
#[derive(Clone, Debug)]
pub struct GroupInput {
    /// The group.
    pub group: GroupId,
    /// The instruction.
    pub prompt: String,
    /// The source image's path, which names it in the cache.
    pub path: String,
    /// The source image in the size that its edits will have.
    pub source: Arc<RgbImage>,
    /// The adapter, none for the bare base model.
    pub version: Option<Version>,
    /// Number of candidates.
    pub group_size: usize,
}

/// An adapter by hash, with its bytes unless the sampler holds it.
#[derive(Clone, Debug)]
pub struct Version {
    /// The hash of the bytes (A6).
    pub hash: ContentHash,
    /// The flat adapter, see [`exchange::adapter_from_bytes`].
    pub bytes: bytes::Bytes,
}

/// A sampled group.
#[derive(Clone, Debug)]
pub struct GroupOutput {
    /// Clean latents as a blob.
    pub x0: Vec<u8>,
    /// The encoded condition as a blob.
    pub condition: Vec<u8>,
    /// The decoded candidates, in sample order.
    pub edits: Vec<RgbImage>,
    /// Where the time went; decoding without PNG.
    pub timings: RolloutTimings,
}

/// The base model and what is kept between groups.
#[derive(Debug)]
pub struct Sampler {
    editor: Editor,
    device: Device,
    settings: Settings,
    conditions: Lru<(String, String), Condition>,
    adapters: Lru<ContentHash, Arc<LoraAdapter>>,
}

#[derive(Clone, Debug)]
struct Settings {
    run_seed: u64,
    max_sequence_length: usize,
    sample: SampleOptions,
    lora: LoraConfig,
}

impl Sampler {
    /// Loads the base model of a run.
    ///
    /// # Errors
    ///
    /// If a file is missing or broken.
    pub fn load(
        config: &RunConfig,
        device: Device,
        editors: &EditorSource,
    ) -> Result<Self, LoadError> {
        let editor = editors.load(
            Path::new(&config.model.path),
            &device,
            Parts::All,
            device::float_type(config.model.dtype),
        )?;
        Ok(Self {
            editor,
            device,
            settings: Settings::of(config),
            conditions: Lru::new(CONDITIONS_MAX),
            adapters: Lru::new(ADAPTERS_MAX),
        })
    }

    /// Samples all candidates of a group as one batch. Who redoes it gets the same (A9).
    ///
    /// # Errors
    ///
    /// If the condition can't be encoded, the adapter does not fit or the outcome is
    /// not finite.
    pub fn sample_group(&mut self, input: &GroupInput) -> Result<GroupOutput, SampleError> {
        let begin = Instant::now();
        let condition = self.condition(input)?;
        let condition_bytes = condition.to_bytes();
        let encoded = Instant::now();
        let adapter = input
            .version
            .as_ref()
            .map(|version| self.adapter(version))
            .transpose()?;
        let noise = self.noise(input);
        let x0 =
            self.editor
                .sample(&condition, noise, &self.settings.sample, adapter.as_deref())?;
        let x0_bytes = exchange::latents_to_bytes(x0.clone());
        check_finite(input.group, &x0)?;
        let sampled = Instant::now();
        let edits = self.editor.decode(x0, &condition)?;
        let timings = RolloutTimings {
            encode_s: (encoded - begin).as_secs_f64(),
            sample_s: (sampled - encoded).as_secs_f64(),
            decode_s: sampled.elapsed().as_secs_f64(),
        };
        Ok(GroupOutput {
            x0: x0_bytes,
            condition: condition_bytes,
            edits,
            timings,
        })
    }

    fn condition(&mut self, input: &GroupInput) -> Result<Condition, SampleError> {
        let key = (input.path.clone(), input.prompt.clone());
        let request = EditRequest {
            prompt: &input.prompt,
            negative_prompt: self.settings.sample.negative_prompt(),
            sources: std::slice::from_ref(&*input.source),
            source_size: SourceSize::Result,
            size: ImageSize::of(&input.source),
            max_sequence_length: self.settings.max_sequence_length,
        };
        let editor = &self.editor;
        Ok(self
            .conditions
            .get_or(key, || editor.encode_request(&request))?)
    }

    fn adapter(&mut self, version: &Version) -> Result<Arc<LoraAdapter>, SampleError> {
        let (projections, lora) = (self.editor.projections(), &self.settings.lora);
        let load = || {
            let flat = exchange::adapter_from_bytes(&version.bytes, flat_len(lora, projections))?;
            Ok(Arc::new(LoraAdapter::from_flat(
                lora,
                projections,
                &flat,
                &self.device,
            )))
        };
        let adapter = self.adapters.get_or(version.hash, load);
        adapter.map_err(|source| SampleError::Adapter {
            hash: version.hash,
            source: Box::new(source),
        })
    }

    /// Independent noise for every candidate, derived from where it stands (A9). [K, S, C]
    fn noise(&self, input: &GroupInput) -> Tensor<3> {
        let [tokens, channels] = self.editor.latent_shape(ImageSize::of(&input.source));
        let GroupId { iteration, index } = input.group;
        let values = (0..input.group_size).flat_map(|sample| {
            let (run_seed, sample) = (self.settings.run_seed, sample as u32);
            let seed = seed::derive(
                run_seed,
                Purpose::RolloutNoise,
                iteration.0,
                index,
                sample,
                0,
            );
            noise::normal_values(seed, tokens * channels)
        });
        let data = TensorData::new(values.collect(), [input.group_size, tokens, channels]);
        Tensor::from_data(data, &self.device)
    }
}

impl Settings {
    fn of(config: &RunConfig) -> Self {
        Self {
            run_seed: config.seed,
            max_sequence_length: config.model.max_sequence_length as usize,
            sample: SampleOptions {
                num_inference_steps: config.rollout.num_inference_steps as usize,
                solver: config.rollout.solver,
                guidance_scale: config.rollout.guidance_scale,
                true_cfg_scale: config.rollout.true_cfg_scale,
            },
            lora: config.lora.clone(),
        }
    }
}

fn check_finite(group: GroupId, x0: &Tensor<3>) -> Result<(), SampleError> {
    let broken = |&sample: &usize| {
        let latent = x0.clone().narrow(0, sample, 1);
        !latent.is_finite().all().into_scalar::<bool>()
    };
    let sample = (0..x0.dims()[0]).find(broken);
    sample.map_or(Ok(()), |sample| {
        Err(SampleError::NotFinite { group, sample })
    })
}
