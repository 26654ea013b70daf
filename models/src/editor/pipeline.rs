use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;

use super::encoders::Encoders;
use super::latents::LatentFormat;
use super::pixels::{fit, lanczos, size_of};
use super::size::preferred_size;
use super::{Condition, EditError, ImageSize, SourceSize};
use crate::flux::{FluxCondition, FluxContext, FluxTransformer};
use crate::lora::{LoraAdapter, Projection};
use crate::scheduler::FlowMatchScheduler;
use crate::solver::{self, Solver};

/// Edits images by instruction.
#[derive(Debug, Clone)]
pub struct Editor {
    /// Predicts velocities; frozen unless someone trains it.
    pub transformer: FluxTransformer,
    /// Spaces the noise levels.
    pub scheduler: FlowMatchScheduler,
    /// What else the pipeline is made of; a learner needs none of it.
    pub encoders: Option<Encoders>,
    pub(super) format: LatentFormat,
    pub(super) device: Device,
}

/// Which parts of an editor are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Everything.
    All,
    /// What velocities and sampling need, once conditions are encoded.
    Transformer,
}

/// How images are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleOptions {
    /// Number of network evaluations.
    pub num_inference_steps: usize,
    /// How the ODE is solved.
    pub solver: Solver,
    /// Guidance scale that the model is told, where it takes one.
    pub guidance_scale: f64,
}

/// What all network evaluations of one condition, or of one batch of them, share.
#[derive(Debug, Clone)]
pub struct Prepared {
    context: FluxContext,
    /// `[1 or B, R, C]`
    image_latents: Tensor<3>,
}

impl Editor {
    /// An editor of the given parts.
    pub fn new(
        transformer: FluxTransformer,
        scheduler: FlowMatchScheduler,
        encoders: Encoders,
        device: &Device,
    ) -> Self {
        Self {
            transformer,
            scheduler,
            format: LatentFormat::of(encoders.vae.config()),
            encoders: Some(encoders),
            device: device.clone(),
        }
    }

    /// The device of the transformer.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layers that an adapter may change.
    pub fn projections(&self) -> &[Projection] {
        self.transformer.projections()
    }

    /// How images become latent tokens.
    pub fn latent_format(&self) -> LatentFormat {
        self.format
    }

    /// Number S of tokens of an image and the width C of each.
    pub fn latent_shape(&self, size: ImageSize) -> [usize; 2] {
        self.format.shape(size)
    }

    /// Encodes an instruction and a source image, cropped and resized to the result's size.
    ///
    /// # Errors
    /// If the size does not divide into tokens, the encoders were not loaded, or the prompt can't
    /// be tokenized.
    pub fn encode(
        &self,
        prompt: &str,
        source: &RgbImage,
        size: ImageSize,
        max_sequence_length: usize,
    ) -> Result<Condition, EditError> {
        self.encode_with(
            prompt,
            source,
            size,
            max_sequence_length,
            SourceSize::Result,
        )
    }

    /// As [`Editor::encode`], with a choice of the source image's size.
    ///
    /// # Errors
    /// As [`Editor::encode`].
    pub fn encode_with(
        &self,
        prompt: &str,
        source: &RgbImage,
        size: ImageSize,
        max_sequence_length: usize,
        source_size: SourceSize,
    ) -> Result<Condition, EditError> {
        let encoders = self.encoders()?;
        let source = self.resize(source, size, source_size)?;
        let device = self.device.clone().without_autodiff();
        let (pooled, prompt_embeds) = encoders.encode_text(prompt, max_sequence_length, &device)?;
        Ok(Condition {
            prompt_embeds,
            pooled,
            image_latents: encoders.encode_image(&source, self.format, &device),
            size,
            source_size: size_of(&source),
        })
    }

    /// The packed latents of an image, cropped and resized; what a target is trained towards.
    ///
    /// # Shapes
    /// * output: `[S, C]`
    ///
    /// # Errors
    /// If the size does not divide into tokens, or the encoders were not loaded.
    pub fn encode_image(&self, image: &RgbImage, size: ImageSize) -> Result<Tensor<2>, EditError> {
        let encoders = self.encoders()?;
        let image = self.resize(image, size, SourceSize::Result)?;
        let device = self.device.clone().without_autodiff();
        Ok(encoders.encode_image(&image, self.format, &device))
    }

    fn resize(
        &self,
        source: &RgbImage,
        size: ImageSize,
        source_size: SourceSize,
    ) -> Result<RgbImage, EditError> {
        let (unit, own) = (self.format.unit(), size_of(source));
        let resized = match source_size {
            SourceSize::Result => size,
            SourceSize::Own => own.floor_to(unit),
            SourceSize::Preferred => preferred_size(own, unit),
        };
        if let Some(size) = [size, resized]
            .into_iter()
            .find(|size| !size.is_multiple_of(unit))
        {
            return Err(EditError::Size { size, unit });
        }
        Ok(match source_size {
            SourceSize::Result => fit(source, size),
            SourceSize::Own | SourceSize::Preferred => lanczos(source, resized),
        })
    }

    /// The velocity of noised latents under one condition, which all of them share.
    ///
    /// # Shapes
    /// * x_t: `[B, S, C]`, t in 0..1: `[B]`
    /// * output: `[B, S, C]`
    pub fn velocity(
        &self,
        x_t: Tensor<3>,
        t: Tensor<1>,
        condition: &Condition,
        guidance_scale: f64,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3> {
        self.velocity_of(x_t, t, &self.prepare(&[condition], guidance_scale), adapter)
    }

    /// Computes what all network evaluations of a condition share; of several conditions of equal
    /// sizes, one per sample, a batch.
    ///
    /// # Panics
    /// If there is no condition, or their sizes differ.
    pub fn prepare(&self, conditions: &[&Condition], guidance_scale: f64) -> Prepared {
        let first = conditions.first().expect("at least one condition");
        let dtype = self.dtype();
        let rows = |field: fn(&Condition) -> Tensor<2>| {
            let rows = conditions
                .iter()
                .map(|condition| field(condition))
                .collect();
            Tensor::stack::<3>(rows, 0)
                .to_device(&self.device)
                .cast(dtype)
        };
        let pooled = conditions
            .iter()
            .map(|condition| condition.pooled.clone())
            .collect();
        let prompt_embeds = rows(|condition| condition.prompt_embeds.clone());
        let [_, text, _] = prompt_embeds.dims();
        let guided = self.transformer.config().guidance_embeds;
        Prepared {
            context: self.transformer.prepare(FluxCondition {
                encoder_hidden_states: prompt_embeds,
                pooled_projections: Tensor::stack::<2>(pooled, 0)
                    .to_device(&self.device)
                    .cast(dtype),
                guidance: guided
                    .then(|| Tensor::full([1], guidance_scale, (&self.device, DType::F32))),
                img_ids: self.format.ids(first.size, first.source_size, &self.device),
                txt_ids: Tensor::zeros([text, 3], &self.device),
            }),
            image_latents: rows(|condition| condition.image_latents.clone()),
        }
    }

    /// As [`Editor::velocity`], with what the evaluations share computed before.
    ///
    /// # Shapes
    /// As [`Editor::velocity`]; B is 1 or the number of prepared conditions, or those are one.
    pub fn velocity_of(
        &self,
        x_t: Tensor<3>,
        t: Tensor<1>,
        prepared: &Prepared,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3> {
        let [batch, tokens, _] = x_t.dims();
        let [_, source, channels] = prepared.image_latents.dims();
        let image_latents = prepared
            .image_latents
            .clone()
            .expand([batch, source, channels]);
        let hidden_states = Tensor::cat(vec![x_t.cast(self.dtype()), image_latents], 1);
        let velocity = self
            .transformer
            .step(hidden_states, tokens, t, &prepared.context, adapter);
        velocity.cast(DType::F32)
    }

    /// Samples edits of one condition from noise, all as one batch, without gradients.
    ///
    /// # Shapes
    /// * noise: `[K, S, C]`
    /// * output, packed x0: `[K, S, C]`
    pub fn sample(
        &self,
        condition: &Condition,
        noise: Tensor<3>,
        options: &SampleOptions,
        adapter: Option<&LoraAdapter>,
    ) -> Tensor<3> {
        let adapter = adapter.map(Module::valid);
        // A narrow base would round small changes away: there the adapter stays apart.
        let (policy, apart) = match adapter {
            Some(adapter) if self.dtype() == DType::F32 => (self.merged(&adapter), None),
            adapter => (self.without_encoders(), adapter),
        };
        let prepared = policy.prepare(&[condition], options.guidance_scale);
        let [batch, tokens, _] = noise.dims();
        let sigmas = self.scheduler.sigmas(options.num_inference_steps, tokens);
        solver::sample(options.solver, &sigmas, noise.inner(), |x, sigma| {
            let t = Tensor::full([batch], sigma, (&policy.device, DType::F32));
            policy.velocity_of(x, t, &prepared, apart.as_ref())
        })
    }

    /// The editor of a policy that is not being trained, without encoders and off the autodiff
    /// device: the adapter is merged into the weights, so that velocities cost what the base's do.
    pub fn merged(&self, adapter: &LoraAdapter) -> Self {
        let plain = self.without_encoders();
        Self {
            transformer: plain.transformer.merged(&adapter.valid()),
            ..plain
        }
    }

    fn without_encoders(&self) -> Self {
        Self {
            transformer: self.transformer.valid(),
            scheduler: self.scheduler.clone(),
            encoders: None,
            format: self.format,
            device: self.device.clone().without_autodiff(),
        }
    }

    /// The images of sampled latents.
    ///
    /// # Shapes
    /// * x0: `[K, S, C]`
    ///
    /// # Errors
    /// If the encoders were not loaded.
    pub fn decode(&self, x0: Tensor<3>, condition: &Condition) -> Result<Vec<RgbImage>, EditError> {
        Ok(self
            .encoders()?
            .decode_images(x0.inner(), condition.size, self.format))
    }

    /// As [`Editor::decode`], before rounding to bytes.
    ///
    /// # Shapes
    /// * x0: `[K, S, C]`
    /// * output in 0..1: `[K, 3, H, W]`
    ///
    /// # Errors
    /// As [`Editor::decode`].
    pub fn decode_pixels(
        &self,
        x0: Tensor<3>,
        condition: &Condition,
    ) -> Result<Tensor<4>, EditError> {
        Ok(self
            .encoders()?
            .decode(x0.inner(), condition.size, self.format))
    }

    fn encoders(&self) -> Result<&Encoders, EditError> {
        self.encoders.as_ref().ok_or(EditError::NoEncoders)
    }

    fn dtype(&self) -> DType {
        self.transformer.dtype()
    }
}
