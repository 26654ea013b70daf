//! The closed vocabulary of the world, as tokenizers in the formats that the models read.
//!
//! Each word is one token. The special tokens and what is put around a text are those of the
//! models' families, so that the same code reads these tokenizers and the published ones.

use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// Every word of instructions, requirements and the judge's template.
const WORDS: [&str; 59] = [
    "a",
    "add",
    "and",
    "are",
    "at",
    "background",
    "beige",
    "black",
    "blue",
    "bottom",
    "change",
    "changed",
    "circle",
    "colors",
    "cross",
    "cyan",
    "dark",
    "edit",
    "edits",
    "extract",
    "gone",
    "gray",
    "green",
    "image",
    "in",
    "invert",
    "is",
    "kept",
    "large",
    "left",
    "make",
    "new",
    "object",
    "of",
    "on",
    "purple",
    "red",
    "remove",
    "replace",
    "requirement",
    "rest",
    "right",
    "score",
    "show",
    "small",
    "source",
    "square",
    "style",
    "the",
    "there",
    "to",
    "tones",
    "top",
    "triangle",
    "two",
    "white",
    "with",
    "yellow",
    ";",
];

/// A family of text models, by its special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// CLIP: a start token, the text, an end token that also pads.
    Clip,
    /// T5: the text and an end token.
    T5,
    /// Qwen2.5-VL: the text alone; images and digits have tokens of their own.
    Qwen,
}

impl Family {
    /// The number of tokens.
    pub fn vocab_size(self) -> usize {
        self.tokens().len()
    }

    /// The id of a token.
    ///
    /// # Panics
    /// If the family has no such token.
    pub fn id(self, token: &str) -> u32 {
        let tokens = self.tokens();
        let found = tokens.iter().position(|known| *known == token);
        found.unwrap_or_else(|| panic!("{token} is no token of {self:?}")) as u32
    }

    /// The tokenizer.
    ///
    /// # Panics
    /// Never: the vocabulary is sound.
    pub fn tokenizer(self) -> Tokenizer {
        let json = self.json().to_string();
        json.parse().expect("a sound tokenizer")
    }

    /// The id of what fills up a text.
    pub fn padding_id(self) -> u32 {
        self.id(match self {
            Self::Clip | Self::Qwen => "<|endoftext|>",
            Self::T5 => "<pad>",
        })
    }

    /// `tokenizer.json`.
    fn json(self) -> Value {
        let entry = |(id, token): (usize, &&str)| ((*token).to_owned(), json!(id));
        let vocab: serde_json::Map<_, _> = self.tokens().iter().enumerate().map(entry).collect();
        let added = self.special().iter().enumerate().map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": { "type": "Lowercase" },
            "pre_tokenizer": { "type": "Whitespace" },
            "post_processor": self.post_processor(),
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": self.unknown() },
        })
    }

    fn tokens(self) -> Vec<&'static str> {
        let digits: &[&str] = match self {
            Self::Qwen => &["0", "1", "2", "3", "4", "5"],
            Self::Clip | Self::T5 => &[],
        };
        [self.special(), digits, &WORDS].concat()
    }

    fn special(self) -> &'static [&'static str] {
        match self {
            Self::Clip => &["<|startoftext|>", "<|endoftext|>"],
            Self::T5 => &["<pad>", "</s>", "<unk>"],
            Self::Qwen => &[
                "<|endoftext|>",
                "<|im_start|>",
                "<|im_end|>",
                "<|vision_start|>",
                "<|vision_end|>",
                "<|image_pad|>",
            ],
        }
    }

    fn unknown(self) -> &'static str {
        match self {
            Self::Clip | Self::Qwen => "<|endoftext|>",
            Self::T5 => "<unk>",
        }
    }

    fn post_processor(self) -> Value {
        let special = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let around: Vec<&str> = match self {
            Self::Clip => vec!["<|startoftext|>", "<|endoftext|>"],
            Self::T5 => vec!["</s>"],
            Self::Qwen => return Value::Null,
        };
        let mut single: Vec<Value> = around.iter().map(|token| special(token)).collect();
        single.insert(single.len() - 1, text);
        let entry = |token: &&str| {
            let id = self.id(token);
            (
                (*token).to_owned(),
                json!({ "id": token, "ids": [id], "tokens": [token] }),
            )
        };
        let tokens: serde_json::Map<_, _> = around.iter().map(entry).collect();
        json!({
            "type": "TemplateProcessing", "single": single, "pair": single,
            "special_tokens": tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use retouch_dataset::Split;

    use super::*;
    use crate::edit::TaskKind;
    use crate::generate;

    fn ids(family: Family, text: &str) -> Vec<u32> {
        family
            .tokenizer()
            .encode(text, true)
            .expect("ids")
            .get_ids()
            .to_vec()
    }

    #[test]
    fn every_word_of_the_world_is_known() {
        let prompts = (0..2000).map(|index| generate::case(9, Split::Train, index).prompt());
        let requirements = TaskKind::ALL.map(|kind| kind.requirement().to_owned());
        for text in prompts.chain(requirements) {
            for word in text.split(' ') {
                assert!(WORDS.contains(&word), "{word} in {text}");
            }
        }
    }

    #[test]
    fn families_put_their_tokens_around_a_text() {
        let [red, circle] = ["red", "circle"].map(|word| Family::Clip.id(word));
        assert_eq!(ids(Family::Clip, "Red circle"), [0, red, circle, 1]);
        let red = Family::T5.id("red");
        assert_eq!(ids(Family::T5, "red airplane"), [red, 2, 1]);
        let (image, five) = (Family::Qwen.id("<|image_pad|>"), Family::Qwen.id("5"));
        assert_eq!(
            ids(Family::Qwen, "<|image_pad|><|image_pad|> 5"),
            [image, image, five]
        );
    }
}
