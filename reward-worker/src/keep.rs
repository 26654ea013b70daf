//! One group of each iteration is kept in the run folder, for people: its pictures pass through here anyway, and its
//! scores are made here.
//!
//! Nothing waits for it and no bit of a result depends on it (A9); what can't be written is a warning.

use std::sync::Mutex;

use bytes::Bytes;
use retouch_proto::{
    Iteration, RunFolder,
    saved_group::{GroupPictures, SavedCandidate, SavedGroup, candidate_file},
    task::{SampleScore, ScoreTask},
};
use tokio::task::spawn_blocking;

/// Keeps the first group of an iteration that is scored.
#[derive(Debug)]
pub(crate) struct Keeper {
    folder: RunFolder,
    /// `samples.keep_groups`; 0 keeps nothing.
    newest_max: usize,
    last: Mutex<Option<Iteration>>,
}

impl Keeper {
    pub(crate) fn new(folder: RunFolder, newest_max: u32) -> Self {
        Self {
            folder,
            newest_max: newest_max as usize,
            last: Mutex::default(),
        }
    }

    /// Writes the group in the background, if it is the one.
    pub(crate) fn offer(
        &self,
        task: &ScoreTask,
        scores: &[SampleScore],
        pictures: GroupPictures<Bytes>,
    ) {
        if !self.wants(task.group.iteration) {
            return;
        }
        let (groups, newest_max) = (self.folder.saved_groups(), self.newest_max);
        let group = saved(task, scores);
        spawn_blocking(move || {
            if let Err(error) = groups.keep(&group, &pictures, newest_max) {
                tracing::warn!(%error, group = %group.group, "the pictures of a group are not kept");
            }
        });
    }

    /// Whether it is the iteration's first, in a run folder that is here: workers of other machines may have none.
    fn wants(&self, iteration: Iteration) -> bool {
        let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
        let wants = self.newest_max > 0
            && *last != Some(iteration)
            && self.folder.record().is_file()
            && !self.folder.saved_groups().of(iteration).exists();
        if wants {
            *last = Some(iteration);
        }
        wants
    }
}

fn saved(task: &ScoreTask, scores: &[SampleScore]) -> SavedGroup {
    let candidates = scores.iter().enumerate();
    let candidates = candidates.map(|(sample, score)| SavedCandidate {
        picture: candidate_file(sample),
        reward: score.reward,
        // Known once the iteration is sealed, and in the record.
        advantage: None,
        terms: score.terms.clone(),
    });
    SavedGroup {
        group: task.group,
        prompt: task.prompt.clone(),
        requirement: task.requirement.clone(),
        candidates: candidates.collect(),
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::{BlobRef, ContentHash, GroupId};

    use super::*;

    fn task(iteration: u32, index: u32) -> ScoreTask {
        let iteration = Iteration(iteration);
        ScoreTask {
            group: GroupId { iteration, index },
            prompt: "make it red".into(),
            requirement: String::new(),
            sources_png: vec![BlobRef {
                hash: ContentHash::of(b"source"),
                size_bytes: 6,
                owners: Vec::new(),
            }],
            edits_png: Vec::new(),
        }
    }

    fn offer(keeper: &Keeper, iteration: u32, index: u32) {
        let score = SampleScore {
            reward: 0.25,
            terms: Vec::new(),
        };
        let pictures = GroupPictures {
            sources: vec![Bytes::from_static(b"source")],
            candidates: vec![Bytes::from_static(b"edit")],
        };
        keeper.offer(&task(iteration, index), &[score], pictures);
    }

    /// Ends when all is written: a runtime waits for its blocking threads.
    fn run(work: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(async { work() });
    }

    #[test]
    fn the_first_scored_group_of_an_iteration_is_kept() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(place.path());
        std::fs::write(folder.record(), "").unwrap();
        let keeper = Keeper::new(folder.clone(), 10);
        run(|| {
            offer(&keeper, 1, 5);
            offer(&keeper, 1, 0);
            offer(&keeper, 2, 3);
        });
        // Another worker's, or another life's.
        run(|| offer(&Keeper::new(folder.clone(), 10), 1, 2));
        let read = |iteration| {
            let folder = folder.saved_groups().of(Iteration(iteration));
            SavedGroup::read(&folder).unwrap()
        };
        let (group, pictures) = read(1);
        assert_eq!((group.group.index, group.candidates[0].reward), (5, 0.25));
        assert_eq!(pictures.candidates, [b"edit".to_vec()]);
        assert_eq!(read(2).0.group.index, 3);
    }

    #[test]
    fn nothing_is_kept_where_it_is_off_or_the_run_folder_is_not_here() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(place.path());
        run(|| offer(&Keeper::new(folder.clone(), 10), 1, 0));
        std::fs::write(folder.record(), "").unwrap();
        run(|| offer(&Keeper::new(folder.clone(), 0), 1, 0));
        assert!(!folder.samples().exists());
    }

    #[test]
    fn a_folder_that_cant_be_written_disturbs_nothing() {
        let place = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(place.path());
        std::fs::write(folder.record(), "").unwrap();
        std::fs::write(folder.samples(), "no folder").unwrap();
        run(|| offer(&Keeper::new(folder.clone(), 10), 1, 0));
        assert_eq!(std::fs::read(folder.samples()).unwrap(), b"no folder");
    }
}
