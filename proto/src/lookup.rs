//! What people look up in a run: groups and versions, the schemas of `groups --json` and
//! `versions --json`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::blob::{BlobRef, ContentHash};
use crate::ids::{GroupId, Iteration};
use crate::one_or_several;
use crate::saved_group::GroupPictures;
use crate::status::PolicyStatus;
use crate::task::TermScore;

/// Where a group is, or what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupStage {
    /// Waits for a rollout worker.
    Queued,
    /// Is being sampled.
    Sampling,
    /// Waits for a reward worker.
    Sampled,
    /// Is being scored.
    Scoring,
    /// Has scores; its iteration is not committed yet.
    Scored,
    /// Was trained on.
    Kept,
    /// Was left out by the filter.
    Filtered,
    /// Was given up after failures.
    Dropped,
}

impl GroupStage {
    /// Every stage, in the order of a group's way.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Sampling,
        Self::Sampled,
        Self::Scoring,
        Self::Scored,
        Self::Kept,
        Self::Filtered,
        Self::Dropped,
    ];

    /// The stage's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sampling => "sampling",
            Self::Sampled => "sampled",
            Self::Scoring => "scoring",
            Self::Scored => "scored",
            Self::Kept => "kept",
            Self::Filtered => "filtered",
            Self::Dropped => "dropped",
        }
    }

    /// The stage of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == name)
    }
}

impl fmt::Display for GroupStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which attempts at an iteration are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attempts {
    /// Those that count.
    #[default]
    Valid,
    /// Those that were taken back by a rewind, too.
    All,
}

/// Which groups; what is absent matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupQuery {
    /// Of this iteration.
    pub iteration: Option<Iteration>,
    /// With this number in it.
    pub index: Option<u32>,
    /// With this in the prompt, in any case.
    pub prompt: Option<String>,
    /// In this stage.
    pub stage: Option<GroupStage>,
    /// Of which attempts.
    pub attempts: Attempts,
    /// At most so many.
    pub limit: u32,
}

/// A group with all that is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its name.
    pub group: GroupId,
    /// Where it is, or what became of it.
    pub state: GroupStage,
    /// Whether its iteration was taken back.
    pub rewound: bool,
    /// The dataset row.
    pub dataset_row: u32,
    /// The instruction; empty if the dataset is not at hand.
    pub prompt: String,
    /// What the judge looks for.
    pub requirement: String,
    /// The source images, relative to the dataset folder; none if the dataset is not at hand.
    #[serde(rename = "image", with = "one_or_several")]
    pub images: Vec<String>,
    /// The refill round; 0 is the first draw.
    pub round: u32,
    /// The policy that sampled it.
    pub policy: Option<PolicyStatus>,
    /// Who sampled it.
    pub sampled_by: Option<String>,
    /// Seconds that took.
    pub sampled_s: Option<f64>,
    /// Who judged it.
    pub scored_by: Option<String>,
    /// Seconds that took.
    pub scored_s: Option<f64>,
    /// Who is at it now.
    pub at_work: Option<String>,
    /// Mean reward.
    pub reward_mean: Option<f64>,
    /// Why it was given up.
    pub dropped: Option<String>,
    /// Its pictures as blobs, with the workers that may hold them; told if it is asked for alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<GroupPictures<BlobRef>>,
    /// Its candidates, once they have scores.
    pub candidates: Vec<CandidateView>,
}

/// A scored candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateView {
    /// Weighted mean of the terms, in 0..1.
    pub reward: f64,
    /// Its advantage, if the group was trained on.
    pub advantage: Option<f64>,
    /// The image.
    pub image: Option<ContentHash>,
    /// What the judges said: p(0..5) and entropy of each.
    pub terms: Vec<TermScore>,
}

/// What a committed iteration left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionView {
    /// Which one.
    pub iteration: Iteration,
    /// Hash of the old policy's adapter, which samples next; absent is the bare base model.
    pub version: Option<String>,
    /// Hash of the learner's state.
    pub state: Option<String>,
    /// Whether a durable checkpoint in the run folder holds it.
    pub checkpointed: bool,
    /// The EMA adapter that the checkpoint exported.
    pub ema_adapter: Option<String>,
    /// Mean reward of the iteration's samples.
    pub reward_mean: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_found_by_name() {
        for stage in GroupStage::ALL {
            assert_eq!(GroupStage::from_name(stage.as_str()), Some(stage));
        }
        assert_eq!(GroupStage::from_name("lost"), None);
    }
}
