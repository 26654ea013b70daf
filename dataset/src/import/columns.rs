//! Which columns of a shard are what.

use super::{ImportError, shards::Shard};

/// How published datasets of edits call their columns.
const PROMPT: [&str; 7] = [
    "prompt",
    "instruction",
    "edit_prompt",
    "edit_instruction",
    "edit",
    "instruction_en",
    "text",
];
const IMAGE: [&str; 9] = [
    "image",
    "source_image",
    "input_image",
    "original_image",
    "source_img",
    "src_img",
    "input",
    "source",
    "images",
];
const TARGET: [&str; 7] = [
    "target",
    "target_image",
    "edited_image",
    "output_image",
    "target_img",
    "output",
    "edited",
];
const REQUIREMENT: [&str; 1] = ["requirement"];

/// The columns to read; those that are not named are looked for under their usual names.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// Of the instruction.
    pub prompt: Option<String>,
    /// Of the source images, in the order that the editor is to take them.
    pub images: Vec<String>,
    /// Of the image asked for.
    pub target: Option<String>,
    /// Of what the judge looks for.
    pub requirement: Option<String>,
}

/// The columns of a shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) prompt: String,
    pub(super) images: Vec<String>,
    pub(super) target: Option<String>,
    pub(super) requirement: Option<String>,
}

impl Found {
    pub(super) fn contains(&self, column: &str) -> bool {
        self.all().any(|other| other == column)
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        let others = [&self.target, &self.requirement];
        std::iter::once(&self.prompt)
            .chain(&self.images)
            .chain(others.into_iter().flatten())
    }

    /// A column is one thing.
    fn check(self) -> Result<Self, String> {
        let twice = |column: &&String| self.all().filter(|other| other == column).count() > 1;
        let column = self.all().find(twice).cloned();
        match column {
            Some(column) => Err(format!("column {column} is named twice")),
            None => Ok(self),
        }
    }
}

impl Columns {
    pub(super) fn find(&self, shard: &Shard) -> Result<Found, ImportError> {
        let there: Vec<&str> = shard
            .schema
            .get_fields()
            .iter()
            .map(|field| field.name())
            .collect();
        self.find_in(&there)
            .map_err(|problem| ImportError::unclear(&shard.path, problem))
    }

    fn find_in(&self, there: &[&str]) -> Result<Found, String> {
        let named = |column: &String| match there.contains(&column.as_str()) {
            true => Ok(column.clone()),
            false => Err(format!(
                "no column {column:?}; there are {}",
                there.join(", ")
            )),
        };
        let usual = |names: &[&str]| {
            let name = names.iter().find(|name| there.contains(name));
            name.map(|name| (*name).to_owned())
        };
        let optional = |asked: &Option<String>, names: &[&str]| match asked {
            Some(column) => named(column).map(Some),
            None => Ok(usual(names)),
        };
        let missing = |what: &str, option: &str| {
            format!(
                "no column is the {what} by its name; there are {}: name it with {option}",
                there.join(", ")
            )
        };
        let prompt = optional(&self.prompt, &PROMPT)?;
        let images = match &self.images[..] {
            [] => usual(&IMAGE).into_iter().collect(),
            images => images.iter().map(named).collect::<Result<Vec<_>, _>>()?,
        };
        if images.is_empty() {
            return Err(missing("source image", "--image"));
        }
        let found = Found {
            prompt: prompt.ok_or_else(|| missing("instruction", "--prompt"))?,
            images,
            // One that was asked for as a source is no target, whatever it is called.
            target: optional(&self.target, &TARGET)?
                .filter(|target| self.target.is_some() || !self.images.contains(target)),
            requirement: optional(&self.requirement, &REQUIREMENT)?,
        };
        found.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_found_and_named_ones_win() {
        let there = ["id", "source_img", "target_img", "instruction", "caption"];
        let found = Columns::default().find_in(&there).unwrap();
        assert_eq!(found.prompt, "instruction");
        assert_eq!(found.images, ["source_img"]);
        assert_eq!(found.target.as_deref(), Some("target_img"));
        assert!(found.contains("source_img") && !found.contains("id"));
        let asked = Columns {
            prompt: Some("caption".into()),
            images: vec!["target_img".into(), "source_img".into()],
            ..Columns::default()
        };
        let found = asked.find_in(&there).unwrap();
        assert_eq!(found.prompt, "caption");
        assert_eq!(found.images, ["target_img", "source_img"]);
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let asked = Columns {
            target: Some("after".into()),
            ..Columns::default()
        };
        let error = asked.find_in(&["prompt", "image"]).unwrap_err();
        assert_eq!(error, "no column \"after\"; there are prompt, image");
        let error = Columns::default().find_in(&["prompt", "jpg"]).unwrap_err();
        assert!(
            error.contains("there are prompt, jpg: name it with --image"),
            "{error}"
        );
        let error = Columns::default().find_in(&["image", "txt"]).unwrap_err();
        assert!(error.contains("name it with --prompt"), "{error}");
    }
}
