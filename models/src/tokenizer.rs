//! Text to token ids, as transformers' fast tokenizers do it.

mod from_vocab;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{PostProcessor, Tokenizer as Inner, TruncationDirection};

use crate::weights::{LoadError, read_config, read_text, require_file};

const FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// A tokenizer with the padding and the length limit of its folder.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
    pad_id: u32,
    max_length: usize,
}

/// The fields of `tokenizer_config.json` that are needed beside `tokenizer.json`.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    tokenizer_class: Option<String>,
    /// Special tokens by their ids.
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, AddedToken>,
    #[serde(default)]
    model_max_length: Option<f64>,
    #[serde(default)]
    pad_token: Option<Token>,
    #[serde(default)]
    bos_token: Option<Token>,
    #[serde(default)]
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    special: bool,
}

/// A special token: its text, or an object that has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

impl Tokenizer {
    /// The tokenizer of a transformers folder: `tokenizer.json`, or CLIP's or Qwen's older `vocab.json` and
    /// `merges.txt`, beside `tokenizer_config.json`.
    ///
    /// # Errors
    /// If a file can't be read or is broken.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let config: Config = read_config(&require_file(folder, CONFIG_FILE, "a tokenizer")?)?;
        let path = folder.join(FILE);
        let inner = if path.is_file() {
            Inner::from_bytes(read_text(&path)?)
                .map_err(|source| LoadError::format(&path, source))?
        } else {
            from_vocab::load(folder, &config)?
        };
        let pad = config.pad_token.as_ref().map(Token::text);
        let pad_id = pad.and_then(|token| inner.token_to_id(token)).unwrap_or(0);
        // Absent limits are published as 1e30.
        let max_length = config.model_max_length.unwrap_or(f64::INFINITY) as usize;
        Ok(Self::new(inner, pad_id, max_length))
    }

    /// A tokenizer that pads with `pad_id` and takes at most `max_length` tokens.
    pub fn new(mut inner: Inner, pad_id: u32, max_length: usize) -> Self {
        inner.with_padding(None);
        // Removing truncation can't fail, only setting it can.
        let _ = inner.with_truncation(None);
        Self {
            inner,
            pad_id,
            max_length,
        }
    }

    /// Most tokens of a text, the special ones included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// The text of a token.
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// A special token that a text spells out, if it does.
    pub fn special_token_in(&self, text: &str) -> Option<String> {
        let tokens = self.inner.get_added_tokens_decoder();
        let special = tokens.into_values().filter(|token| token.special);
        special
            .map(|token| token.content)
            .find(|token| text.contains(token))
    }

    /// The tokens of a text with its special tokens, however many.
    ///
    /// # Errors
    /// If the tokenizer's model can't take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        let encoding = self.inner.encode(text, true).map_err(TokenizeError::new)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Exactly `length` tokens: text beyond is cut, the special tokens kept, and the end padded.
    ///
    /// # Errors
    /// If the tokenizer's model can't take the text.
    pub fn encode_padded(&self, text: &str, length: usize) -> Result<Vec<u32>, TokenizeError> {
        let mut encoding = self.inner.encode(text, false).map_err(TokenizeError::new)?;
        let special = self
            .inner
            .get_post_processor()
            .map_or(0, |post| post.added_tokens(false));
        encoding.truncate(
            length.saturating_sub(special),
            0,
            TruncationDirection::Right,
        );
        let encoding = self
            .inner
            .post_process(encoding, None, true)
            .map_err(TokenizeError::new)?;
        let mut ids = encoding.get_ids().to_vec();
        ids.resize(length, self.pad_id);
        Ok(ids)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        std::fs::create_dir_all(folder).map_err(|source| LoadError::io(folder, source))?;
        let pad_token = self.inner.id_to_token(self.pad_id);
        save(
            folder,
            &self.inner,
            self.max_length,
            json!({"pad_token": pad_token}),
        )
    }
}

/// Writes `tokenizer.json`, and a `tokenizer_config.json` that says to take it as it is, with the special tokens of
/// `special`. Without the class, transformers takes the one that is usual for the model beside it, and builds that from
/// the vocabulary by rules of its own.
pub(crate) fn save(
    folder: &Path,
    tokenizer: &Inner,
    max_length: usize,
    special: Value,
) -> Result<(), LoadError> {
    let path = folder.join(FILE);
    tokenizer
        .save(&path, true)
        .map_err(|source| LoadError::format(&path, source))?;
    let mut config = special;
    config["tokenizer_class"] = "PreTrainedTokenizerFast".into();
    config["model_max_length"] = max_length.into();
    crate::weights::write_config(&folder.join(CONFIG_FILE), &config)
}

/// A text that can't be tokenized.
#[derive(Debug, thiserror::Error)]
#[error("tokenizing failed: {0}")]
pub struct TokenizeError(String);

impl TokenizeError {
    fn new(source: impl Display) -> Self {
        Self(source.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Case;

    fn texts(case: &Case) -> Vec<String> {
        // The list is valid JSON as well as TOML.
        serde_json::from_str(&case.parameter("texts")).unwrap()
    }

    fn tokenizer(case: &Case) -> Tokenizer {
        let inner = Inner::from_file(case.path("tokenizer.json")).unwrap();
        Tokenizer::new(inner, 0, 77)
    }

    #[test]
    fn tokens_equal_the_reference() {
        for case in Case::all("tokenizer") {
            let tokenizer = tokenizer(&case);
            for (i, text) in texts(&case).iter().enumerate() {
                let ids = tokenizer.encode(text).unwrap();
                let expected = case.integers(&format!("out.ids.{i}"));
                assert_eq!(
                    ids,
                    expected.iter().map(|id| *id as u32).collect::<Vec<_>>(),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn cutting_keeps_the_special_tokens_and_padding_follows() {
        for case in Case::all("tokenizer") {
            let tokenizer = tokenizer(&case);
            for text in texts(&case) {
                let whole = tokenizer.encode(&text).unwrap();
                let padded = tokenizer.encode_padded(&text, whole.len() + 3).unwrap();
                assert_eq!(padded, [whole.clone(), vec![0; 3]].concat());
                if whole.len() > 4 {
                    let cut = tokenizer.encode_padded(&text, whole.len() - 1).unwrap();
                    let special = tokenizer.encode("").unwrap().len();
                    let ends_alike = cut.last() == whole.last();
                    assert!(cut.len() == whole.len() - 1 && (special == 0 || ends_alike));
                }
            }
        }
    }

    #[test]
    fn a_saved_tokenizer_loads_back() {
        let folder = tempfile::tempdir().unwrap();
        let case = &Case::all("tokenizer")[0];
        tokenizer(case).save(folder.path()).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        assert_eq!((loaded.max_length, loaded.pad_id), (77, 0));
        let path = folder.path().join(FILE);
        let json = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("\u{feff}{json}")).unwrap();
        Tokenizer::load(folder.path()).expect("a byte order mark is skipped");
        let text = &texts(case)[0];
        assert_eq!(
            loaded.encode(text).unwrap(),
            tokenizer(case).encode(text).unwrap()
        );
    }

    #[test]
    fn qwen_is_read_from_its_vocabulary_too() {
        let mut cases = Case::all("tokenizer").into_iter();
        let case = cases
            .find(|case| case.path("").ends_with("tokenizer__qwen"))
            .unwrap();
        let whole: Value = read_config(&case.path("tokenizer.json")).unwrap();
        let (model, added) = (&whole["model"], whole["added_tokens"].as_array().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text);
        // Published vocabularies do not have the special tokens.
        let mut vocab = model["vocab"].as_object().unwrap().clone();
        vocab.retain(|token, _| added.iter().all(|added| added["content"] != **token));
        write("vocab.json", serde_json::to_string(&vocab).unwrap()).unwrap();
        let pair = |pair: &Value| match pair.as_array() {
            Some(pair) => format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            ),
            None => pair.as_str().unwrap().to_owned(),
        };
        let merges: Vec<String> = model["merges"]
            .as_array()
            .unwrap()
            .iter()
            .map(pair)
            .collect();
        write(
            "merges.txt",
            // As an editor on Windows saves it.
            format!("\u{feff}#version: 0.2\n{}\n", merges.join("\n")),
        )
        .unwrap();
        let added: serde_json::Map<_, _> = added
            .iter()
            .map(|token| (token["id"].to_string(), token.clone()))
            .collect();
        let config = json!({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added});
        write("tokenizer_config.json", config.to_string()).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        for text in texts(&case) {
            let expected = tokenizer(&case).encode(&text).unwrap();
            assert_eq!(loaded.encode(&text).unwrap(), expected, "{text}");
        }
        let image = "<|image_pad|>";
        let found = loaded.special_token_in(&format!("a{image}b"));
        assert_eq!(found.as_deref(), Some(image));
    }
}
