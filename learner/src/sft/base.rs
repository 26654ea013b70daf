//! The editor that a fine-tuning starts from.

use retouch_models::editor::{Editor, Layout, Parts, TextStart};

use super::{SftError, SftOptions, Start, TextEncoders, Trained};

/// The base's folder as an editor. What starts at random needs only its `config.json` there.
pub(super) fn load(options: &SftOptions) -> Result<Editor, SftError> {
    let editor = match &options.trained {
        Trained::Full {
            start: Start::Random,
            text_encoders,
        } => {
            let text = match *text_encoders {
                TextEncoders::Frozen => TextStart::Weights,
                TextEncoders::Trained => TextStart::Random,
            };
            Editor::random(&options.base, &options.device, text, options.seed)?
        }
        Trained::Full { .. } => Editor::load(&options.base, &options.device, Parts::All)?,
        Trained::Lora(config) => {
            Layout::check_targets(&options.base, config)?;
            Editor::load(&options.base, &options.device, Parts::All)?
        }
    };
    if options.text_encoders() == TextEncoders::Trained && !editor.trains_text_encoders() {
        return Err(SftError::Option {
            option: "text_encoders",
            value: format!("trained with a {}", editor.class()),
            expected: "frozen text encoders with this base model",
        });
    }
    Ok(editor)
}
