//! Paths of a run file on another machine.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::RunConfig;

/// What the run file has under one folder is under another one here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathMove {
    /// The folder as the run file names it.
    pub from: PathBuf,
    /// The folder on this machine.
    pub to: PathBuf,
}

/// Text that is no [`PathMove`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not FROM=TO, such as /models=/mnt/models")]
pub struct InvalidPathMove(String);

impl FromStr for PathMove {
    type Err = InvalidPathMove;

    fn from_str(text: &str) -> Result<Self, InvalidPathMove> {
        match text.split_once('=') {
            Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok(Self {
                from: from.into(),
                to: to.into(),
            }),
            _ => Err(InvalidPathMove(text.to_owned())),
        }
    }
}

impl RunConfig {
    /// The same run with its paths as they are on this machine; of several moves that fit, the first counts.
    #[must_use]
    pub fn relocated(mut self, moves: &[PathMove]) -> Self {
        let terms = self.reward.terms.iter_mut();
        let of_terms = terms.flat_map(|term| [&mut term.path, &mut term.template]);
        let paths = [
            &mut self.run_dir,
            &mut self.model.path,
            &mut self.dataset.path,
            &mut self.lora.init,
        ];
        for path in paths.into_iter().chain(of_terms) {
            if let Some(moved) = moves.iter().find_map(|step| step.apply(path)) {
                *path = moved;
            }
        }
        self
    }
}

impl PathMove {
    fn apply(&self, path: &str) -> Option<String> {
        let rest = Path::new(path).strip_prefix(&self.from).ok()?;
        let moved = match rest.as_os_str().is_empty() {
            true => self.to.clone(),
            false => self.to.join(rest),
        };
        moved.to_str().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Preset, RewardTerm, preset};
    use super::*;

    #[test]
    fn whole_folders_are_moved_and_everything_else_stays() {
        let mut config = preset(Preset::Tiny);
        config.model.path = "/models/editor".into();
        config.dataset.path = "/modelsets/pairs".into();
        config.run_dir = "/models".into();
        config.lora.init = "/models/adapters/sft".into();
        config.reward.terms = vec![RewardTerm {
            path: "/models/judges/small".into(),
            ..RewardTerm::default()
        }];
        let moves: Vec<PathMove> = ["/models/judges=/j", "/models=/mnt"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let moved = config.clone().relocated(&moves);
        assert_eq!(moved.model.path, "/mnt/editor");
        assert_eq!(moved.dataset.path, "/modelsets/pairs");
        assert_eq!(moved.run_dir, "/mnt");
        assert_eq!(moved.lora.init, "/mnt/adapters/sft");
        assert_eq!(moved.reward.terms[0].path, "/j/small");
        assert_eq!(
            moved.reward.terms[0].template,
            config.reward.terms[0].template
        );
        assert_eq!(moved.seed, config.seed);
    }

    #[test]
    fn a_move_has_two_sides() {
        assert!("/models".parse::<PathMove>().is_err());
        let error = "=/x".parse::<PathMove>().unwrap_err().to_string();
        assert_eq!(error, "\"=/x\" is not FROM=TO, such as /models=/mnt/models");
    }
}
