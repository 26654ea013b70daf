//! Which settings may change while a run's folder, record and checkpoints stay.

use std::collections::BTreeSet;

use retouch_proto::RunConfig;
use toml::{Table, Value};

/// Sections and keys that change no sample (A9): a run continues with other values. So do devices.
const FREE_KEYS: [&str; 14] = [
    "preset",
    "name",
    "run_dir",
    "iterations",
    "alarms",
    "checkpoint",
    "cluster",
    "dataset.sources_max",
    "evaluation",
    "samples",
    "learner.ranks",
    "learner.ranks_min",
    "learner.ranks_max",
    "learner.checkpoint_every",
];

/// `key: recorded -> given` for every value that must not differ when a run continues.
///
/// Values are compared, not texts: a field that an older program did not write has its default.
///
/// # Errors
/// If the recorded text is not TOML.
pub fn differences(recorded: &str, given: &RunConfig) -> Result<Vec<String>, String> {
    let is_free = |path: &str| FREE_KEYS.contains(&path) || path.ends_with("device");
    Ok(changes(&resolved(recorded)?, &table(given), &is_free))
}

/// The same for sections that decide whether a learner's state fits.
pub(crate) fn differences_within(
    sections: &[&str],
    recorded: &str,
    given: &RunConfig,
) -> Result<Vec<String>, String> {
    let (mut recorded, mut given) = (resolved(recorded)?, table(given));
    for table in [&mut recorded, &mut given] {
        table.retain(|key, _| sections.contains(&key));
    }
    let is_free = |path: &str| path.ends_with("device");
    Ok(changes(&recorded, &given, &is_free))
}

fn changes(recorded: &Table, given: &Table, is_free: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let (recorded, given) = (recorded.clone().into(), given.clone().into());
    compare("", &recorded, &given, is_free, &mut found);
    found
}

fn table(config: &RunConfig) -> Table {
    Table::try_from(config).expect("a config has only string keys")
}

/// Every field of a recorded run file.
fn resolved(text: &str) -> Result<Table, String> {
    let written: Table = text.parse().map_err(|error| format!("{error}"))?;
    Ok(match RunConfig::from_toml(text) {
        Ok(config) => table(&config),
        // Another version's fields are compared as they stand, over the defaults of those that it lacks.
        Err(_) => {
            let mut resolved = table(&RunConfig::default());
            overlay(&mut resolved, written);
            resolved
        }
    })
}

fn overlay(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

fn compare(
    path: &str,
    recorded: &Value,
    given: &Value,
    is_free: &dyn Fn(&str) -> bool,
    found: &mut Vec<String>,
) {
    if recorded == given || is_free(path) {
        return;
    }
    let (Some(old), Some(new)) = (recorded.as_table(), given.as_table()) else {
        return found.push(format!("{path}: {recorded} -> {given}"));
    };
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let none = Value::String("absent".into());
    for key in keys {
        let path = match path {
            "" => key.clone(),
            path => format!("{path}.{key}"),
        };
        let (old, new) = (old.get(key).unwrap_or(&none), new.get(key).unwrap_or(&none));
        compare(&path, old, new, is_free, found);
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::config::{Preset, preset};

    use super::*;

    fn tiny(change: impl FnOnce(&mut RunConfig)) -> RunConfig {
        let mut config = preset(Preset::Tiny);
        change(&mut config);
        config
    }

    #[test]
    fn values_are_compared_and_not_texts() {
        let config = tiny(|config| config.learner.ranks = 1);
        let recorded = preset(Preset::Tiny).to_toml();
        // Another order, a comment, and a field that an older program did not know.
        let default = RunConfig::default().learner.seal_sums;
        let line = format!("seal_sums = {default}\n");
        assert!(recorded.contains(&line), "{recorded}");
        let recorded = format!("# a comment\n{}", recorded.replace(&line, ""));
        assert_eq!(differences(&recorded, &config), Ok(vec![]));
    }

    #[test]
    fn what_a_run_began_with_is_named_with_both_values() {
        let config = tiny(|config| {
            config.seed = 8;
            config.learner.learning_rate = 0.5;
            config.lora.adapter.rank = 3;
        });
        let recorded = preset(Preset::Tiny);
        let (rate, rank) = (recorded.learner.learning_rate, recorded.lora.adapter.rank);
        let found = differences(&recorded.to_toml(), &config).unwrap();
        let rate = format!("learner.learning_rate: {rate} -> 0.5");
        let rank = format!("lora.rank: {rank} -> 3");
        assert_eq!(found, [rate, rank.clone(), "seed: 0 -> 8".to_owned()]);
        let fits = differences_within(&["model", "lora"], &recorded.to_toml(), &config);
        assert_eq!(fits, Ok(vec![rank]));
    }

    #[test]
    fn fields_of_other_versions_are_named() {
        let config = preset(Preset::Tiny);
        let recorded = format!("warmth = 3\n{}", config.to_toml());
        let found = differences(&recorded, &config);
        assert_eq!(found, Ok(vec!["warmth: 3 -> \"absent\"".to_owned()]));
        assert!(differences("seed = ", &config).is_err());
    }
}
