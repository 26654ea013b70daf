//! A run file with the meaning of every field above it, from the schema's descriptions.

use std::{collections::BTreeMap, fmt::Write};

use retouch_proto::{
    RunConfig,
    config::{key_lines, schema},
};
use serde_json::Value;

use crate::fit::wrap;

/// Columns of a comment, its `# ` aside.
const COLUMNS: usize = 96;

/// The resolved run file, each field and section below its meaning. It is a run file that gives the same again.
pub(super) fn text(config: &RunConfig) -> String {
    let (plain, schema) = (config.to_toml(), schema());
    let lines = key_lines(&plain).into_iter();
    let keys: BTreeMap<usize, String> = lines.map(|(key, line)| (line, key)).collect();
    let mut out = String::new();
    for (number, line) in plain.lines().enumerate() {
        let key = keys.get(&(number + 1));
        if let Some(field) = key.and_then(|key| field(&schema, key)) {
            comment(&mut out, field);
        }
        let _ = writeln!(out, "{line}");
    }
    out
}

/// What the schema says of a key such as `reward.terms[0].weight`.
pub(super) fn field<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(schema, |section, name| {
        let (name, is_element) = match name.split_once('[') {
            Some((array, _)) => (array, true),
            None => (name, false),
        };
        let field = section.get("properties")?.get(name)?;
        if is_element {
            field.get("items")
        } else {
            Some(field)
        }
    })
}

fn comment(out: &mut String, field: &Value) {
    let mut paragraph = |text: &str, indent: &str| {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for line in wrap(&text, COLUMNS, indent) {
            let _ = writeln!(out, "# {line}");
        }
    };
    if let Some(meaning) = field["description"].as_str() {
        paragraph(meaning, "");
    }
    for choice in field["oneOf"].as_array().into_iter().flatten() {
        let name = choice["const"].as_str().unwrap_or_default();
        let meaning = choice["description"].as_str().unwrap_or_default();
        paragraph(&format!("- {name}: {meaning}"), "  ");
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::config::{Preset, load, preset};

    use super::*;

    #[test]
    fn every_field_has_its_meaning_above_it() {
        let text = text(&RunConfig::default());
        let lines: Vec<&str> = text.lines().collect();
        let is_blank = |line: &str| line.is_empty();
        for (number, line) in lines.iter().enumerate() {
            if !line.starts_with('#') && !is_blank(line) {
                let above = lines[number.saturating_sub(1)];
                assert!(above.starts_with("# "), "nothing says what this is: {line}");
            }
        }
        assert!(
            text.contains("# AdamW's step size.\nlearning_rate = "),
            "{text}"
        );
        assert!(
            text.contains("# - dpm2: DPM-Solver++, second-order"),
            "{text}"
        );
        assert!(
            text.contains("\n# The judge's folder, or its id on the Hugging Face Hub.\npath = "),
            "{text}"
        );
        let mut comments = lines.iter().filter(|line| line.starts_with('#'));
        assert!(comments.all(|line| line.len() <= COLUMNS + 2), "{text}");
    }

    #[test]
    fn what_is_shown_is_a_run_file_that_gives_the_same() {
        for name in Preset::ALL {
            let mut config = preset(name);
            config.run_dir = "a folder\nseed = 7 \"quoted\" # no comment".into();
            let folder = tempfile::tempdir().expect("a temporary folder");
            let file = folder.path().join("run.toml");
            std::fs::write(&file, text(&config)).expect("written");
            let read = load(Some(&file), [], &[]);
            assert_eq!(read.as_ref(), Ok(&config), "{}", name.as_str());
        }
    }
}
