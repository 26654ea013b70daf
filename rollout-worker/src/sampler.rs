//! From a source image and an instruction to candidates, on the device.

use std::{path::PathBuf, sync::Arc, time::Instant};

use burn::tensor::{DType, Device, Tensor, TensorData};
use image::RgbImage;
use retouch_models::{
    device,
    editor::{
        Condition, EditError, EditRequest, Editor, EditorSource, Layout, Parts, SampleOptions,
        Sources,
    },
    exchange,
    lora::{LoraAdapter, LoraConfig, flat_len},
    memory, noise,
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
    /// The encoders, which were let go of in between, can't be loaded again.
    #[error("the encoders cannot be loaded again: {0}")]
    Encoders(#[from] LoadError),
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
    /// The source images' paths, which name them in the cache.
    pub paths: Vec<String>,
    /// The source images, and the size of the edits.
    pub sources: Arc<Sources>,
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
    /// Where the encoders come from.
    folder: PathBuf,
    dtype: DType,
    device: Device,
    settings: Settings,
    conditions: Lru<(Vec<String>, String), Condition>,
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
    /// If a file is missing or broken, or the adapter's targets are no layers of the model.
    pub fn load(
        config: &RunConfig,
        device: Device,
        editors: &EditorSource,
    ) -> Result<Self, LoadError> {
        let folder = PathBuf::from(&config.model.path);
        let dtype = device::float_type(config.model.dtype);
        Layout::check_targets(&folder, &config.lora.adapter)?;
        Ok(Self {
            editor: editors.load(&folder, &device, Parts::All, dtype)?,
            folder,
            dtype,
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
        if !self.editor.has_encoders() {
            self.editor.load_encoders(&self.folder, self.dtype)?;
        }
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
        // On the host from here on: bytes and check need the values, and a device is waited for once.
        let values = x0.to_data().convert::<f32>();
        check_finite(input, &values)?;
        let x0_bytes = exchange::latents_to_bytes(values);
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

    /// Where it samples.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Lets go of the encoders, and of all memory of the device that is not the transformer's. The next group takes
    /// some seconds more for it.
    pub fn rest(&mut self) {
        self.editor.unload_encoders();
        memory::release(&self.device);
    }

    fn condition(&mut self, input: &GroupInput) -> Result<Condition, SampleError> {
        let key = (input.paths.clone(), input.prompt.clone());
        let request = EditRequest {
            prompt: &input.prompt,
            negative_prompt: self.settings.sample.negative_prompt(),
            sources: &input.sources.images,
            source_size: input.sources.source_size(),
            size: input.sources.size,
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
        let [tokens, channels] = self.editor.latent_shape(input.sources.size);
        let GroupId { iteration, index } = input.group;
        let seed = |sample| {
            let (run_seed, purpose) = (self.settings.run_seed, Purpose::RolloutNoise);
            seed::derive(run_seed, purpose, iteration.0, index, sample as u32, 0)
        };
        let seeds: Vec<u64> = (0..input.group_size).map(seed).collect();
        noise::normal_batch(&seeds, [tokens, channels], &self.device)
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
            lora: config.lora.adapter.clone(),
        }
    }
}

/// # Shapes
/// * x0: f32 `[K, S, C]`
fn check_finite(input: &GroupInput, x0: &TensorData) -> Result<(), SampleError> {
    let values = x0.as_slice::<f32>().expect("x0 is f32");
    let latents = values.chunks((values.len() / input.group_size.max(1)).max(1));
    let broken = |latent: &[f32]| !latent.iter().all(|value| value.is_finite());
    let sample = latents.into_iter().position(broken);
    sample.map_or(Ok(()), |sample| {
        let group = input.group;
        Err(SampleError::NotFinite { group, sample })
    })
}
