//! A group as it lies on disk with its pictures: in the run folder one of each iteration, and wherever
//! `retouch groups --save` is told to write one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    files::{beside, whole_folder},
    ids::{GroupId, Iteration},
    limits::{SOURCES_MAX, STALENESS_MAX},
    run_folder::iterations_in,
    task::TermScore,
};

/// The file that says what the pictures are.
pub const GROUP_FILE: &str = "group.json";

/// A scored group: the content of [`GROUP_FILE`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedGroup {
    /// Its name.
    pub group: GroupId,
    /// The instruction.
    pub prompt: String,
    /// What the judge looked for.
    pub requirement: String,
    /// In sample order.
    pub candidates: Vec<SavedCandidate>,
}

/// One candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedCandidate {
    /// Its picture, beside the file.
    pub picture: String,
    /// Weighted mean of the terms, in 0..1.
    pub reward: f64,
    /// Its advantage; absent where that was not known yet, or the group was not trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advantage: Option<f64>,
    /// What the judges said: p(0..5) and entropy of each.
    pub terms: Vec<TermScore>,
}

/// The pictures of a group: encoded, or where they can be had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPictures<B> {
    /// The source images.
    pub sources: Vec<B>,
    /// The candidates, in sample order.
    pub candidates: Vec<B>,
}

/// The name of a source image's picture, as the model saw it.
pub fn source_file(index: usize) -> String {
    match index {
        0 => "source.png".to_owned(),
        index => format!("source_{index}.png"),
    }
}

/// Iterations within which a folder that is not finished may be somebody's work: more than are ever open at once.
const UNFINISHED_MAX: u32 = 2 * STALENESS_MAX as u32;

/// The name of a candidate's picture.
pub fn candidate_file(sample: usize) -> String {
    format!("candidate_{sample:02}.png")
}

impl SavedGroup {
    /// Writes the group and its pictures into `folder`, which appears whole or not at all; one that is there already stays
    /// as it is.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write<B: AsRef<[u8]>>(
        &self,
        folder: &Path,
        pictures: &GroupPictures<B>,
    ) -> io::Result<()> {
        // Of this process alone: another may write the same folder at the same time.
        let unfinished = beside(folder, &format!("partial{}", std::process::id()));
        let fill = |folder: &Path| self.write_files(folder, pictures);
        match whole_folder(folder, &unfinished, |error| error, fill) {
            Err(_) if folder.join(GROUP_FILE).exists() => Ok(()),
            written => written,
        }
    }

    fn write_files<B: AsRef<[u8]>>(
        &self,
        folder: &Path,
        pictures: &GroupPictures<B>,
    ) -> io::Result<()> {
        for (index, picture) in pictures.sources.iter().enumerate() {
            fs::write(folder.join(source_file(index)), picture)?;
        }
        for (candidate, picture) in self.candidates.iter().zip(&pictures.candidates) {
            fs::write(folder.join(&candidate.picture), picture)?;
        }
        let text = serde_json::to_string_pretty(self)?;
        fs::write(folder.join(GROUP_FILE), text + "\n")
    }

    /// Reads a group and its pictures.
    ///
    /// # Errors
    /// If a file is missing or broken.
    pub fn read(folder: &Path) -> io::Result<(Self, GroupPictures<Vec<u8>>)> {
        let group: Self = serde_json::from_slice(&fs::read(folder.join(GROUP_FILE))?)?;
        let names = (0..group.candidates.len()).map(candidate_file);
        let pictures = GroupPictures {
            sources: read_sources(folder)?,
            candidates: names
                .map(|name| fs::read(folder.join(name)))
                .collect::<Result<_, _>>()?,
        };
        Ok((group, pictures))
    }
}

fn read_sources(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let paths = (0..SOURCES_MAX).map(|index| folder.join(source_file(index)));
    let there = paths
        .enumerate()
        .take_while(|(index, path)| *index == 0 || path.exists());
    there.map(|(_, path)| fs::read(path)).collect()
}

/// The groups that a run keeps: a folder each, named after the iteration.
#[derive(Clone, Debug)]
pub struct SavedGroups(PathBuf);

impl SavedGroups {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The folder of an iteration's group.
    pub fn of(&self, iteration: Iteration) -> PathBuf {
        self.0.join(iteration.to_string())
    }

    /// The iterations of which a group is kept, oldest first.
    pub fn iterations(&self) -> Vec<Iteration> {
        iterations_in(&self.0)
    }

    /// Keeps a group, and of older iterations' no more than the limit allows: the newest `newest_max`, and of those before
    /// as many again, evenly spread.
    ///
    /// # Errors
    /// If it can't be written, or what is too much not be removed.
    pub fn keep<B: AsRef<[u8]>>(
        &self,
        group: &SavedGroup,
        pictures: &GroupPictures<B>,
        newest_max: usize,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        group.write(&self.of(group.group.iteration), pictures)?;
        self.sweep(group.group.iteration);
        for iteration in superfluous(&self.iterations(), newest_max) {
            match fs::remove_dir_all(self.of(iteration)) {
                // Another worker was first.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
        Ok(())
    }
}

impl SavedGroups {
    /// Removes what processes left that were killed while they wrote. A living one writes one of the last iterations.
    fn sweep(&self, now: Iteration) {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let parts = name.to_str().and_then(|name| name.split_once('.'));
            let of: Option<u32> = parts.and_then(|(number, _)| number.parse().ok());
            if of.is_some_and(|of| of.saturating_add(UNFINISHED_MAX) < now.0) {
                // Of no use to anybody, and in nobody's way.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Which of these, oldest first, are too many. A power of two as the distance of old ones, so that what was once removed
/// is never missing later.
fn superfluous(iterations: &[Iteration], newest_max: usize) -> Vec<Iteration> {
    let older = &iterations[..iterations.len().saturating_sub(newest_max)];
    let stays = |distance: u32| move |iteration: &&Iteration| iteration.0.is_multiple_of(distance);
    let distances = (0..u32::BITS).map(|power| 1 << power);
    let mut fitting =
        distances.filter(|distance| older.iter().filter(stays(*distance)).count() <= newest_max);
    let distance = fitting.next().unwrap_or(1 << (u32::BITS - 1));
    let gone = older.iter().filter(|iteration| !stays(distance)(iteration));
    gone.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(iteration: u32) -> (SavedGroup, GroupPictures<Vec<u8>>) {
        let term = TermScore {
            name: "edit".into(),
            value: 0.5,
            probabilities: [0.0, 0.1, 0.2, 0.3, 0.4, 0.0],
            entropy: 1.25,
        };
        let candidate = |sample| SavedCandidate {
            picture: candidate_file(sample),
            reward: 0.5,
            advantage: (sample == 1).then_some(-0.25),
            terms: vec![term.clone()],
        };
        let (iteration, index) = (Iteration(iteration), 7);
        let group = SavedGroup {
            group: GroupId { iteration, index },
            prompt: "把球变成红色".into(),
            requirement: String::new(),
            candidates: (0..2).map(candidate).collect(),
        };
        let pictures = GroupPictures {
            sources: vec![vec![1], vec![4]],
            candidates: vec![vec![2], vec![3]],
        };
        (group, pictures)
    }

    #[test]
    fn what_was_written_is_read_again_and_never_replaced() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("3");
        let (group, pictures) = group(3);
        group.write(&folder, &pictures).unwrap();
        let names = [
            "candidate_00.png",
            "candidate_01.png",
            GROUP_FILE,
            "source.png",
            "source_1.png",
        ];
        assert!(names.iter().all(|name| folder.join(name).is_file()));
        assert_eq!(
            SavedGroup::read(&folder).unwrap(),
            (group.clone(), pictures)
        );
        group
            .write(&folder, &GroupPictures::<Vec<u8>>::default())
            .unwrap();
        assert_eq!(SavedGroup::read(&folder).unwrap().1.sources[0], [1]);
        let left = fs::read_dir(place.path()).unwrap().count();
        assert_eq!(left, 1, "nothing unfinished stays");
    }

    #[test]
    fn a_group_that_cant_be_written_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "").unwrap();
        let (group, pictures) = group(3);
        let error = group.write(&place.path().join("file/3"), &pictures);
        assert!(error.is_err());
        let (mut broken, pictures) = (group, pictures);
        broken.candidates[1].picture = "no/such/folder.png".into();
        assert!(broken.write(&place.path().join("3"), &pictures).is_err());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_newest_stay_and_older_ones_are_thinned_evenly() {
        let place = tempfile::tempdir().unwrap();
        let groups = SavedGroups::new(place.path().join("groups"));
        for iteration in 1..=40 {
            let (group, pictures) = group(iteration);
            groups.keep(&group, &pictures, 4).unwrap();
            assert!(groups.iterations().len() <= 8);
        }
        let kept: Vec<u32> = groups.iterations().iter().map(|kept| kept.0).collect();
        assert_eq!(kept, [8, 16, 24, 32, 37, 38, 39, 40]);
    }

    #[test]
    fn what_killed_processes_left_is_swept_up() {
        let place = tempfile::tempdir().unwrap();
        let groups = SavedGroups::new(place.path().to_owned());
        for name in ["1.partial77", "90.partial77"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        let (group, pictures) = group(100);
        groups.keep(&group, &pictures, 4).unwrap();
        let left = |name: &str| place.path().join(name).exists();
        assert!(!left("1.partial77") && left("90.partial77") && left("100"));
    }

    #[test]
    fn what_is_thinned_is_a_function_of_what_is_there() {
        let all: Vec<Iteration> = (1..=100).map(Iteration).collect();
        let gone = superfluous(&all, 10);
        let left: Vec<u32> = all
            .iter()
            .filter(|iteration| !gone.contains(iteration))
            .map(|iteration| iteration.0)
            .collect();
        assert_eq!(left[..5], [16, 32, 48, 64, 80]);
        assert_eq!(left[5..], (91..=100).collect::<Vec<u32>>());
        assert_eq!(superfluous(&all, 100), []);
        assert_eq!(superfluous(&[], 1), []);
    }
}
