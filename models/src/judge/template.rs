//! The text that is put to the judge, with places for what is judged.

use std::path::{Path, PathBuf};

use crate::weights::without_byte_order_mark;

/// The template that is used where none is named.
const DEFAULT: &str = include_str!("default_template.txt");

const KNOWN: &str = "{instruction}, {requirement}, {source_image}, {edited_image}";

/// A prompt with placeholders: `{instruction}`, `{requirement}`, `{source_image}`, `{edited_image}`.
///
/// The text before the edited image is computed once for all candidates of a group, so what is long belongs there.
/// Braces that are meant as such are doubled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Instruction,
    Requirement,
    SourceImage,
    EditedImage,
}

/// Why a template can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file can't be read.
    #[error("judge template {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A placeholder that does not exist.
    #[error("judge template, line {line}: unknown placeholder {{{name}}}; known: {KNOWN}")]
    Unknown {
        /// Counted from 1.
        line: usize,
        /// What stands between the braces.
        name: String,
    },
    /// A brace that neither begins nor ends a placeholder.
    #[error(
        "judge template, line {line}: a single brace; a brace that is meant as text is doubled"
    )]
    Brace {
        /// Counted from 1.
        line: usize,
    },
    /// The edited image is missing, or an image is there twice.
    #[error("judge template: {{{name}}} occurs {count} times, expected {expected}")]
    Count {
        /// The placeholder.
        name: &'static str,
        /// How often it is there.
        count: usize,
        /// How often it may be.
        expected: &'static str,
    },
}

impl Default for Template {
    fn default() -> Self {
        Self::parse(DEFAULT).expect("the default template is sound")
    }
}

impl Template {
    /// Reads a template file.
    ///
    /// # Errors
    /// If the file can't be read or [`Template::parse`] refuses it.
    pub fn load(path: &Path) -> Result<Self, TemplateError> {
        let text = std::fs::read_to_string(path).map_err(|source| TemplateError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(without_byte_order_mark(&text))
    }

    /// Finds the placeholders of `text`.
    ///
    /// # Errors
    /// If a placeholder is unknown, the edited image is not there exactly once, or the source image more than once.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parser = Parser::default();
        for (index, line) in text.split_inclusive('\n').enumerate() {
            parser.line(index + 1, line)?;
        }
        let template = Self {
            pieces: parser.finish(),
        };
        template.check_count("edited_image", &Piece::EditedImage, "once", 1..=1)?;
        template.check_count("source_image", &Piece::SourceImage, "at most once", 0..=1)?;
        Ok(template)
    }

    fn check_count(
        &self,
        name: &'static str,
        piece: &Piece,
        expected: &'static str,
        allowed: std::ops::RangeInclusive<usize>,
    ) -> Result<(), TemplateError> {
        let count = self.pieces.iter().filter(|other| *other == piece).count();
        if allowed.contains(&count) {
            return Ok(());
        }
        Err(TemplateError::Count {
            name,
            count,
            expected,
        })
    }

    /// The text for a judgement, with `image` where an image goes, and which images these are. All sources stand, one
    /// after the other, where the template has the source.
    pub(super) fn render(
        &self,
        prompt: &str,
        requirement: &str,
        image: &str,
        sources: usize,
    ) -> Rendered {
        let mut text = String::new();
        let mut images = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Instruction => text.push_str(prompt),
                Piece::Requirement => text.push_str(requirement),
                Piece::SourceImage => {
                    text.push_str(&image.repeat(sources));
                    images.extend((0..sources).map(ImageRole::Source));
                }
                Piece::EditedImage => {
                    text.push_str(image);
                    images.push(ImageRole::Edited);
                }
            }
        }
        Rendered { text, images }
    }
}

/// A filled template.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    /// The images in the order of the text.
    pub(super) images: Vec<ImageRole>,
}

/// What an image is to a judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageRole {
    /// The one with this index.
    Source(usize),
    Edited,
}

#[derive(Default)]
struct Parser {
    pieces: Vec<Piece>,
    text: String,
}

impl Parser {
    fn line(&mut self, number: usize, line: &str) -> Result<(), TemplateError> {
        let mut rest = line;
        while let Some(at) = rest.find(['{', '}']) {
            self.text.push_str(&rest[..at]);
            rest = self.brace(number, &rest[at..])?;
        }
        self.text.push_str(rest);
        Ok(())
    }

    /// Takes what begins with a brace, and returns what comes after it.
    fn brace<'a>(&mut self, line: usize, rest: &'a str) -> Result<&'a str, TemplateError> {
        for doubled in ["{{", "}}"] {
            if let Some(after) = rest.strip_prefix(doubled) {
                self.text.push_str(&doubled[1..]);
                return Ok(after);
            }
        }
        let inner = rest
            .strip_prefix('{')
            .ok_or(TemplateError::Brace { line })?;
        let (name, after) = inner.split_once('}').ok_or(TemplateError::Brace { line })?;
        let piece = piece_of(name).ok_or_else(|| TemplateError::Unknown {
            line,
            name: name.to_owned(),
        })?;
        self.end_text();
        self.pieces.push(piece);
        Ok(after)
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.pieces
                .push(Piece::Text(std::mem::take(&mut self.text)));
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        self.end_text();
        self.pieces
    }
}

fn piece_of(name: &str) -> Option<Piece> {
    match name {
        "instruction" => Some(Piece::Instruction),
        "requirement" => Some(Piece::Requirement),
        "source_image" => Some(Piece::SourceImage),
        "edited_image" => Some(Piece::EditedImage),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_their_order() {
        let template =
            Template::parse("a {{x}} {source_image}\n{instruction}{edited_image}: {requirement}")
                .unwrap();
        let rendered = template.render("make it {red}", "colour", "#", 1);
        assert_eq!(rendered.text, "a {x} #\nmake it {red}#: colour");
        let [first, second] = [0, 1].map(ImageRole::Source);
        assert_eq!(rendered.images, [first, ImageRole::Edited]);
        let rendered = template.render("join them", "", "#", 2);
        assert_eq!(rendered.text, "a {x} ##\njoin them#: ");
        assert_eq!(rendered.images, [first, second, ImageRole::Edited]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = |text: &str| Template::parse(text).unwrap_err().to_string();
        assert!(
            error("{edited_image}\n{imstruction}")
                .contains("line 2: unknown placeholder {imstruction}")
        );
        assert!(error("{edited_image}\n\n}").contains("line 3"));
        assert!(error("{source_image}").contains("{edited_image} occurs 0 times"));
        assert!(error("{edited_image}{source_image}{source_image}").contains("occurs 2 times"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Template::load(Path::new("/nowhere/judge.txt")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/judge.txt"));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judge.txt");
        std::fs::write(&path, "\u{feff}look: {edited_image}").unwrap();
        let template = Template::load(&path).unwrap();
        assert_eq!(template, Template::parse("look: {edited_image}").unwrap());
    }

    #[test]
    fn the_default_asks_about_everything() {
        let rendered = Template::default().render("PROMPT", "REQUIREMENT", "IMAGE", 1);
        assert!(rendered.text.contains("PROMPT") && rendered.text.contains("REQUIREMENT"));
        assert!(rendered.text.ends_with("<|im_start|>assistant\n"));
        assert_eq!(rendered.images, [ImageRole::Source(0), ImageRole::Edited]);
    }
}
