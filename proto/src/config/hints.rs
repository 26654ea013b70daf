//! What serde says of a wrong field or value, in the words of whoever wrote it, with what was probably meant.

use toml::{Table, Value};

use super::RunConfig;
use super::lines::join;

/// Names less alike than this are not worth a guess: one letter in three may differ.
const ALIKE: f64 = 0.6;

/// A field or value that a run file can't have: the key it is about, which ends with the unknown name, and what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) key: String,
    pub(super) problem: String,
}

/// Puts a message of serde's about a key and its value into words.
pub(super) fn refusal(key: &str, value: &Value, message: &str) -> Refusal {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match names.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => Refusal {
            key: up_to(key, unknown),
            problem: unknown_field(unknown, known),
        },
        Some((unknown, known)) if message.starts_with("unknown variant") => Refusal {
            key: key.to_owned(),
            problem: unknown_value(unknown, known),
        },
        _ => {
            let shown = value.to_string();
            let problem = match message.contains(&shown) {
                true => message.to_owned(),
                false => format!("{shown}: {message}"),
            };
            Refusal {
                key: key.to_owned(),
                problem,
            }
        }
    }
}

/// The key's part that ends with this name: all fields of an unknown section are one problem.
fn up_to(key: &str, name: &str) -> String {
    let mut path = String::new();
    for part in key.split('.') {
        path = join(&path, part);
        if part == name {
            return path;
        }
    }
    key.to_owned()
}

fn unknown_field(unknown: &str, known: &[&str]) -> String {
    let elsewhere = namesakes(unknown);
    let meant = closest(unknown, known).map(str::to_owned).or(elsewhere);
    match meant {
        Some(meant) => format!("unknown field, did you mean {meant}?"),
        None => format!("unknown field, expected one of {}", known.join(", ")),
    }
}

fn unknown_value(unknown: &str, known: &[&str]) -> String {
    let meant = closest(unknown, known)
        .map(|name| format!("did you mean {name:?}? "))
        .unwrap_or_default();
    let known = known.join(", ");
    format!("unknown value {unknown:?}, {meant}expected one of {known}")
}

/// The name that is most alike, if one is alike enough.
fn closest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(unknown, name);
    let best = known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= ALIKE).then_some(*best)
}

/// The fields of other sections that have this name.
fn namesakes(name: &str) -> Option<String> {
    let table = Table::try_from(RunConfig::default()).ok()?;
    let sections = table.iter().filter(|(_, fields)| {
        let fields = fields.as_table();
        fields.is_some_and(|fields| fields.contains_key(name))
    });
    let keys: Vec<String> = sections.map(|(section, _)| join(section, name)).collect();
    (!keys.is_empty()).then(|| keys.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(key: &str, message: &str) -> String {
        let Refusal { key, problem } = refusal(key, &Value::Integer(1), message);
        format!("{key}: {problem}")
    }

    #[test]
    fn what_was_meant_is_guessed_if_it_is_likely() {
        let message = "unknown field `sede`, expected one of `seed`, `name`";
        assert_eq!(
            refused("sede", message),
            "sede: unknown field, did you mean seed?"
        );
        let message = "unknown field `x`, expected `seed` or `name`";
        assert_eq!(
            refused("x", message),
            "x: unknown field, expected one of seed, name"
        );
        let message = "unknown variant `dmp2`, expected one of `dpm1`, `dpm2`";
        assert_eq!(
            refused("rollout.solver", message),
            "rollout.solver: unknown value \"dmp2\", did you mean \"dpm2\"? expected one of dpm1, dpm2"
        );
    }

    #[test]
    fn fields_of_other_sections_are_found_by_name() {
        let message = |name| format!("unknown field `{name}`, expected one of `seed`, `name`");
        assert_eq!(
            refused("learning_rate", &message("learning_rate")),
            "learning_rate: unknown field, did you mean learner.learning_rate?"
        );
        assert_eq!(
            refused("solver", &message("solver")),
            "solver: unknown field, did you mean evaluation.solver or rollout.solver?"
        );
    }

    #[test]
    fn an_unknown_section_is_the_problem_and_not_its_fields() {
        let message = "unknown field `learnr`, expected one of `learner`, `name`";
        assert_eq!(
            refused("learnr.ranks", message),
            "learnr: unknown field, did you mean learner?"
        );
    }

    #[test]
    fn a_value_is_shown_once() {
        let message = "invalid value: integer `1`, expected something else";
        assert_eq!(refused("seed", message), format!("seed: {message}"));
        assert_eq!(refused("seed", "not that"), "seed: 1: not that");
    }
}
