//! Lists that are mostly of one item, written as that item alone: `"a"` or `["a", "b"]`.
//!
//! For `#[serde(with = "retouch_proto::one_or_several")]`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrSeveral<T> {
    Several(Vec<T>),
    One(T),
}

/// Writes one item as itself, and any other number as a list.
///
/// # Errors
/// The serializer's.
pub fn serialize<T: Serialize, S: Serializer>(
    items: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match items {
        [item] => item.serialize(serializer),
        items => items.serialize(serializer),
    }
}

/// Reads an item or a list of them.
///
/// # Errors
/// If it is neither.
pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(match OneOrSeveral::deserialize(deserializer)? {
        OneOrSeveral::Several(items) => items,
        OneOrSeveral::One(item) => vec![item],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] Vec<String>);

    #[test]
    fn one_item_is_written_without_a_list() {
        for (items, text) in [
            (vec!["a"], r#""a""#),
            (vec![], "[]"),
            (vec!["a", "b"], r#"["a","b"]"#),
        ] {
            let holder = Holder(items.into_iter().map(str::to_owned).collect());
            assert_eq!(serde_json::to_string(&holder).unwrap(), text);
            assert_eq!(serde_json::from_str::<Holder>(text).unwrap(), holder);
        }
        assert_eq!(serde_json::from_str::<Holder>(r#"["a"]"#).unwrap().0, ["a"]);
        assert!(serde_json::from_str::<Holder>("7").is_err());
    }
}
