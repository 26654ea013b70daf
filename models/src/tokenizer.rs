//! Text to token ids, as transformers' fast tokenizers do it.

use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{PostProcessor, Tokenizer as Inner, TruncationDirection};

use crate::weights::{LoadError, read_config, require_file};

const FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";
const VOCAB_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";

/// What CLIP's pattern takes for a word; everything else separates words.
const CLIP_WORDS: &str = concat!(
    r"<\|startoftext\|>|<\|endoftext\|>",
    r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
);

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
    model_max_length: Option<f64>,
    #[serde(default)]
    pad_token: Option<Token>,
    #[serde(default)]
    bos_token: Option<Token>,
    #[serde(default)]
    eos_token: Option<Token>,
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
    /// The tokenizer of a transformers folder: `tokenizer.json`, or CLIP's older `vocab.json` and
    /// `merges.txt`, beside `tokenizer_config.json`.
    ///
    /// # Errors
    /// If a file can't be read or is broken.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let config: Config = read_config(&require_file(folder, CONFIG_FILE, "a tokenizer")?)?;
        let path = folder.join(FILE);
        let inner = if path.is_file() {
            Inner::from_file(&path).map_err(|source| LoadError::format(&path, source))?
        } else {
            clip_from_vocab(folder, &config)?
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
        let path = folder.join(FILE);
        self.inner
            .save(&path, true)
            .map_err(|source| LoadError::format(&path, source))?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_length,
            "pad_token": self.inner.id_to_token(self.pad_id),
        });
        crate::weights::write_config(&folder.join(CONFIG_FILE), &config)
    }
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

/// CLIP's tokenizer from the files that it was first published as.
fn clip_from_vocab(folder: &Path, config: &Config) -> Result<Inner, LoadError> {
    let path = folder.join(VOCAB_FILE);
    if !path.is_file() {
        let reason =
            format!("no tokenizer: neither {FILE} nor {VOCAB_FILE} with {MERGES_FILE} is there");
        return Err(LoadError::format(folder, reason));
    }
    let vocab: Value = read_config(&path)?;
    let merges = read_merges(&folder.join(MERGES_FILE))?;
    let special = |token: &Option<Token>, usual: &'static str| {
        let text = token.as_ref().map_or(usual, Token::text).to_owned();
        let id = vocab.get(&text).and_then(Value::as_u64);
        let missing = || LoadError::format(&path, format!("the special token {text} is missing"));
        Ok((text.clone(), id.ok_or_else(missing)?))
    };
    let (bos, bos_id) = special(&config.bos_token, "<|startoftext|>")?;
    let (eos, eos_id) = special(&config.eos_token, "<|endoftext|>")?;
    let added = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [added(bos_id, &bos), added(eos_id, &eos)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CLIP_WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [eos, eos_id], "cls": [bos, bos_id],
                           "trim_offsets": false, "add_prefix_space": false},
        "decoder": null,
        "model": {"type": "BPE", "unk_token": eos, "end_of_word_suffix": "</w>",
                  "continuing_subword_prefix": "", "fuse_unk": false, "vocab": vocab, "merges": merges},
    });
    Inner::from_bytes(tokenizer.to_string()).map_err(|source| LoadError::format(&path, source))
}

/// The pairs of `merges.txt`; its first line is a version.
fn read_merges(path: &Path) -> Result<Vec<String>, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::io(path, source))?;
    let pairs = text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty());
    Ok(pairs.map(str::to_owned).collect())
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
        let text = &texts(case)[0];
        assert_eq!(
            loaded.encode(text).unwrap(),
            tokenizer(case).encode(text).unwrap()
        );
    }
}
