//! Layers: defaults, preset, file, environment, `--set`; later ones win.

use std::collections::BTreeMap;
use std::path::Path;

use figment::Figment;
use figment::providers::Serialized;
use toml::{Table, Value};

use super::devices;
use super::errors::{ConfigErrors, Problem};
use super::hints::{Refusal, refusal};
use super::lines::{element_of, join, key_lines, line};
use super::preset::Preset;
use super::{RunConfig, validate};

/// Environment variables with this prefix and `__` between section and key are a layer:
/// `RETOUCH_ROLLOUT__GROUP_SIZE=8`; the top-level keys `RETOUCH_SEED`, `RETOUCH_RUN_DIR`,
/// `RETOUCH_ITERATIONS` and `RETOUCH_PRESET` are too.
const ENV_PREFIX: &str = "RETOUCH_";
const ENV_TOP_LEVEL: [&str; 4] = ["seed", "run_dir", "iterations", "preset"];

/// Some values and where they come from.
struct Layer {
    origin: String,
    lines: BTreeMap<String, usize>,
    values: Table,
}

impl Layer {
    /// The origin of one key, with its line if there is one.
    fn origin_of(&self, key: &str) -> String {
        match self.lines.get(key) {
            Some(line) => format!("{}:{line}", self.origin),
            None => self.origin.clone(),
        }
    }
}

/// Reads a run file with everything that goes over and under it, and checks the result.
///
/// `file` may be `None` for the layers without one; `env` are environment variables, of which
/// those that start with `RETOUCH_` and name a key count; `sets` are `a.b=c` with a TOML value
/// (text needs no quotes).
///
/// # Errors
/// Every problem of every layer, each with file, line, key and value.
pub fn load(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    sets: &[String],
) -> Result<RunConfig, ConfigErrors> {
    resolve(file, env, sets, |config, given| {
        devices::follow(config, given);
        Ok(())
    })
}

/// [`load`] for a node whose cards may be asked for: it names those behind `cuda:*`, of which `cards` tells the number
/// or why there are none.
///
/// # Errors
/// As [`load`], and if `cuda:*` is asked for and there are no cards.
pub fn load_on_node(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    sets: &[String],
    cards: impl FnOnce() -> Result<usize, String>,
) -> Result<RunConfig, ConfigErrors> {
    resolve(file, env, sets, |config, given| {
        devices::settle(config, given, cards)
    })
}

/// All layers, `settle`d before they are checked: it is told which keys any layer gave.
fn resolve(
    file: Option<&Path>,
    env: impl IntoIterator<Item = (String, String)>,
    sets: &[String],
    settle: impl FnOnce(&mut RunConfig, &dyn Fn(&str) -> bool) -> Result<(), ConfigErrors>,
) -> Result<RunConfig, ConfigErrors> {
    let mut problems = Vec::new();
    let mut layers = Vec::new();
    match file.map(file_layer) {
        Some(Ok(layer)) => layers.push(layer),
        Some(Err(problem)) => problems.push(problem),
        None => {}
    }
    layers.push(env_layer(env, &mut problems));
    layers.push(set_layer(sets, &mut problems));
    problems.extend(layers.iter_mut().flat_map(take_wrong_keys));
    // Without the file or the preset nothing can be said of the values.
    if problems
        .iter()
        .any(|problem| problem.key.is_empty() || problem.key == "preset")
    {
        return Err(ConfigErrors::of(problems));
    }
    layers.insert(0, preset_layer(chosen_preset(&layers)));
    let mut config = extract(&layers)?;
    if let Err(errors) = settle(&mut config, &|key| is_given(&layers, key)) {
        problems.extend(errors.problems().iter().cloned());
    }
    let values = validate::problems(&config, |key| origin(&layers, key));
    let own = |value: &Problem| !follows_from(value, &problems);
    let values: Vec<Problem> = values.into_iter().filter(own).collect();
    problems.extend(values);
    ConfigErrors::check(problems)?;
    Ok(config)
}

/// Whether a problem is there only because a field that it is about has its default instead of what was given.
fn follows_from(problem: &Problem, earlier: &[Problem]) -> bool {
    earlier
        .iter()
        .any(|cause| problem.key == cause.key || problem.problem.contains(&cause.key))
}

/// The defaults with a preset over them.
pub fn preset(preset: Preset) -> RunConfig {
    let mut config = extract(&[preset_layer(preset)]).expect("presets are checked by tests");
    config.preset = preset;
    config
}

fn extract(layers: &[Layer]) -> Result<RunConfig, ConfigErrors> {
    let defaults = Figment::from(Serialized::defaults(RunConfig::default()));
    let merged = layers.iter().fold(defaults, |merged, layer| {
        merged.merge(Serialized::defaults(&layer.values))
    });
    merged
        .extract()
        .map_err(|error| ConfigErrors::one(Problem::text("configuration", error)))
}

/// The last layer that gave this key.
fn origin(layers: &[Layer], key: &str) -> String {
    let gives = |layer: &&Layer| lookup(&layer.values, key).is_some();
    layers
        .iter()
        .rev()
        .find(gives)
        .map_or("default".to_owned(), |layer| layer.origin_of(key))
}

fn is_given(layers: &[Layer], key: &str) -> bool {
    let mut given = layers.iter();
    given.any(|layer| lookup(&layer.values, key).is_some())
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => table.get(key),
        Some((section, rest)) => lookup(inner(table, section)?, rest),
    }
}

/// The table of this name, or the one at `name[0]`.
fn inner<'a>(table: &'a Table, name: &str) -> Option<&'a Table> {
    match indexed(name) {
        (name, None) => table.get(name)?.as_table(),
        (name, Some(index)) => table.get(name)?.as_array()?.get(index)?.as_table(),
    }
}

/// `terms[0]` is the first of `terms`.
fn indexed(name: &str) -> (&str, Option<usize>) {
    let parts = name.strip_suffix(']').and_then(|name| name.split_once('['));
    let element = parts.and_then(|(array, index)| Some((array, index.parse().ok()?)));
    element.map_or((name, None), |(array, index)| (array, Some(index)))
}

fn chosen_preset(layers: &[Layer]) -> Preset {
    let named = layers
        .iter()
        .rev()
        .find_map(|layer| layer.values.get("preset")?.as_str());
    named.and_then(Preset::from_name).unwrap_or_default()
}

fn preset_layer(preset: Preset) -> Layer {
    let values = preset.toml().parse().expect("presets are checked by tests");
    Layer {
        origin: format!("preset {}", preset.as_str()),
        lines: BTreeMap::new(),
        values,
    }
}

fn file_layer(path: &Path) -> Result<Layer, Problem> {
    let origin = path.display().to_string();
    let failed = |problem: &dyn ToString| Problem::text(origin.clone(), problem.to_string());
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    let values = text.parse().map_err(|error: toml::de::Error| {
        let place = error.span().map_or(0, |span| span.start);
        let origin = format!("{origin}:{}", line(&text, place));
        Problem::text(origin, error.message())
    })?;
    Ok(Layer {
        lines: key_lines(&text),
        values,
        origin,
    })
}

fn env_layer(
    env: impl IntoIterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut values = Table::new();
    for (name, text) in env {
        let Some(key) = env_key(&name) else { continue };
        if let Err(problem) = insert(&mut values, &key, value(&text)) {
            problems.push(Problem {
                origin: format!("environment {name}"),
                key,
                problem,
            });
        }
    }
    Layer {
        origin: "environment".into(),
        lines: BTreeMap::new(),
        values,
    }
}

fn env_key(name: &str) -> Option<String> {
    let key = name.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase();
    let counts = key.contains("__") || ENV_TOP_LEVEL.contains(&key.as_str());
    counts.then(|| key.replace("__", "."))
}

fn set_layer(sets: &[String], problems: &mut Vec<Problem>) -> Layer {
    let mut values = Table::new();
    for set in sets {
        let inserted = match set.split_once('=') {
            Some((key, text)) => insert(&mut values, key.trim(), value(text.trim())),
            None => Err("is not key=value".to_owned()),
        };
        if let Err(problem) = inserted {
            problems.push(Problem {
                origin: "--set".into(),
                key: set.clone(),
                problem,
            });
        }
    }
    Layer {
        origin: "--set".into(),
        lines: BTreeMap::new(),
        values,
    }
}

/// A TOML value; what is none is text.
fn value(text: &str) -> Value {
    let document = format!("value = {text}\n").parse::<Table>();
    let parsed = document.ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn insert(table: &mut Table, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        _ if key.is_empty() => Err("the key is empty".into()),
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((section, rest)) => {
            let inner = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            let inner = inner
                .as_table_mut()
                .ok_or_else(|| format!("{section} is not a section"))?;
            insert(inner, rest, value)
        }
    }
}

/// Takes every wrong key out of a layer: each is tried alone on the defaults, so that all are found.
fn take_wrong_keys(layer: &mut Layer) -> Vec<Problem> {
    let mut leaves = Vec::new();
    collect_leaves("", &layer.values, &mut leaves);
    let wrong: Vec<Refusal> = leaves
        .into_iter()
        .filter_map(|(key, value)| wrong_key(&key, value))
        .collect();
    let mut problems: Vec<Problem> = Vec::new();
    for Refusal { key, problem } in wrong {
        // An unknown section goes whole: an empty one is as wrong.
        remove(&mut layer.values, &key);
        if problems.iter().all(|told| told.key != key) {
            problems.push(Problem {
                origin: layer.origin_of(&key),
                key,
                problem,
            });
        }
    }
    problems
}

fn collect_leaves<'a>(prefix: &str, table: &'a Table, leaves: &mut Vec<(String, &'a Value)>) {
    for (key, value) in table {
        let path = join(prefix, key);
        match value {
            Value::Table(inner) if !inner.is_empty() => collect_leaves(&path, inner, leaves),
            Value::Array(elements) if elements.iter().any(Value::is_table) => {
                for (index, element) in elements.iter().enumerate() {
                    let path = element_of(&path, index);
                    match element {
                        Value::Table(inner) => collect_leaves(&path, inner, leaves),
                        other => leaves.push((path, other)),
                    }
                }
            }
            _ => leaves.push((path, value)),
        }
    }
}

fn wrong_key(key: &str, value: &Value) -> Option<Refusal> {
    let error = alone(key, value.clone()).try_into::<RunConfig>().err()?;
    // The path and the place are told by the caller.
    Some(refusal(key, value, error.message()))
}

/// A run file with this key alone.
fn alone(key: &str, value: Value) -> Table {
    let (sections, name) = match key.rsplit_once('.') {
        Some((sections, name)) => (Some(sections), name),
        None => (None, key),
    };
    let (name, value) = match indexed(name) {
        (name, None) => (name, value),
        (name, Some(_)) => (name, Value::Array(vec![value])),
    };
    let table = Table::from_iter([(name.to_owned(), value)]);
    match sections {
        Some(sections) => alone(sections, Value::Table(table)),
        None => table,
    }
}

fn remove(table: &mut Table, key: &str) {
    let Some((section, rest)) = key.split_once('.') else {
        // What stands in an array beside tables goes with the array.
        table.remove(indexed(key).0);
        return;
    };
    let (name, index) = indexed(section);
    let inner = table.get_mut(name).and_then(|value| match index {
        None => value.as_table_mut(),
        Some(index) => value.as_array_mut()?.get_mut(index)?.as_table_mut(),
    });
    if let Some(inner) = inner {
        remove(inner, rest);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use retouch_settings::DeviceName;

    use super::*;

    fn load_text(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<RunConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        fs::write(&file, text).unwrap();
        let env = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let prefix = format!("{}/", folder.path().display());
        load(Some(&file), env, &sets).map_err(|errors| errors.to_string().replace(&prefix, ""))
    }

    #[test]
    fn later_layers_win() {
        let text =
            "preset = \"tiny\"\nseed = 1\n[rollout]\ngroup_size = 4\nnum_inference_steps = 3\n";
        let env = [
            ("RETOUCH_ROLLOUT__GROUP_SIZE", "6"),
            ("RETOUCH_SEED", "2"),
            ("RETOUCH_LOG", "info"),
        ];
        let config = load_text(text, &env, &["seed=3", "reward.permute = true"]).unwrap();
        assert_eq!(config.preset, Preset::Tiny);
        assert_eq!(config.model.device, DeviceName::Cpu.into());
        assert_eq!(config.rollout.num_inference_steps, 3);
        assert_eq!(config.rollout.group_size, 6);
        assert_eq!(config.seed, 3);
        assert!(config.reward.permute);
    }

    #[test]
    fn every_problem_is_told_with_file_line_key_and_value() {
        let text =
            "sede = 1\niterations = \"many\"\n\n[rollout]\nsolver = \"dpm3\"\n[extra]\nx = 1\n";
        let env = [("RETOUCH_FILTER__TAU", "1")];
        let errors = load_text(text, &env, &["learner.ranks=-1", "nonsense"]).unwrap_err();
        assert!(errors.starts_with("7 problems"), "{errors}");
        for expected in [
            "run.toml:1: sede: unknown field, did you mean seed?",
            "run.toml:2: iterations: invalid type: string \"many\", expected u32",
            "run.toml:5: rollout.solver: unknown value \"dpm3\", did you mean \"dpm2\"? expected one of euler",
            "run.toml:6: extra: unknown field, expected one of preset, name",
            "environment: filter.tau: unknown field, expected one of rule, tau_mean",
            "--set: nonsense: is not key=value",
            "--set: learner.ranks: invalid value: integer `-1`, expected u32",
        ] {
            assert!(
                errors.contains(expected),
                "missing {expected:?} in\n{errors}"
            );
        }
    }

    #[test]
    fn values_are_traced_to_the_layer_that_gave_them() {
        let text = "preset = \"tiny\"\n[rollout]\ngroup_size = 0\n";
        let errors = load_text(text, &[], &["learner.gradient_shards=3"]).unwrap_err();
        assert!(
            errors.contains("run.toml:3: rollout.group_size: 0"),
            "{errors}"
        );
        assert!(
            errors.contains("--set: learner.gradient_shards: 3"),
            "{errors}"
        );
    }

    #[test]
    fn broken_toml_and_missing_files_are_told() {
        let errors = load_text("seed = \n", &[], &[]).unwrap_err();
        assert!(
            errors.contains("\n  run.toml:1: ") && errors.lines().count() == 2,
            "{errors}"
        );
        let errors = load(Some(Path::new("/no/such/run.toml")), [], &[])
            .unwrap_err()
            .to_string();
        assert!(errors.contains("/no/such/run.toml"), "{errors}");
    }

    #[test]
    fn wrong_keys_and_wrong_values_come_together_and_each_once() {
        let text = "[rollout]\ngroup_sise = 4\nnum_inference_steps = 0\n[lerner]\nranks = 2\nnft_beta = 1\n\
                    [learner]\nranks = \"two\"\ngradient_shards = 3\n";
        let errors = load_text(text, &[], &["learner.learning_rate=nan"]).unwrap_err();
        let lines: Vec<&str> = errors.lines().skip(1).collect();
        let expected = [
            "  run.toml:8: learner.ranks: invalid type: string \"two\", expected u32",
            "  run.toml:4: lerner: unknown field, did you mean learner?",
            "  run.toml:2: rollout.group_sise: unknown field, did you mean group_size?",
            "  run.toml:3: rollout.num_inference_steps: 0 is not in 1..=1000",
            "  --set: learner.learning_rate: NaN is not in 0..=1",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn fields_of_terms_are_told_with_their_own_lines() {
        let text = "[[reward.terms]]\nname = \"a\"\n[[reward.terms]]\nname = \"b\"\nwieght = 2\nweight = -1\n";
        let errors = load_text(text, &[], &[]).unwrap_err();
        let lines: Vec<&str> = errors.lines().skip(1).collect();
        assert_eq!(lines.len(), 2, "{errors}");
        assert!(
            lines[0].starts_with(
                "  run.toml:5: reward.terms[1].wieght: unknown field, did you mean weight?"
            ),
            "{errors}"
        );
        assert!(
            lines[1].starts_with("  run.toml:6: reward.terms[1].weight: -1 is not a weight"),
            "{errors}"
        );
    }

    #[test]
    fn numbers_that_are_none_are_refused_wherever_they_stand() {
        let mut defaults = RunConfig::default();
        defaults.reward.terms.clear();
        let defaults = Table::try_from(defaults).unwrap();
        let mut leaves = Vec::new();
        collect_leaves("", &defaults, &mut leaves);
        let floats = leaves.iter().filter(|(_, value)| value.is_float());
        let floats: Vec<&String> = floats.map(|(key, _)| key).collect();
        assert!(floats.len() > 20, "{floats:?}");
        for key in floats {
            for number in ["nan", "inf", "-inf"] {
                let set = format!("{key}={number}");
                let errors = load_text("", &[], &[&set]).expect_err(&set);
                assert!(errors.starts_with("1 problem in"), "{errors}");
                assert!(errors.contains(&format!("--set: {key}: ")), "{errors}");
            }
        }
    }

    #[test]
    fn set_values_are_toml_or_text() {
        let sets = [
            "dataset.path=/data/x y",
            "lora.target_modules=[\"to_q\"]",
            "learner.learning_rate=1e-3",
        ];
        let config = load_text("preset = \"tiny\"\n", &[], &sets).unwrap();
        assert_eq!(config.dataset.path, "/data/x y");
        assert_eq!(config.lora.adapter.target_modules, ["to_q"]);
        assert_eq!(config.learner.learning_rate, 1e-3);
    }

    #[test]
    fn presets_are_valid_and_partial_terms_get_defaults() {
        for name in Preset::ALL {
            assert_eq!(preset(name).validate(), Ok(()), "{}", name.as_str());
        }
        assert_eq!(preset(Preset::Tiny).reward.terms[0].weight, 1.0);
    }
}
