//! From a judgement's texts and images to the model's inputs, on the host.

use std::path::Path;

use serde_json::json;
use tokenizers::Tokenizer;

use super::inputs::{Group, JudgeInputs};
use super::template::{ImageRole, Rendered};
use super::{JudgeError, JudgeRequest, Template};
use crate::image_processor::{ImageProcessor, Patches};
use crate::qwen2_5_vl::{ImageTokens, Qwen2_5VlConfig};
use crate::tokenizer;
use crate::weights::read_text;

/// The tokenizer's file in a model folder.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Qwen's token that pads, and the one that ends a turn.
const PAD_TOKEN: &str = "<|endoftext|>";
const TURN_END: &str = "<|im_end|>";

/// Scores are digits from 0 to 5.
pub(super) const DIGITS: usize = 6;

/// Tokenizer, image processor and template of a judge.
#[derive(Clone, Debug)]
pub struct JudgeProcessor {
    tokenizer: Tokenizer,
    image_processor: ImageProcessor,
    template: Template,
    image_markup: String,
    image_tokens: ImageTokens,
    control_tokens: Vec<String>,
    digit_ids: [u32; DIGITS],
    tokens_max: usize,
}

impl JudgeProcessor {
    /// Joins the parts that belong to a model of `config`, with the default template.
    ///
    /// # Errors
    /// If a digit from 0 to 5 is not one token, or the parts contradict the configuration.
    pub fn new(
        tokenizer: Tokenizer,
        image_processor: ImageProcessor,
        config: &Qwen2_5VlConfig,
    ) -> Result<Self, JudgeError> {
        check_patches(&image_processor, config)?;
        check_vocabulary(&tokenizer, config)?;
        Ok(Self {
            image_markup: image_markup(&tokenizer, config)?,
            digit_ids: digit_ids(&tokenizer)?,
            control_tokens: control_tokens(&tokenizer),
            image_tokens: ImageTokens {
                token_id: config.image_token_id,
                merge_size: config.vision.spatial_merge_size,
            },
            tokens_max: config.text.max_position_embeddings,
            template: Template::default(),
            tokenizer,
            image_processor,
        })
    }

    /// Reads `tokenizer.json` and `preprocessor_config.json` of a model folder.
    ///
    /// # Errors
    /// If a file is missing or broken, or as [`JudgeProcessor::new`].
    pub fn load(folder: &Path, config: &Qwen2_5VlConfig) -> Result<Self, JudgeError> {
        let path = folder.join(TOKENIZER_FILE);
        let text = read_text(&path)?;
        let tokenizer =
            Tokenizer::from_bytes(text).map_err(|error| tokenizer_error(&path, error))?;
        Self::new(tokenizer, ImageProcessor::load(folder)?, config)
    }

    /// Writes `tokenizer.json` with `tokenizer_config.json`, and `preprocessor_config.json`.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), JudgeError> {
        let known = |token: &'static str| self.tokenizer.token_to_id(token).map(|_| token);
        let special = json!({"pad_token": known(PAD_TOKEN), "eos_token": known(TURN_END)});
        tokenizer::save(folder, &self.tokenizer, self.tokens_max, special)?;
        Ok(self.image_processor.save(folder)?)
    }

    /// The same with another template where a request names none.
    pub fn with_template(mut self, template: Template) -> Self {
        self.template = template;
        self
    }

    /// The tokens of the digits 0 to 5.
    pub fn digit_ids(&self) -> &[u32; DIGITS] {
        &self.digit_ids
    }

    /// Tokenises the texts and cuts the images of any number of judgements.
    ///
    /// The rows of the result are the edits of the first request, then those of the second, and so on.
    ///
    /// # Errors
    /// If a request can't be judged; the error says why.
    pub fn prepare(&self, requests: &[JudgeRequest<'_>]) -> Result<JudgeInputs, JudgeError> {
        let groups = requests.iter().map(|request| self.group(request));
        let groups: Vec<Group> = groups.collect::<Result<_, _>>()?;
        let inputs = JudgeInputs::new(groups, self.image_tokens);
        match inputs.tokens_per_row() {
            tokens if tokens <= self.tokens_max => Ok(inputs),
            tokens => Err(JudgeError::TooLong {
                tokens,
                tokens_max: self.tokens_max,
            }),
        }
    }

    fn group(&self, request: &JudgeRequest<'_>) -> Result<Group, JudgeError> {
        if request.edits.is_empty() {
            return Err(JudgeError::NoEdits);
        }
        self.check_text("prompt", request.prompt)?;
        self.check_text("requirement", request.requirement)?;
        let template = request.template.unwrap_or(&self.template);
        let (prompt, requirement) = (request.prompt, request.requirement);
        let count = request.sources.len();
        let rendered = template.render(prompt, requirement, &self.image_markup, count);
        let shown = rendered.images.iter().filter_map(|image| match image {
            ImageRole::Source(index) => Some(&request.sources[*index]),
            ImageRole::Edited => None,
        });
        let sources = shown.map(|source| self.patches("the source image", source));
        let sources = sources.collect::<Result<_, _>>()?;
        let edits = request.edits.iter().enumerate();
        let edits = edits.map(|(index, edit)| self.patches(&format!("edited image {index}"), edit));
        Ok(Group {
            ids: self.tokenise(&rendered)?,
            images: rendered.images,
            sources,
            edits: edits.collect::<Result<_, _>>()?,
        })
    }

    fn patches(&self, name: &str, image: &image::RgbImage) -> Result<Patches, JudgeError> {
        let patches = self.image_processor.patches(image);
        patches.map_err(|source| JudgeError::Image {
            image: name.to_owned(),
            source,
        })
    }

    fn tokenise(&self, rendered: &Rendered) -> Result<Vec<u32>, JudgeError> {
        let encoding = self.tokenizer.encode_fast(rendered.text.as_str(), false);
        let encoding = encoding.map_err(|error| JudgeError::Text {
            reason: error.to_string(),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A prompt with markup in it could pass itself off as the conversation.
    fn check_text(&self, field: &'static str, text: &str) -> Result<(), JudgeError> {
        match self
            .control_tokens
            .iter()
            .find(|token| text.contains(*token))
        {
            None => Ok(()),
            Some(token) => Err(JudgeError::ControlToken {
                field,
                token: token.clone(),
            }),
        }
    }
}

fn tokenizer_error(path: &Path, reason: impl std::fmt::Display) -> JudgeError {
    JudgeError::Tokenizer {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn digit_ids(tokenizer: &Tokenizer) -> Result<[u32; DIGITS], JudgeError> {
    let mut ids = [0; DIGITS];
    for (digit, id) in ids.iter_mut().enumerate() {
        let text = digit.to_string();
        let encoding = tokenizer.encode_fast(text.as_str(), false);
        let tokens = encoding.map_or(0, |encoding| encoding.get_ids().len());
        *id = match tokenizer.token_to_id(&text) {
            Some(id) if tokens == 1 => id,
            _ => {
                return Err(JudgeError::Digit {
                    digit: digit as u8,
                    tokens,
                });
            }
        };
    }
    Ok(ids)
}

/// What an image is in the text: its begin, one token to be repeated, its end.
fn image_markup(tokenizer: &Tokenizer, config: &Qwen2_5VlConfig) -> Result<String, JudgeError> {
    let fields = [
        ("vision_start_token_id", config.vision_start_token_id),
        ("image_token_id", config.image_token_id),
        ("vision_end_token_id", config.vision_end_token_id),
    ];
    let token = |(field, id)| {
        tokenizer
            .id_to_token(id)
            .ok_or(JudgeError::TokenId { field, id })
    };
    fields.into_iter().map(token).collect()
}

fn control_tokens(tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = tokenizer.get_added_tokens_decoder();
    let special = tokens.values().filter(|token| token.special);
    special.map(|token| token.content.clone()).collect()
}

fn check_vocabulary(tokenizer: &Tokenizer, config: &Qwen2_5VlConfig) -> Result<(), JudgeError> {
    let vocab_size = config.text.vocab_size;
    match tokenizer.get_vocab(true).into_values().max() {
        Some(id_max) if id_max as usize >= vocab_size => {
            Err(JudgeError::Vocabulary { id_max, vocab_size })
        }
        _ => Ok(()),
    }
}

fn check_patches(processor: &ImageProcessor, config: &Qwen2_5VlConfig) -> Result<(), JudgeError> {
    let checked = processor.check(&config.vision);
    checked.map_err(JudgeError::Contradiction)
}
