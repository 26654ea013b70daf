//! The name of a run's training rows.

use retouch_dataset::Row;

/// The hash of all that a run uses of its rows, so that it does not go on with others.
pub(crate) fn hash(rows: &[Row]) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in rows {
        if row.images.len() > 1 {
            // No text is as long: rows of one source keep the hash that they had before there were others.
            hasher.update(&(u64::MAX - row.images.len() as u64).to_le_bytes());
        }
        let texts = std::iter::once(&row.prompt).chain(&row.images);
        for text in texts.chain([&row.requirement]) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use retouch_dataset::{Split, read};

    use super::*;

    #[test]
    fn the_hash_depends_on_every_text_and_on_their_borders() {
        let row = |prompt: &str, image: &str| Row {
            prompt: prompt.into(),
            images: vec![image.into()],
            requirement: String::new(),
            target: None,
        };
        assert_ne!(hash(&[row("ab", "c")]), hash(&[row("a", "bc")]));
        assert_eq!(hash(&[row("ab", "c")]), hash(&[row("ab", "c")]));
        let sources = |images: &[&str], requirement: &str| Row {
            images: images.iter().map(|image| (*image).into()).collect(),
            requirement: requirement.into(),
            ..row("p", "")
        };
        assert_ne!(
            hash(&[sources(&["a", "b"], "")]),
            hash(&[sources(&["b", "a"], "")])
        );
        assert_ne!(
            hash(&[sources(&["a", "b"], "")]),
            hash(&[sources(&["a"], "b")])
        );
    }

    /// Records name their dataset by it: with another, no run goes on.
    #[test]
    fn a_dataset_keeps_its_hash() {
        let folder = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../assets/tiny/dataset"
        ));
        let rows = read(folder, Split::Train).unwrap();
        assert_eq!(
            hash(&rows),
            "830fb571e7225255ca433fbd101a1b99b57b5c8e833c0b6cf442a58745bcd6a2"
        );
    }
}
