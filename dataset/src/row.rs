//! One line of a metadata file.

use std::{
    fmt::{self, Display},
    path::Path,
};

use retouch_proto::{
    limits::{ADDRESS_BYTES_MAX, PROMPT_BYTES_MAX, SOURCES_MAX},
    one_or_several,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{image_file, parse_json};

/// The most source images that a row may have, by whoever takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourcesLimit {
    /// The base model.
    Model(usize),
    /// The run file, which memory is planned by.
    Run(usize),
}

impl SourcesLimit {
    fn max(self) -> usize {
        match self {
            Self::Model(max) | Self::Run(max) => max,
        }
    }
}

impl Display for SourcesLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(max) => write!(f, "the base model takes {max}"),
            Self::Run(max) => write!(f, "dataset.sources_max is {max}"),
        }
    }
}

/// An instruction and the images that it is about. Other keys of a line are the business of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The instruction.
    pub prompt: String,
    /// The source images, relative to the dataset's folder, in the order that the editor takes them; `"image"` has one
    /// path or a list.
    #[serde(
        rename = "image",
        serialize_with = "one_or_several::serialize",
        deserialize_with = "path_or_paths"
    )]
    pub images: Vec<String>,
    /// What the judge looks for; empty where it is missing or null.
    #[serde(default, deserialize_with = "string_or_null")]
    pub requirement: String,
    /// The image asked for, relative to the folder: for supervised training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Row {
    /// The row in a line, if it is one that can be used: its texts are of legal length, and its images are there.
    pub(crate) fn parse(folder: &Path, line: &str) -> Result<Self, String> {
        // Else an array would be taken for the fields in their order.
        if !line.trim_start().starts_with('{') {
            return Err("not an object; expected {\"prompt\": ..., \"image\": ...}".to_owned());
        }
        let row: Self = parse_json(line)?;
        row.check()?;
        row.check_images(|path| image_file(folder, path).map(drop))?;
        Ok(row)
    }

    /// Has every image's path judged; a refusal names the image.
    ///
    /// # Errors
    /// The first refusal.
    pub fn check_images<E: Display>(
        &self,
        check: impl Fn(&str) -> Result<(), E>,
    ) -> Result<(), String> {
        self.files().try_for_each(|(key, path)| {
            check(path).map_err(|error| format!("{key} {path:?}: {error}"))
        })
    }

    /// Whether it has no more sources than are taken.
    ///
    /// # Errors
    /// How many it has.
    pub fn check_limit(&self, limit: SourcesLimit) -> Result<(), String> {
        let (count, max) = (self.images.len(), limit.max());
        match count > max {
            true => Err(format!("image names {count} files, {limit}")),
            false => Ok(()),
        }
    }

    /// The images that it names, each with its key.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let sources = self.images.iter().map(|path| ("image", path.as_str()));
        sources.chain(self.target.iter().map(|path| ("target", path.as_str())))
    }

    /// Whether its texts are of legal length, and its sources as many as an editor may take.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_texts()?;
        self.check_sources()
    }

    fn check_sources(&self) -> Result<(), String> {
        match self.images.len() {
            1..=SOURCES_MAX => Ok(()),
            count => Err(format!(
                "image names {count} files, expected 1 to {SOURCES_MAX}"
            )),
        }
    }

    fn check_texts(&self) -> Result<(), String> {
        if self.prompt.trim().is_empty() {
            return Err("prompt is empty".to_owned());
        }
        // These are the limits of the messages that will carry the texts.
        let prompts = [
            ("prompt", &*self.prompt),
            ("requirement", &self.requirement),
        ]
        .map(|(key, text)| (key, text, PROMPT_BYTES_MAX));
        let paths = self
            .files()
            .map(|(key, path)| (key, path, ADDRESS_BYTES_MAX));
        match prompts
            .into_iter()
            .chain(paths)
            .find(|(_, text, max)| text.len() > *max)
        {
            Some((key, text, max)) => Err(format!(
                "{key} has {} bytes, at most {max} are allowed",
                text.len()
            )),
            None => Ok(()),
        }
    }
}

fn path_or_paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    one_or_several::deserialize(deserializer)
        .map_err(|_: D::Error| D::Error::custom("image is neither a path nor a list of paths"))
}

/// Exports of tables write null where a column has no value.
fn string_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn dataset() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        fs::write(folder.path().join("images/a.png"), "").unwrap();
        folder
    }

    fn parse(line: &str) -> Result<Row, String> {
        Row::parse(dataset().path(), line)
    }

    fn row(requirement: &str, target: Option<&str>) -> Row {
        Row {
            prompt: "p".into(),
            images: vec!["images/a.png".into()],
            requirement: requirement.into(),
            target: target.map(str::to_owned),
        }
    }

    #[test]
    fn optional_keys_may_be_missing_or_null_and_others_are_ignored() {
        let line = |more: &str| format!(r#"{{"prompt":"p","image":"images/a.png"{more}}}"#);
        for (more, expected) in [
            ("", row("", None)),
            (r#","requirement":"r","task":["add"]"#, row("r", None)),
            (r#","requirement":null,"target":null"#, row("", None)),
            (r#","target":"images/a.png""#, row("", Some("images/a.png"))),
        ] {
            assert_eq!(parse(&line(more)).unwrap(), expected);
        }
    }

    #[test]
    fn a_row_may_have_several_sources() {
        let read = |image: &str| parse(&format!(r#"{{"prompt":"p","image":{image}}}"#));
        let a = r#""images/a.png""#;
        assert_eq!(read(&format!("[{a}]")).unwrap(), row("", None));
        let two = read(&format!("[{a}, {a}]")).unwrap();
        assert_eq!(two.images, ["images/a.png", "images/a.png"]);
        let missing = read(&format!(r#"[{a}, "images/b.png"]"#)).unwrap_err();
        assert!(
            missing.starts_with("image \"images/b.png\": No such file"),
            "{missing}"
        );
        let many = format!("[{}]", [a; 9].join(","));
        for (image, expected) in [
            ("[]", "image names 0 files, expected 1 to 8"),
            (&*many, "image names 9 files, expected 1 to 8"),
            ("7", "image is neither a path nor a list of paths"),
        ] {
            let error = read(image).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn what_is_no_row_is_refused_in_words() {
        for (line, expected) in [
            (r#"["p","images/a.png","r"]"#, "not an object; expected {"),
            ("7", "not an object"),
            (r#"{"prompt":"p"}"#, "missing field `image` at column 14"),
            (r#"{"prompt":"p","prompt":"q"}"#, "duplicate field `prompt`"),
            (r#"{"prompt":null}"#, "invalid type: null"),
            (r#"{"prompt":"p"} {}"#, "missing field `image`"),
            (
                r#"{"prompt":"p","image":"images/a.png"}{}"#,
                "trailing characters at column 38",
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }

    #[test]
    fn texts_and_images_are_judged() {
        let long = "x".repeat(PROMPT_BYTES_MAX + 1);
        let path = "x".repeat(ADDRESS_BYTES_MAX + 1);
        let line = |prompt: &str, image: &str, requirement: &str, target: &str| {
            let row = Row {
                prompt: prompt.into(),
                images: vec![image.into()],
                requirement: requirement.into(),
                target: Some(target.into()),
            };
            serde_json::to_string(&row).unwrap()
        };
        let a = "images/a.png";
        for (line, expected) in [
            (line(" \t", a, "", a), "prompt is empty".to_owned()),
            (
                line(&long, a, "", a),
                "prompt has 16385 bytes, at most 16384 are allowed".to_owned(),
            ),
            (
                line("p", a, &long, a),
                "requirement has 16385 bytes".to_owned(),
            ),
            (line("p", &path, "", a), "image has 1025 bytes".to_owned()),
            (line("p", a, "", &path), "target has 1025 bytes".to_owned()),
            (
                line("p", "../a.png", "", a),
                "image \"../a.png\": not a path".to_owned(),
            ),
            (line("p", a, "", ""), "target \"\": not a path".to_owned()),
            (
                line("p", a, "", "b.png"),
                "target \"b.png\": No such file".to_owned(),
            ),
        ] {
            let error = parse(&line).unwrap_err();
            assert!(error.starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn hostile_rows_are_refused_or_understood() {
        let line = r#"{"prompt": "p", "image": "images/a.png", "requirement": "r"}"#;
        let folder = dataset();
        retouch_hostile::bombard(line.as_bytes(), |bytes| {
            if let Ok(row) = Row::parse(folder.path(), &String::from_utf8_lossy(bytes)) {
                assert_eq!(
                    Path::new(&row.images[0]).file_name(),
                    Some("a.png".as_ref())
                );
            }
        });
    }
}
