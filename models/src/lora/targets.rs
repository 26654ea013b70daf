//! Whether the layers that an adapter is to change are there.

use std::collections::BTreeSet;
use std::fmt;

use retouch_settings::LoraConfig;

use super::Projection;
use crate::weights::folded;

/// An entry of `target_modules` that means no layer of the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct TargetError {
    /// The entry.
    pub entry: String,
    /// The ending of a layer's name that is most like it, if one is.
    pub nearest: Option<String>,
    /// What could be meant.
    pub examples: String,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            entry, examples, ..
        } = self;
        write!(f, "target_modules: {entry:?} matches no layer of the model")?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean {nearest:?}?")?;
        }
        write!(f, " There are {examples}")
    }
}

/// Checks that every entry of `target_modules` means a layer of the model.
///
/// # Errors
/// If one does not, with what could be meant.
pub fn check_targets(config: &LoraConfig, projections: &[Projection]) -> Result<(), TargetError> {
    let unmatched = config.target_modules.iter().find(|entry| {
        let mut names = projections.iter().map(|p| &p.name);
        !names.any(|name| LoraConfig::matches(entry, name))
    });
    match unmatched {
        None => Ok(()),
        Some(entry) => Err(TargetError {
            entry: entry.clone(),
            nearest: nearest(entry, projections),
            examples: examples(projections),
        }),
    }
}

/// The names of a model's layers, alike ones in one.
fn examples(projections: &[Projection]) -> String {
    let names = projections.iter().map(|p| (p.name.as_str(), String::new()));
    folded(names).join(", ")
}

/// The ending of a layer's name, of any number of segments, that is most like `entry`.
fn nearest(entry: &str, projections: &[Projection]) -> Option<String> {
    let endings: BTreeSet<&str> = projections.iter().flat_map(|p| endings(&p.name)).collect();
    let distances = endings
        .into_iter()
        .map(|ending| (strsim::levenshtein(entry, ending), ending));
    let (distance, nearest) = distances.min()?;
    // What shares less than half of its letters is no slip of the pen.
    (distance * 2 <= entry.chars().count()).then(|| nearest.to_owned())
}

/// `a.b.c`, `b.c` and `c`, without those that are numbers alone.
fn endings(name: &str) -> impl Iterator<Item = &str> {
    let dots = name.match_indices('.').map(|(dot, _)| dot + 1);
    let endings = std::iter::once(0).chain(dots).map(|start| &name[start..]);
    endings.filter(|ending| ending.parse::<usize>().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn projections() -> Vec<Projection> {
        let blocks = (0..3).flat_map(|i| {
            ["attn.to_q", "attn.to_out.0", "ff.net.0.proj"]
                .map(|l| format!("transformer_blocks.{i}.{l}"))
        });
        blocks
            .map(|name| Projection {
                name,
                in_features: 4,
                out_features: 4,
            })
            .collect()
    }

    fn error(entry: &str) -> String {
        let config = LoraConfig {
            target_modules: vec!["to_q".into(), entry.into()],
            ..LoraConfig::default()
        };
        check_targets(&config, &projections())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_entry_that_matches_no_layer_is_answered_with_the_nearest() {
        assert_eq!(
            error("to_p"),
            "target_modules: \"to_p\" matches no layer of the model; did you mean \"to_q\"? There are \
             transformer_blocks.{0..2}.attn.to_out.0, transformer_blocks.{0..2}.attn.to_q, \
             transformer_blocks.{0..2}.ff.net.0.proj"
        );
        assert!(
            error("to_out").contains("did you mean \"to_out.0\"?"),
            "{}",
            error("to_out")
        );
        assert!(error("attn.to_k").contains("did you mean \"attn.to_q\"?"));
        assert!(!error("query_key_value").contains("did you mean"));
    }

    #[test]
    fn whole_names_and_ends_at_a_dot_match() {
        for entry in [
            "to_q",
            "attn.to_q",
            "transformer_blocks.1.attn.to_q",
            "net.0.proj",
        ] {
            let config = LoraConfig {
                target_modules: vec![entry.into()],
                ..LoraConfig::default()
            };
            assert_eq!(check_targets(&config, &projections()), Ok(()), "{entry}");
        }
    }

    #[test]
    fn distances_count_letters() {
        for (from, to, expected) in [
            ("", "", 0),
            ("to_q", "to_k", 1),
            ("to_out", "to_out.0", 2),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(strsim::levenshtein(from, to), expected, "{from} {to}");
        }
    }
}
