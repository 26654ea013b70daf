//! What is trained, and how it predicts.

use burn::module::Module;
use burn::tensor::{DType, Device, Gradients, Tensor};
use retouch_models::clip::ClipText;
use retouch_models::editor::{Editor, ImageSize};
use retouch_models::flux::{FluxCondition, FluxTransformer};
use retouch_models::lora::{LoraAdapter, LoraConfig};
use retouch_models::t5::T5Encoder;

use super::examples::{Batch, Text};
use super::flat;
use super::options::{TextEncoders, Trained};

/// The editor's networks, of which some parameters are trained.
///
/// The trained parameters have a flat form, which everything but the forward pass
/// works on.
#[derive(Clone)]
pub(super) struct Network {
    parts: Parts,
    adapter: Option<LoraAdapter>,
    trained: TrainedParts,
    image_ids: Tensor<2>,
    guidance_scale: f64,
    device: Device,
}

#[derive(Clone)]
enum TrainedParts {
    Adapter(LoraConfig),
    Transformer,
    All,
}

/// The networks that full training may change.
#[derive(Module, Debug)]
struct Parts {
    transformer: FluxTransformer,
    text: TextParts,
}

#[derive(Module, Debug)]
struct TextParts {
    clip: ClipText,
    t5: T5Encoder,
}

impl TextParts {
    /// Pooled text `[B, P]` and text tokens `[B, T, J]`.
    fn encode(&self, text: &Text) -> (Tensor<2>, Tensor<3>) {
        match text {
            Text::Encoded { pooled, tokens } => (pooled.clone(), tokens.clone()),
            Text::Ids { clip, t5 } => {
                let pooled = self.clip.forward(clip.clone()).pooler_output;
                (pooled, self.t5.forward(t5.clone(), None))
            }
        }
    }
}

impl Network {
    /// The networks of an editor; a new adapter is drawn from `seed`.
    pub(super) fn new(
        editor: &Editor,
        trained: &Trained,
        size: ImageSize,
        guidance_scale: f64,
        seed: u64,
    ) -> Self {
        let encoders = editor.encoders.as_ref().expect("training loads all parts");
        let device = editor.device().clone();
        let projections = editor.projections();
        Self {
            parts: Parts {
                transformer: editor.transformer.clone(),
                text: TextParts {
                    clip: encoders.text_encoder.clone(),
                    t5: encoders.text_encoder_2.clone(),
                },
            },
            adapter: match trained {
                Trained::Lora(config) => {
                    Some(LoraAdapter::init(config, projections, seed, &device))
                }
                Trained::Full { .. } => None,
            },
            trained: match trained {
                Trained::Lora(config) => TrainedParts::Adapter(config.clone()),
                Trained::Full {
                    text_encoders: TextEncoders::Frozen,
                    ..
                } => TrainedParts::Transformer,
                Trained::Full {
                    text_encoders: TextEncoders::Trained,
                    ..
                } => TrainedParts::All,
            },
            image_ids: editor.latent_format().ids(size, size, &device),
            guidance_scale,
            device,
        }
    }

    /// The trained parameters.
    pub(super) fn parameters(&self) -> Vec<f32> {
        match (&self.trained, &self.adapter) {
            (TrainedParts::Adapter(_), Some(adapter)) => adapter.to_flat(),
            (TrainedParts::All, _) => flat::parameters(&self.parts),
            _ => flat::parameters(&self.parts.transformer),
        }
    }

    /// The networks with other values of the trained parameters, to train.
    pub(super) fn to_train(&self, parameters: &[f32]) -> Self {
        self.with_parameters(parameters, &self.device.clone().autodiff())
    }

    /// The networks with other values of the trained parameters, to use.
    pub(super) fn to_use(&self, parameters: &[f32]) -> Self {
        self.with_parameters(parameters, &self.device)
    }

    fn with_parameters(&self, parameters: &[f32], device: &Device) -> Self {
        let mut network = self.clone();
        match &self.trained {
            TrainedParts::Adapter(config) => {
                let projections = self.parts.transformer.projections();
                network.adapter = Some(LoraAdapter::from_flat(
                    config,
                    projections,
                    parameters,
                    device,
                ));
            }
            TrainedParts::Transformer => {
                let transformer = network.parts.transformer;
                network.parts.transformer = flat::with_parameters(transformer, parameters, device);
            }
            TrainedParts::All => {
                network.parts = flat::with_parameters(network.parts, parameters, device);
            }
        }
        network
    }

    /// The gradients of the trained parameters in flat form.
    pub(super) fn gradients(&self, gradients: Gradients) -> Vec<f32> {
        match (&self.trained, &self.adapter) {
            (TrainedParts::Adapter(_), Some(adapter)) => adapter.flat_gradients(&gradients),
            (TrainedParts::All, _) => flat::gradients(&self.parts, gradients),
            _ => flat::gradients(&self.parts.transformer, gradients),
        }
    }

    /// The velocities of noised targets.
    ///
    /// # Shapes
    ///
    /// * x_t: `[B, S, C]`, t in 0..1: `[B]`
    /// * output: `[B, S, C]`
    pub(super) fn velocity(&self, x_t: Tensor<3>, t: Tensor<1>, batch: &Batch) -> Tensor<3> {
        let [_, tokens, _] = x_t.dims();
        let transformer = &self.parts.transformer;
        let (pooled, text) = self.parts.text.encode(&batch.text);
        let [_, text_tokens, _] = text.dims();
        let guided = transformer.config().guidance_embeds;
        let context = transformer.prepare(FluxCondition {
            encoder_hidden_states: text,
            pooled_projections: pooled,
            guidance: guided
                .then(|| Tensor::full([1], self.guidance_scale, (&self.device, DType::F32))),
            img_ids: self.image_ids.clone(),
            txt_ids: Tensor::zeros([text_tokens, 3], &self.device),
        });
        let hidden_states = Tensor::cat(vec![x_t, batch.sources.clone()], 1);
        transformer.step(hidden_states, tokens, t, &context, self.adapter.as_ref())
    }

    /// The trained adapter, if it is one.
    pub(super) fn adapter(&self) -> Option<&LoraAdapter> {
        self.adapter.as_ref()
    }

    /// Puts the networks into an editor.
    pub(super) fn install(self, editor: &mut Editor) {
        editor.transformer = self.parts.transformer;
        if let Some(encoders) = &mut editor.encoders {
            encoders.text_encoder = self.parts.text.clip;
            encoders.text_encoder_2 = self.parts.text.t5;
        }
    }
}
