//! What people find in a run's record: in the running coordinator, or beside it in the run folder.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use retouch_dataset::{Row, Split};
use retouch_proto::lookup::{CandidateView, GroupQuery, GroupStage, GroupView, VersionView};
use retouch_proto::saved_group::GroupPictures;
use retouch_proto::status::{Event, PolicyStatus, RunStatus};
use retouch_proto::task::RolloutResult;
use retouch_proto::{BlobAddress, BlobRef, ContentHash, GroupId, RunConfig, RunFolder};

use crate::store::{Found, Reader, ScoreRow, StoreError};

/// Who works on which group now.
pub type AtWork = BTreeMap<GroupId, String>;

/// Looks things up in one run's record.
#[derive(Clone)]
pub struct Lookup {
    run_dir: PathBuf,
    rows: Arc<[Row]>,
    without_rows: Option<String>,
}

impl Lookup {
    /// For a run whose dataset is at hand.
    pub fn new(run_dir: PathBuf, rows: Arc<[Row]>) -> Self {
        Self {
            run_dir,
            rows,
            without_rows: None,
        }
    }

    /// For a run folder that nobody serves. Without its dataset, prompts stay empty, for which
    /// [`Lookup::without_rows`] has the reason.
    pub fn of_folder(run_dir: &Path) -> Self {
        let (rows, without_rows) = match recorded_rows(run_dir) {
            Ok(rows) => (rows, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        Self {
            without_rows,
            ..Self::new(run_dir.to_owned(), rows.into())
        }
    }

    /// Why instructions and images are not known, if they are not.
    pub fn without_rows(&self) -> Option<&str> {
        self.without_rows.as_deref()
    }

    /// Groups that the query describes, newest iteration first.
    ///
    /// # Errors
    /// If the record can't be read.
    pub fn groups(
        &self,
        query: &GroupQuery,
        at_work: &AtWork,
    ) -> Result<Vec<GroupView>, StoreError> {
        let reader = Reader::open(&self.run_dir)?;
        let prompt = query.prompt.as_ref().map(|prompt| prompt.to_lowercase());
        let mut found = Vec::new();
        reader.find(query, |group| {
            let view = self.view(&group, at_work);
            let says = |prompt: &String| view.prompt.to_lowercase().contains(prompt);
            let wanted = prompt.as_ref().is_none_or(says)
                && query.stage.is_none_or(|stage| stage == view.state);
            if wanted {
                found.push((group, view));
            }
            if found.len() < query.limit as usize {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        let scored = found.into_iter().map(|(group, mut view)| {
            let scores = reader.scores(group.attempt, group.group.index)?;
            view.candidates = candidates(&group, scores);
            view.pictures = group
                .sampled
                .filter(|_| query.index.is_some())
                .map(pictures);
            Ok(view)
        });
        scored.collect()
    }

    /// What each committed iteration left behind, oldest first.
    ///
    /// # Errors
    /// If the record can't be read.
    pub fn versions(&self) -> Result<Vec<VersionView>, StoreError> {
        Reader::open(&self.run_dir)?.versions()
    }

    /// The last events, oldest first.
    ///
    /// # Errors
    /// If the record can't be read.
    pub fn events(&self, count: usize) -> Result<Vec<Event>, StoreError> {
        Reader::open(&self.run_dir)?.last_events(count)
    }

    fn view(&self, found: &Found, at_work: &AtWork) -> GroupView {
        let row = self.rows.get(found.dataset_row as usize);
        let text = |of: fn(&Row) -> &String| row.map(of).cloned().unwrap_or_default();
        let at_work = at_work
            .get(&found.group)
            .cloned()
            .filter(|_| !found.rewound);
        let timings = found.sampled.as_ref().map(|sampled| sampled.timings);
        GroupView {
            group: found.group,
            state: under_way(found.stage, &at_work),
            rewound: found.rewound,
            dataset_row: found.dataset_row,
            prompt: text(|row| &row.prompt),
            requirement: text(|row| &row.requirement),
            images: row.map(|row| row.images.clone()).unwrap_or_default(),
            round: found.round,
            policy: found.policy.map(|policy| PolicyStatus {
                iteration: policy.iteration,
                version: policy.hash().map(|hash| hash.to_string()),
            }),
            sampled_by: found.sampled_by.clone(),
            sampled_s: timings.map(|t| t.encode_s + t.sample_s + t.decode_s),
            scored_by: found.scored_by.clone(),
            scored_s: found.scoring_s,
            at_work,
            reward_mean: found.reward_mean,
            dropped: found.dropped.clone(),
            pictures: None,
            candidates: Vec::new(),
        }
    }
}

/// The rows of the dataset that the run file in the folder names.
fn recorded_rows(run_dir: &Path) -> Result<Vec<Row>, String> {
    let file = RunFolder::new(run_dir).config();
    let text = std::fs::read_to_string(&file);
    let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
    let config = RunConfig::from_toml(&text).map_err(|error| error.to_string())?;
    let rows = retouch_dataset::read(Path::new(&config.dataset.path), Split::Train);
    rows.map_err(|error| error.to_string())
}

/// The record does not say what is under way; who is at work does.
fn under_way(stage: GroupStage, at_work: &Option<String>) -> GroupStage {
    match stage {
        GroupStage::Queued if at_work.is_some() => GroupStage::Sampling,
        GroupStage::Sampled if at_work.is_some() => GroupStage::Scoring,
        stage => stage,
    }
}

fn candidates(found: &Found, scores: Vec<ScoreRow>) -> Vec<CandidateView> {
    let images: Vec<ContentHash> = found
        .sampled
        .iter()
        .flat_map(|sampled| &sampled.edits_png)
        .map(|image| image.hash)
        .collect();
    let view = |(sample, row): (usize, ScoreRow)| CandidateView {
        reward: row.score.reward,
        advantage: row.advantage,
        image: images.get(sample).copied(),
        terms: row.score.terms,
    };
    scores.into_iter().enumerate().map(view).collect()
}

fn pictures(sampled: RolloutResult) -> GroupPictures<BlobRef> {
    GroupPictures {
        sources: sampled.sources_png,
        candidates: sampled.edits_png,
    }
}

/// Names those who may hold a group's pictures: who sampled it and who judged it, if they still live. The record has no
/// owners, which come and go.
pub fn name_owners(groups: &mut [GroupView], status: &RunStatus) {
    for group in groups {
        let GroupView {
            pictures: Some(pictures),
            sampled_by,
            scored_by,
            ..
        } = group
        else {
            continue;
        };
        let holders = [&*sampled_by, &*scored_by].into_iter().flatten();
        let workers = holders.filter_map(|name| {
            let mut workers = status.workers.iter();
            workers.find(|worker| worker.id.as_str() == name)
        });
        let owners: Vec<BlobAddress> = workers.filter_map(|worker| worker.blobs.clone()).collect();
        let blobs = pictures.sources.iter_mut().chain(&mut pictures.candidates);
        blobs.for_each(|blob| blob.owners.clone_from(&owners));
    }
}

/// Who works on which group, as the status tells it.
pub fn at_work(status: &RunStatus) -> AtWork {
    let worker = |worker: &retouch_proto::status::WorkerStatus| {
        let id = worker.id.to_string();
        let groups = worker.groups.clone();
        groups.into_iter().map(move |group| (group, id.clone()))
    };
    status.workers.iter().flat_map(worker).collect()
}
