//! Tokenizers from `vocab.json` and `merges.txt`, the files that they were first published as.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

use super::{Config, Token};
use crate::weights::{LoadError, read_config, read_text};

const VOCAB_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";

/// What CLIP's pattern takes for a word; everything else separates words.
const CLIP_WORDS: &str = concat!(
    r"<\|startoftext\|>|<\|endoftext\|>",
    r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
);

/// Where Qwen's pattern cuts a text.
const QWEN_PIECES: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The tokenizer of the class that the configuration names; CLIP's if it names none.
pub(super) fn load(folder: &Path, config: &Config) -> Result<Inner, LoadError> {
    if !folder.join(VOCAB_FILE).is_file() {
        let reason = format!(
            "no tokenizer: neither {} nor {VOCAB_FILE} with {MERGES_FILE} is there",
            super::FILE
        );
        return Err(LoadError::format(folder, reason));
    }
    let class = config.tokenizer_class.as_deref().unwrap_or("");
    if class.starts_with("Qwen2Tokenizer") {
        qwen(folder, config)
    } else {
        clip(folder, config)
    }
}

/// Qwen's tokenizer; its special tokens are those of the configuration.
fn qwen(folder: &Path, config: &Config) -> Result<Inner, LoadError> {
    let path = folder.join(VOCAB_FILE);
    let vocab: Value = read_config(&path)?;
    let merges = read_merges(&folder.join(MERGES_FILE))?;
    let mut added = Vec::new();
    for (id, token) in &config.added_tokens_decoder {
        let id: u64 = id.parse().map_err(|_| {
            let problem = format!("added_tokens_decoder has the id {id:?}, expected a number");
            LoadError::format(&folder.join(super::CONFIG_FILE), problem)
        })?;
        added.push((id, token));
    }
    // Ids follow the vocabulary's in the order in which tokens are added.
    added.sort_by_key(|(id, _)| *id);
    let added = added.into_iter().map(|(id, token)| {
        json!({"id": id, "content": token.content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": token.special})
    });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN_PIECES}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": false, "vocab": vocab, "merges": merges},
    });
    Inner::from_bytes(tokenizer.to_string()).map_err(|source| LoadError::format(&path, source))
}

/// CLIP's tokenizer from the files that it was first published as.
fn clip(folder: &Path, config: &Config) -> Result<Inner, LoadError> {
    let path = folder.join(VOCAB_FILE);
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
    let text = read_text(path)?;
    let pairs = text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty());
    Ok(pairs.map(str::to_owned).collect())
}
