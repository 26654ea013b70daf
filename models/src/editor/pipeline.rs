use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{DType, Device, Tensor};
use image::RgbImage;

use super::at_once::{images_at_once, samples_at_once};
use super::base::Context;
use super::pixels::{fit, lanczos, to_images, to_tensor};
use super::{
    Base, Condition, ConditionBatch, ConditionShape, EditError, ImageSize, LatentFormat, Prompt,
    PromptBatch, PromptInput, SourceSize, TrainedPart,
};
use crate::dit::Evaluation;
use crate::lora::{LoraAdapter, Projection, Tracked, Trained};
use crate::scheduler::FlowMatchScheduler;
use crate::solver::{self, Solver};

/// The negative prompt that published results were made with.
pub const NEGATIVE_PROMPT: &str = " ";

/// Edits images by instruction.
#[derive(Debug, Clone)]
pub struct Editor {
    /// Encodes, predicts velocities, decodes.
    pub base: Base,
    /// Spaces the noise levels.
    pub scheduler: FlowMatchScheduler,
    device: Device,
}

/// Which parts of an editor are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Everything.
    All,
    /// What velocities and sampling need, once conditions are encoded.
    Transformer,
}

/// What is to be edited, and how.
#[derive(Debug, Clone, Copy)]
pub struct EditRequest<'a> {
    /// The instruction.
    pub prompt: &'a str,
    /// What classifier-free guidance leads away from, where it is wanted.
    pub negative_prompt: Option<&'a str>,
    /// The source images.
    pub sources: &'a [RgbImage],
    /// What the source images are resized to.
    pub source_size: SourceSize,
    /// Size of the edited images.
    pub size: ImageSize,
    /// Text tokens, for base models that pad and cut their text.
    pub max_sequence_length: usize,
}

/// Source images, encoded.
#[derive(Debug, Clone)]
pub struct EncodedSources {
    /// Their packed latents, one after the other: `[R, C]`
    pub latents: Tensor<2>,
    /// The images as they were encoded.
    pub resized: Vec<RgbImage>,
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
    /// Classifier-free guidance, which takes a second evaluation under the negative prompt; 1 is off.
    pub true_cfg_scale: f64,
}

impl SampleOptions {
    /// The prompt that conditions need beside their own: none without classifier-free guidance.
    pub fn negative_prompt(&self) -> Option<&'static str> {
        (self.true_cfg_scale > 1.0).then_some(NEGATIVE_PROMPT)
    }
}

/// What all network evaluations of one condition, or of one batch of them, share.
#[derive(Debug, Clone)]
pub struct Prepared {
    context: Context,
    /// `[1 or B, R, C]`
    image_latents: Tensor<3>,
    guided: Option<Guided>,
}

/// The negative prompt's side of classifier-free guidance.
#[derive(Debug, Clone)]
struct Guided {
    context: Context,
    scale: f64,
}

/// A policy under conditions, ready to sample.
struct Sampler<'a> {
    policy: Editor,
    /// What is not merged into it.
    adapter: Option<LoraAdapter>,
    prepared: Prepared,
    options: &'a SampleOptions,
}

impl<'a> Sampler<'a> {
    fn new(
        editor: &Editor,
        conditions: &[&Condition],
        options: &'a SampleOptions,
        adapter: Option<&LoraAdapter>,
    ) -> Self {
        let adapter = adapter.map(Module::valid);
        // A narrow base would round small changes away: there the adapter stays apart.
        let (policy, adapter) = match adapter {
            Some(adapter) if editor.base.dtype() == DType::F32 => (editor.merged(&adapter), None),
            adapter => (editor.without_encoders(), adapter),
        };
        Self {
            prepared: policy.prepare_guided(conditions, options),
            policy,
            adapter,
            options,
        }
    }

    fn sample(&self, noise: Tensor<3>) -> Result<Tensor<3>, EditError> {
        let ([batch, tokens, _], policy) = (noise.dims(), &self.policy);
        let steps = self.options.num_inference_steps;
        let sigmas = policy.scheduler.sigmas(steps, tokens)?;
        let velocity = |x, sigma| {
            let t = Tensor::full([batch], sigma, (&policy.device, DType::F32));
            policy.velocity_of(x, t, &self.prepared, self.adapter.as_ref())
        };
        let solver = self.options.solver;
        Ok(solver::sample(solver, &sigmas, noise.inner(), velocity))
    }
}

impl Editor {
    /// An editor of a base model.
    pub fn new(base: impl Into<Base>, scheduler: FlowMatchScheduler, device: &Device) -> Self {
        Self {
            base: base.into(),
            scheduler,
            device: device.clone(),
        }
    }

    /// The device of the transformer.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `_class_name` of the base model's diffusers pipeline.
    pub fn class(&self) -> &'static str {
        self.base.class().name
    }

    /// Most source images that the base model takes.
    pub fn sources_max(&self) -> usize {
        self.base.class().sources_max
    }

    /// Whether a prompt's embeddings depend on the source images.
    pub fn prompt_sees_sources(&self) -> bool {
        self.base.class().prompt_sees_sources
    }

    /// Whether full training may change the text encoders too.
    pub fn trains_text_encoders(&self) -> bool {
        self.base.class().trains_text_encoders
    }

    /// The layers that an adapter may change.
    pub fn projections(&self) -> &[Projection] {
        self.base.projections()
    }

    /// How images become latent tokens.
    pub fn latent_format(&self) -> LatentFormat {
        self.base.format()
    }

    /// Number S of tokens of an image and the width C of each.
    pub fn latent_shape(&self, size: ImageSize) -> [usize; 2] {
        self.base.format().shape(size)
    }

    /// How many samples under a condition are worth evaluating at once, at least one: with more, activations take more
    /// memory and no less time.
    pub fn samples_at_once(&self, condition: &Condition) -> usize {
        let [text, _] = condition.prompt.tokens.dims();
        let [source, _] = condition.image_latents.dims();
        let [own, _] = self.latent_shape(condition.size);
        samples_at_once(text + source + own)
    }

    /// As [`Editor::samples_at_once`], before there is a condition.
    pub fn samples_at_once_of(&self, shape: ConditionShape) -> usize {
        let [own, _] = self.latent_shape(shape.size);
        let images = (1 + shape.sources) * own;
        samples_at_once(images + self.prompt_shape(shape).tokens)
    }

    /// Encodes an instruction and a source image, cropped and resized to the result's size.
    ///
    /// # Errors
    /// As [`Editor::encode_request`].
    pub fn encode(
        &self,
        prompt: &str,
        source: &RgbImage,
        size: ImageSize,
        max_sequence_length: usize,
    ) -> Result<Condition, EditError> {
        self.encode_request(&EditRequest {
            prompt,
            negative_prompt: None,
            sources: std::slice::from_ref(source),
            source_size: SourceSize::Result,
            size,
            max_sequence_length,
        })
    }

    /// Encodes an instruction and source images.
    ///
    /// # Errors
    /// If there are more source images than the base model takes, a size does not divide into tokens, the encoders
    /// were not loaded, or the prompt can't be tokenized.
    pub fn encode_request(&self, request: &EditRequest<'_>) -> Result<Condition, EditError> {
        let encoded = self.encode_sources(request.sources, request.source_size, request.size)?;
        let seen = match request.source_size {
            // What was cropped away is no part of the source.
            SourceSize::Result => &encoded.resized[..],
            SourceSize::Own | SourceSize::Preferred => request.sources,
        };
        let prompt = |prompt| self.encode_prompt(prompt, seen, request.max_sequence_length);
        Ok(Condition {
            prompt: prompt(request.prompt)?,
            negative_prompt: request.negative_prompt.map(prompt).transpose()?,
            image_latents: encoded.latents,
            size: request.size,
            source_sizes: encoded.resized.iter().map(ImageSize::of).collect(),
        })
    }

    /// Encodes source images without an instruction.
    ///
    /// # Errors
    /// As [`Editor::encode_request`].
    pub fn encode_sources(
        &self,
        sources: &[RgbImage],
        source_size: SourceSize,
        size: ImageSize,
    ) -> Result<EncodedSources, EditError> {
        self.base.check_sources(sources)?;
        let resized = sources
            .iter()
            .map(|source| self.resize(source, size, source_size));
        let resized: Vec<RgbImage> = resized.collect::<Result<_, _>>()?;
        let latents = resized.iter().map(|source| self.latents(source));
        Ok(EncodedSources {
            latents: joined(latents.collect::<Result<_, _>>()?),
            resized,
        })
    }

    fn encode_prompt(
        &self,
        prompt: &str,
        sources: &[RgbImage],
        max_sequence_length: usize,
    ) -> Result<Prompt, EditError> {
        let input = PromptInput { prompt, sources };
        Ok(self.encode_prompts(&[input], max_sequence_length)?.row(0))
    }

    /// Encodes prompts as one batch; gradients reach text encoders that are being trained.
    ///
    /// # Errors
    /// If the encoders were not loaded, or a prompt can't be tokenized.
    pub fn encode_prompts(
        &self,
        prompts: &[PromptInput<'_>],
        max_sequence_length: usize,
    ) -> Result<PromptBatch, EditError> {
        let device = self.device.clone().without_autodiff();
        self.base
            .encode_prompts(prompts, max_sequence_length, &device)
    }

    /// The packed latents of an image, cropped and resized; what a target is trained towards.
    ///
    /// # Shapes
    /// * output: `[S, C]`
    ///
    /// # Errors
    /// If the size does not divide into tokens, or the encoders were not loaded.
    pub fn encode_image(&self, image: &RgbImage, size: ImageSize) -> Result<Tensor<2>, EditError> {
        self.latents(&self.resize(image, size, SourceSize::Result)?)
    }

    /// The packed latents of an image whose sides are multiples of a token's.
    fn latents(&self, image: &RgbImage) -> Result<Tensor<2>, EditError> {
        let device = self.device.clone().without_autodiff();
        let latents = self.base.encode_pixels(to_tensor(image, &device))?;
        Ok(self.base.format().pack(latents).squeeze_dim(0))
    }

    fn resize(
        &self,
        source: &RgbImage,
        size: ImageSize,
        source_size: SourceSize,
    ) -> Result<RgbImage, EditError> {
        let (unit, own) = (self.base.format().unit(), ImageSize::of(source));
        let resized = match source_size {
            SourceSize::Result => size,
            SourceSize::Own => own.floor_to(unit),
            SourceSize::Preferred => self.base.preferred_size(own),
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
    /// sizes, one per sample, a batch. Negative prompts are left aside, as in training.
    ///
    /// # Panics
    /// If there is no condition, or their sizes differ.
    pub fn prepare(&self, conditions: &[&Condition], guidance_scale: f64) -> Prepared {
        let batch = ConditionBatch::stack(conditions);
        let (device, dtype) = (&self.device, self.base.dtype());
        self.prepare_batch(
            ConditionBatch {
                prompts: batch.prompts.on((device, dtype)),
                image_latents: batch.image_latents.to_device(device).cast(dtype),
                ..batch
            },
            guidance_scale,
        )
    }

    /// As [`Editor::prepare`], of tensors on the transformer's device in its float type.
    pub fn prepare_batch(&self, batch: ConditionBatch, guidance_scale: f64) -> Prepared {
        let sizes: Vec<_> = [batch.size].into_iter().chain(batch.source_sizes).collect();
        let (prompts, device) = (batch.prompts, &self.device);
        Prepared {
            context: self.base.prepare(prompts, &sizes, guidance_scale, device),
            image_latents: batch.image_latents,
            guided: None,
        }
    }

    /// As [`Editor::prepare`], with classifier-free guidance if the options ask for it.
    fn prepare_guided(&self, conditions: &[&Condition], options: &SampleOptions) -> Prepared {
        let prepared = self.prepare(conditions, options.guidance_scale);
        if options.negative_prompt().is_none() {
            return prepared;
        }
        let negative = |condition: &&Condition| Condition {
            prompt: condition
                .negative_prompt
                .clone()
                .expect("a condition for classifier-free guidance has a negative prompt"),
            ..(*condition).clone()
        };
        let negative: Vec<Condition> = conditions.iter().map(negative).collect();
        let negative = self.prepare(&negative.iter().collect::<Vec<_>>(), options.guidance_scale);
        Prepared {
            // The sources' latents are the same on both sides: only the context is kept.
            guided: Some(Guided {
                context: negative.context,
                scale: options.true_cfg_scale,
            }),
            ..prepared
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
        let velocity = |context| {
            let (x_t, t) = (x_t.clone(), t.clone());
            let evaluation = self.evaluation(x_t, t, &prepared.image_latents, context);
            evaluation.velocity(adapter).cast(DType::F32)
        };
        let positive = velocity(&prepared.context);
        match &prepared.guided {
            None => positive,
            Some(Guided { context, scale }) => self.base.guide(positive, velocity(context), *scale),
        }
    }

    /// As [`Editor::velocity_of`], with the way back to an adapter that is being trained; without
    /// classifier-free guidance.
    ///
    /// # Shapes
    /// As [`Editor::velocity_of`].
    pub fn tracked_velocity_of<'a>(
        &'a self,
        x_t: Tensor<3>,
        t: Tensor<1>,
        prepared: &'a Prepared,
        trained: Trained<'a>,
    ) -> Tracked<'a> {
        let evaluation = self.evaluation(x_t, t, &prepared.image_latents, &prepared.context);
        let tracked = evaluation.track(trained);
        tracked.map(|velocity| velocity.cast(DType::F32))
    }

    /// One evaluation of the transformer: of noised latents' tokens, then those of the source images.
    fn evaluation<'a>(
        &'a self,
        x_t: Tensor<3>,
        t: Tensor<1>,
        image_latents: &Tensor<3>,
        context: &'a Context,
    ) -> Evaluation<'a> {
        let [batch, tokens, _] = x_t.dims();
        let [_, source, channels] = image_latents.dims();
        let sources = image_latents.clone().expand([batch, source, channels]);
        let hidden_states = Tensor::cat(vec![x_t.cast(self.base.dtype()), sources], 1);
        self.base.evaluation(hidden_states, tokens, t, context)
    }

    /// Samples edits of one condition from noise, without gradients; as many at once as
    /// [`Editor::samples_at_once`] says, on which no sample depends.
    ///
    /// # Shapes
    /// * noise: `[K, S, C]`
    /// * output, packed x0: `[K, S, C]`
    ///
    /// # Errors
    /// If the scheduler has no noise levels for so many steps.
    ///
    /// # Panics
    /// If the options ask for classifier-free guidance and the condition has no negative prompt.
    pub fn sample(
        &self,
        condition: &Condition,
        noise: Tensor<3>,
        options: &SampleOptions,
        adapter: Option<&LoraAdapter>,
    ) -> Result<Tensor<3>, EditError> {
        let at_once = self.samples_at_once(condition);
        self.sample_in_parts(at_once, condition, noise, options, adapter)
    }

    /// As [`Editor::sample`], in parts of nearly one size that have at most `at_once` samples.
    pub(super) fn sample_in_parts(
        &self,
        at_once: usize,
        condition: &Condition,
        noise: Tensor<3>,
        options: &SampleOptions,
        adapter: Option<&LoraAdapter>,
    ) -> Result<Tensor<3>, EditError> {
        let [samples, ..] = noise.dims();
        let sampler = Sampler::new(self, &[condition], options, adapter);
        let parts = samples.div_ceil(at_once);
        if parts < 2 {
            return sampler.sample(noise);
        }
        let parts = noise.split(samples.div_ceil(parts), 0).into_iter();
        let parts = parts.map(|noise| sampler.sample(noise));
        Ok(Tensor::cat(parts.collect::<Result<_, _>>()?, 0))
    }

    /// As [`Editor::sample`], one edit of each of some conditions of equal sizes, all at once.
    ///
    /// # Errors
    /// As [`Editor::sample`].
    ///
    /// # Panics
    /// As [`Editor::sample`] and [`Editor::prepare`].
    pub fn sample_each(
        &self,
        conditions: &[&Condition],
        noise: Tensor<3>,
        options: &SampleOptions,
        adapter: Option<&LoraAdapter>,
    ) -> Result<Tensor<3>, EditError> {
        Sampler::new(self, conditions, options, adapter).sample(noise)
    }

    /// The editor of a policy that is not being trained, without encoders and off the autodiff
    /// device: the adapter is merged into the weights, so that velocities cost what the base's do.
    pub fn merged(&self, adapter: &LoraAdapter) -> Self {
        let plain = self.without_encoders();
        Self {
            base: plain.base.merged(&adapter.valid()),
            ..plain
        }
    }

    pub(super) fn without_encoders(&self) -> Self {
        Self {
            base: self.base.without_encoders(),
            scheduler: self.scheduler.clone(),
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
        Ok(to_images(self.decode_pixels(x0, condition)?))
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
        let size = condition.size;
        let latents = self.base.format().unpack(x0.inner(), size);
        let parts = latents.split(images_at_once(size), 0).into_iter();
        let parts = parts.map(|part| self.base.decode_latents(part));
        let pixels = Tensor::cat(parts.collect::<Result<_, _>>()?, 0);
        Ok((pixels / 2.0 + 0.5).clamp(0.0, 1.0))
    }

    /// Shows a visitor the parameters that full training changes.
    pub fn visit_trained<V: ModuleVisitor>(&self, part: TrainedPart, visitor: &mut V) {
        self.base.visit_trained(part, visitor);
    }

    /// The editor with other parameters in a trained part.
    pub fn map_trained<M: ModuleMapper>(self, part: TrainedPart, mapper: &mut M) -> Self {
        Self {
            base: self.base.map_trained(part, mapper),
            ..self
        }
    }
}

/// The tokens of all images, one after the other.
fn joined(latents: Vec<Tensor<2>>) -> Tensor<2> {
    match <[_; 1]>::try_from(latents) {
        Ok([one]) => one,
        Err(several) => Tensor::cat(several, 0),
    }
}
