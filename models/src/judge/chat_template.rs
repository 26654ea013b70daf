//! Whether a published folder writes conversations with the markup that a judge's template has.
//!
//! A judge's template is the conversation as text, markup and all. Published folders say in Jinja how a list of messages
//! becomes such a text. It is not rendered: that the default template is what the published judges' Jinja writes is
//! shown by a golden case, and a fine-tuned model that chats otherwise gives itself away by other turns.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::weights::{LoadError, read_config, read_text};

/// The file that is a template, and counts more than the others.
const JINJA_FILE: &str = "chat_template.jinja";
/// Files that have a template among other things, in the order in which transformers looks.
const JSON_FILES: [&str; 3] = [
    "chat_template.json",
    "processor_config.json",
    "tokenizer_config.json",
];

/// What begins and ends a turn of the default template.
const TURN: [&str; 2] = ["<|im_start|>", "<|im_end|>"];

/// A folder's way to write conversations.
#[derive(Debug, Clone)]
pub(crate) struct ChatTemplate {
    path: PathBuf,
    jinja: String,
}

#[derive(Deserialize)]
struct HasTemplate {
    chat_template: Option<Named>,
}

/// A template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Named {
    fn default_template(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Several(all) => all
                .into_iter()
                .find(|named| named.name == "default")
                .map(|named| named.template),
        }
    }
}

impl ChatTemplate {
    /// The template of a model folder, if it has one.
    ///
    /// # Errors
    /// If a file that may have it is broken.
    pub(crate) fn find(folder: &Path) -> Result<Option<Self>, LoadError> {
        let path = folder.join(JINJA_FILE);
        if path.is_file() {
            let jinja = read_text(&path)?;
            return Ok(Some(Self { path, jinja }));
        }
        for path in JSON_FILES.map(|name| folder.join(name)) {
            if !path.is_file() {
                continue;
            }
            let HasTemplate { chat_template } = read_config(&path)?;
            if let Some(jinja) = chat_template.and_then(Named::default_template) {
                return Ok(Some(Self { path, jinja }));
            }
        }
        Ok(None)
    }

    /// Where this has not the markup of the default template's turns, in words.
    pub(crate) fn difference(&self) -> Option<String> {
        let missing = TURN.iter().find(|markup| !self.jinja.contains(**markup))?;
        Some(format!(
            "{}: the chat template does not write {missing}, which the judge's default template has around its turns; the run file's reward terms may name a template that is written the model's way",
            self.path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_turns_are_named_and_the_defaults_are_not() {
        let difference = |jinja: &str| {
            let chat = ChatTemplate {
                path: PathBuf::from("chat_template.jinja"),
                jinja: jinja.to_owned(),
            };
            chat.difference()
        };
        // The default template's own text stands for a Jinja that writes it.
        assert_eq!(difference(include_str!("default_template.txt")), None);
        let other = difference("<|im_start|>{{ message['role'] }}<|end|>").unwrap();
        assert!(other.contains("does not write <|im_end|>"), "{other}");
    }

    #[test]
    fn a_folder_says_it_in_one_of_several_files() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let found = || {
            ChatTemplate::find(folder.path())
                .unwrap()
                .map(|found| found.jinja)
        };
        assert_eq!(found(), None);
        write(
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "default", "template": "a"}]}"#,
        );
        assert_eq!(found().as_deref(), Some("a"));
        write("processor_config.json", r#"{"image_processor": {}}"#);
        assert_eq!(found().as_deref(), Some("a"));
        write("chat_template.json", r#"{"chat_template": "b"}"#);
        assert_eq!(found().as_deref(), Some("b"));
        write("chat_template.jinja", "c");
        assert_eq!(found().as_deref(), Some("c"));
        write("chat_template.json", "nonsense");
        assert_eq!(found().as_deref(), Some("c"));
    }
}
