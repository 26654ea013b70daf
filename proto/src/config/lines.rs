//! Where in a TOML text a key stands.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The line of every key of a TOML text, by dotted path; a table of an array is `array[0]`. None if the text is no TOML.
pub fn key_lines(text: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    if let Ok(table) = DeTable::parse(text) {
        walk(text, "", table.get_ref(), &mut found);
    }
    found
}

fn walk(text: &str, prefix: &str, table: &DeTable<'_>, found: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        found.insert(path.clone(), line(text, key.span().start));
        descend(text, &path, value, found);
    }
}

fn descend(
    text: &str,
    path: &str,
    value: &Spanned<DeValue<'_>>,
    found: &mut BTreeMap<String, usize>,
) {
    match value.get_ref() {
        DeValue::Table(inner) => walk(text, path, inner, found),
        DeValue::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                if let DeValue::Table(inner) = element.get_ref() {
                    let path = element_of(path, index);
                    found.insert(path.clone(), line(text, element.span().start));
                    walk(text, &path, inner, found);
                }
            }
        }
        _ => {}
    }
}

/// The line of a place in the text, counted from 1.
pub(super) fn line(text: &str, place: usize) -> usize {
    let before = text.get(..place).unwrap_or(text);
    before.matches('\n').count() + 1
}

/// `prefix.key`, or `key` at the top.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

/// `array[0]`.
pub(super) fn element_of(array: &str, index: usize) -> String {
    format!("{array}[{index}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_lines() {
        let found =
            key_lines("seed = 1\n\n[rollout]\n# comment\ngroup_size = 2\nmodel.path = \"x\"\n");
        assert_eq!(found["seed"], 1);
        assert_eq!(found["rollout.group_size"], 5);
        assert_eq!(found["rollout.model.path"], 6);
    }

    #[test]
    fn tables_of_arrays_have_lines_of_their_own() {
        let found = key_lines(
            "[[reward.terms]]\nname = \"a\"\n[[reward.terms]]\nname = \"b\"\n[x]\ny = [{ z = 1 }]\n",
        );
        assert_eq!(found["reward.terms[0].name"], 2);
        assert_eq!(
            (found["reward.terms[1]"], found["reward.terms[1].name"]),
            (3, 4)
        );
        assert_eq!(found["x.y[0].z"], 6);
    }
}
