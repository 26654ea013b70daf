//! What is trained, and how it predicts.

use burn::tensor::{Device, Gradients, Tensor};
use retouch_models::editor::{
    ConditionBatch, EditError, Editor, ImageSize, PromptBatch, PromptInput, TrainedPart,
};
use retouch_models::lora::{LoraAdapter, LoraConfig};

use super::examples::{Batch, Text};
use super::flat;
use super::options::{TextEncoders, Trained};

/// The editor's networks, of which some parameters are trained.
///
/// The trained parameters have a flat form, which everything but the forward pass
/// works on.
#[derive(Clone)]
pub(super) struct Network {
    editor: Editor,
    adapter: Option<LoraAdapter>,
    trained: TrainedParameters,
    size: ImageSize,
    max_sequence_length: usize,
    guidance_scale: f64,
    device: Device,
}

#[derive(Clone)]
enum TrainedParameters {
    Adapter(LoraConfig),
    Part(TrainedPart),
}

/// How a network is asked.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) size: ImageSize,
    pub(super) max_sequence_length: usize,
    pub(super) guidance_scale: f64,
}

impl Network {
    /// The networks of an editor; a new adapter is drawn from `seed`.
    pub(super) fn new(editor: &Editor, trained: &Trained, asked: Asked, seed: u64) -> Self {
        let device = editor.device().clone();
        let projections = editor.projections();
        Self {
            adapter: match trained {
                Trained::Lora(config) => {
                    Some(LoraAdapter::init(config, projections, seed, &device))
                }
                Trained::Full { .. } => None,
            },
            trained: match trained {
                Trained::Lora(config) => TrainedParameters::Adapter(config.clone()),
                Trained::Full { text_encoders, .. } => {
                    TrainedParameters::Part(match text_encoders {
                        TextEncoders::Frozen => TrainedPart::Transformer,
                        TextEncoders::Trained => TrainedPart::TransformerAndText,
                    })
                }
            },
            editor: editor.clone(),
            size: asked.size,
            max_sequence_length: asked.max_sequence_length,
            guidance_scale: asked.guidance_scale,
            device,
        }
    }

    /// The trained parameters.
    pub(super) fn parameters(&self) -> Vec<f32> {
        match (&self.trained, &self.adapter) {
            (TrainedParameters::Part(part), _) => {
                flat::read(|reader| self.editor.visit_trained(*part, reader))
            }
            (TrainedParameters::Adapter(_), adapter) => {
                adapter.as_ref().map_or(Vec::new(), LoraAdapter::to_flat)
            }
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
            TrainedParameters::Adapter(config) => {
                let projections = self.editor.projections();
                network.adapter = Some(LoraAdapter::from_flat(
                    config,
                    projections,
                    parameters,
                    device,
                ));
            }
            TrainedParameters::Part(part) => {
                let editor = network.editor;
                network.editor = flat::write(parameters, device, |writer| {
                    editor.map_trained(*part, writer)
                });
            }
        }
        network
    }

    /// The gradients of the trained parameters in flat form.
    pub(super) fn gradients(&self, gradients: Gradients) -> Vec<f32> {
        match (&self.trained, &self.adapter) {
            (TrainedParameters::Part(part), _) => flat::read_gradients(gradients, |reader| {
                self.editor.visit_trained(*part, reader);
            }),
            (TrainedParameters::Adapter(_), adapter) => adapter
                .as_ref()
                .map_or(Vec::new(), |adapter| adapter.flat_gradients(&gradients)),
        }
    }

    /// The velocities of noised targets.
    ///
    /// # Shapes
    ///
    /// * x_t: `[B, S, C]`, t in 0..1: `[B]`
    /// * output: `[B, S, C]`
    pub(super) fn velocity(
        &self,
        x_t: Tensor<3>,
        t: Tensor<1>,
        batch: &Batch,
    ) -> Result<Tensor<3>, EditError> {
        let conditions = ConditionBatch {
            prompts: self.prompts(&batch.text)?,
            image_latents: batch.sources.clone(),
            size: self.size,
            source_sizes: batch.source_sizes.clone(),
        };
        let prepared = self.editor.prepare_batch(conditions, self.guidance_scale);
        let adapter = self.adapter.as_ref();
        Ok(self.editor.velocity_of(x_t, t, &prepared, adapter))
    }

    fn prompts(&self, text: &Text) -> Result<PromptBatch, EditError> {
        match text {
            Text::Encoded(prompts) => Ok(prompts.clone()),
            Text::Raw(prompts) => {
                let inputs: Vec<PromptInput<'_>> = prompts
                    .iter()
                    .map(|prompt| PromptInput {
                        prompt,
                        sources: &[],
                    })
                    .collect();
                self.editor
                    .encode_prompts(&inputs, self.max_sequence_length)
            }
        }
    }

    /// The trained adapter, if it is one.
    pub(super) fn adapter(&self) -> Option<&LoraAdapter> {
        self.adapter.as_ref()
    }

    /// The editor with these networks.
    pub(super) fn editor(&self) -> &Editor {
        &self.editor
    }
}
