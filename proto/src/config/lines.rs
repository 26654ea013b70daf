//! Where in a TOML text a key stands.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The line of every key of a TOML text, by dotted path.
pub(super) fn lines(text: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    if let Ok(table) = DeTable::parse(text) {
        walk(text, "", table.get_ref(), &mut found);
    }
    found
}

fn walk(text: &str, prefix: &str, table: &DeTable<'_>, found: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        found.insert(path.clone(), line(text, key));
        if let DeValue::Table(inner) = value.get_ref() {
            walk(text, &path, inner, found);
        }
    }
}

fn line<T>(text: &str, key: &Spanned<T>) -> usize {
    text[..key.span().start].matches('\n').count() + 1
}

/// `prefix.key`, or `key` at the top.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_lines() {
        let found = lines("seed = 1\n\n[rollout]\n# comment\ngroup_size = 2\nmodel.path = \"x\"\n");
        assert_eq!(found["seed"], 1);
        assert_eq!(found["rollout.group_size"], 5);
        assert_eq!(found["rollout.model.path"], 6);
    }
}
