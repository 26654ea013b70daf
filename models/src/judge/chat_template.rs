//! How a published folder writes conversations, in comparison with how a judge's template does.
//!
//! A judge's template is the conversation as text, with the model's own markup, and nothing renders it but this crate.
//! Published folders say in Jinja how a list of messages becomes such a text. Here a template is taken apart into
//! messages, which the folder's Jinja puts together again: both must be the same.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Template;
use crate::weights::{LoadError, read_config};

/// The file that is a template, and counts more than the others.
const JINJA_FILE: &str = "chat_template.jinja";
/// Files that have a template among other things, in the order in which transformers looks.
const JSON_FILES: [&str; 3] = [
    "chat_template.json",
    "processor_config.json",
    "tokenizer_config.json",
];

const TURN: &str = "<|im_start|>";
const TURN_END: &str = "<|im_end|>\n";

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
            let jinja =
                std::fs::read_to_string(&path).map_err(|source| LoadError::io(&path, source))?;
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

    /// What this makes of a judge's template otherwise than the template itself, in words; nothing if they agree.
    /// `image` is an image's markup.
    pub(crate) fn difference(&self, template: &Template, image: &str) -> Option<String> {
        let path = self.path.display();
        let ours = template.sample(image);
        let Some(messages) = messages(&ours, image) else {
            return Some(format!(
                "{path}: the judge's template has no turns to compare with, such as {TURN}user"
            ));
        };
        match self.render(&messages) {
            Err(error) => Some(format!("{path}: the chat template can't be read: {error:#}")),
            Ok(theirs) => first_difference(&ours, &theirs).map(|[ours, theirs]| {
                format!(
                    "{path}: the chat template writes {theirs:?} where the judge's template has {ours:?}; the run file's reward terms may name a template that is written the model's way"
                )
            }),
        }
    }

    fn render(&self, messages: &Value) -> Result<String, Error> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let mut syntax = SyntaxConfig::builder();
        environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
        environment.add_function("raise_exception", |message: String| -> Result<String, _> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        let given = context! { messages => Serde(messages), add_generation_prompt => true };
        environment.render_str(&self.jinja, given)
    }
}

/// The messages of a conversation that is written with the markup of Qwen's chats, and whose last turn is still to come.
fn messages(text: &str, image: &str) -> Option<Value> {
    let mut turns: Vec<&str> = text.strip_prefix(TURN)?.split(TURN).collect();
    turns.pop_if(|last| *last == "assistant\n")?;
    let message = |turn: &str| {
        let (role, content) = turn.split_once('\n')?;
        let content = content.strip_suffix(TURN_END)?;
        Some(json!({ "role": role, "content": content_of(content, image) }))
    };
    turns.into_iter().map(message).collect()
}

/// Texts and images in their order; a text alone is itself.
fn content_of(content: &str, image: &str) -> Value {
    if !content.contains(image) {
        return json!(content);
    }
    let mut parts = Vec::new();
    for (index, text) in content.split(image).enumerate() {
        if index > 0 {
            parts.push(json!({ "type": "image" }));
        }
        if !text.is_empty() {
            parts.push(json!({ "type": "text", "text": text }));
        }
    }
    Value::Array(parts)
}

/// What each text has from a little before where they part.
fn first_difference(ours: &str, theirs: &str) -> Option<[String; 2]> {
    const SHOWN: usize = 40;
    const BEFORE: usize = 10;
    if ours == theirs {
        return None;
    }
    let pairs = ours.chars().zip(theirs.chars());
    let common = pairs.take_while(|(a, b)| a == b).count();
    let shown = |text: &str| {
        let start = common.saturating_sub(BEFORE);
        text.chars().skip(start).take(SHOWN).collect()
    };
    Some([shown(ours), shown(theirs)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "<|vision_start|><|image_pad|><|vision_end|>";

    /// What the published templates say, without videos and tools.
    const JINJA: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{% for part in message['content'] %}
{% if part['type'] == 'image' or 'image_url' in part %}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part %}{{ part['text'] }}{% endif %}
{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}";

    fn difference(jinja: &str) -> Option<String> {
        let template = ChatTemplate {
            path: PathBuf::from("chat_template.jinja"),
            jinja: jinja.to_owned(),
        };
        template.difference(&Template::default(), IMAGE)
    }

    #[test]
    fn the_default_template_is_written_as_the_model_writes_it() {
        assert_eq!(difference(JINJA), None);
    }

    #[test]
    fn other_ways_are_shown_where_they_differ() {
        let other = difference(&JINJA.replace("<|im_end|>", "<|end|>")).unwrap();
        assert!(other.contains("writes \"ng else.<|end|>"), "{other}");
        assert!(other.contains("has \"ng else.<|im_end|>"), "{other}");
        let refused = difference("{{ raise_exception('no system turn') }}").unwrap();
        assert!(refused.contains("no system turn"), "{refused}");
        let broken = difference("{% for %}").unwrap();
        assert!(broken.contains("can't be read"), "{broken}");
    }

    #[test]
    fn a_template_without_turns_is_not_compared() {
        let template = Template::parse("{source_image} {edited_image} grade:").unwrap();
        let chat = ChatTemplate {
            path: PathBuf::from("chat_template.jinja"),
            jinja: JINJA.to_owned(),
        };
        let difference = chat.difference(&template, IMAGE).unwrap();
        assert!(difference.contains("no turns"), "{difference}");
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
