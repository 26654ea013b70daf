//! What `--set` takes: keys of run files, and the values of those that are choices.

use std::ffi::OsStr;

use clap_complete::{ArgValueCompleter, CompletionCandidate};
use retouch_proto::{
    RunConfig,
    config::{key_lines, schema},
};
use serde_json::Value;

use super::commented::field;

/// For an argument of the form KEY=VALUE.
pub(super) fn completer() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| current.to_str().map_or(Vec::new(), candidates))
}

fn candidates(current: &str) -> Vec<CompletionCandidate> {
    let schema = schema();
    let offered = match current.split_once('=') {
        Some((key, _)) => values(&schema, key),
        None => all_keys(&schema),
    };
    let begun = |(text, _): &(String, String)| text.starts_with(current);
    let offered = offered.into_iter().filter(begun);
    let candidate = |(text, meaning): (String, String)| {
        let first = meaning.lines().next().unwrap_or_default().to_owned();
        CompletionCandidate::new(text).help(Some(first.into()))
    };
    offered.map(candidate).collect()
}

/// Every key that has a value of its own, with its meaning.
fn all_keys(schema: &Value) -> Vec<(String, String)> {
    let keys = key_lines(&RunConfig::default().to_toml()).into_keys();
    let key = |key: String| {
        let field = field(schema, &key)?;
        // Terms of rewards have no number on a command line.
        let is_value = field.get("properties").is_none() && !key.starts_with("reward.terms");
        let meaning = field["description"].as_str().unwrap_or_default();
        is_value.then(|| (format!("{key}="), meaning.to_owned()))
    };
    keys.filter_map(key).collect()
}

/// The choices of a key, with their meanings.
fn values(schema: &Value, key: &str) -> Vec<(String, String)> {
    let Some(field) = field(schema, key) else {
        return Vec::new();
    };
    if field["type"] == "boolean" {
        return ["true", "false"]
            .map(|value| (format!("{key}={value}"), String::new()))
            .into();
    }
    let choices = field["oneOf"].as_array().into_iter().flatten();
    let choice = |choice: &Value| {
        let meaning = choice["description"].as_str().unwrap_or_default();
        Some((
            format!("{key}={}", choice["const"].as_str()?),
            meaning.to_owned(),
        ))
    };
    choices.filter_map(choice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(current: &str) -> Vec<String> {
        let value =
            |candidate: &CompletionCandidate| candidate.get_value().to_string_lossy().into_owned();
        candidates(current).iter().map(value).collect()
    }

    #[test]
    fn keys_and_the_values_of_choices_are_offered() {
        let keys = offered("learner.le");
        assert!(
            keys.contains(&"learner.learning_rate=".to_owned()),
            "{keys:?}"
        );
        assert!(keys.iter().all(|key| key.starts_with("learner.le")));
        assert!(offered("").contains(&"seed=".to_owned()));
        assert_eq!(offered("model.dtype=b"), ["model.dtype=bf16"]);
        assert_eq!(offered("reward.terms"), [""; 0]);
        assert_eq!(offered("no.such=x"), [""; 0]);
    }
}
