//! What held-out pairs look like over a run's iterations, as it lies on disk.

use std::{
    borrow::{Borrow, Cow},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use image::RgbImage;
use retouch_evaluation::{
    Pair,
    sheet::{Cell, Row, Sheet},
};
use retouch_proto::{
    Iteration, RunFolder,
    files::{PUBLIC, beside, whole_folder, write_whole},
    run_folder::{SAMPLES, iterations_in},
};
use serde::{Deserialize, Serialize};

use super::{BASE, pictures_in};
use crate::picture;

const FOLDER: &str = "heldout";
const PAIRS: &str = "pairs.json";
const SOURCE: &str = "source";
const WANTED: &str = "wanted";
/// Iterations in a grid beside the base: more would make its pictures small wherever it is shown.
const GRID_ITERATIONS_MAX: usize = 6;
/// Iterations in a strip of the report, which can be scrolled.
const STRIP_ITERATIONS_MAX: usize = 12;

/// A pair, as far as its pictures do not say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Described {
    prompt: String,
    task: String,
}

/// The folder of all pictures.
pub(crate) struct Film {
    folder: PathBuf,
}

/// One pair's pictures in the order of time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Strip {
    pub(crate) prompt: String,
    pub(crate) task: String,
    /// What each is, and its path relative to the run folder.
    pub(crate) frames: Vec<(String, String)>,
}

impl Film {
    pub(crate) fn of(folder: &RunFolder) -> Self {
        Self {
            folder: folder.samples().join(FOLDER),
        }
    }

    /// Writes down what the pairs are.
    pub(super) fn begin(folder: &RunFolder, pairs: &[Pair]) -> anyhow::Result<Self> {
        let film = Self::of(folder);
        film.write(SOURCE, pairs.iter().map(Pair::shown_sources))?;
        let wanted: Option<Vec<&RgbImage>> = pairs.iter().map(|p| p.target.as_ref()).collect();
        if let Some(wanted) = wanted {
            film.write(WANTED, wanted)?;
        }
        let described = pairs.iter().map(|pair| Described {
            prompt: pair.prompt.clone(),
            task: pair.task.clone(),
        });
        let text = serde_json::to_string_pretty(&described.collect::<Vec<_>>())?;
        let file = film.folder.join(PAIRS);
        write_whole(&file, text + "\n", PUBLIC)
            .with_context(|| format!("can't write {}", file.display()))?;
        Ok(film)
    }

    /// Whether an iteration's pictures are there.
    pub(super) fn has(&self, iteration: Iteration) -> bool {
        self.folder.join(name(iteration)).is_dir()
    }

    /// Adds an iteration's pictures.
    pub(super) fn add(&self, iteration: Iteration, edits: &[RgbImage]) -> anyhow::Result<()> {
        self.write(&name(iteration), edits)
    }

    /// Writes a folder of pictures, which appears whole or not at all; one that is there stays as it is.
    fn write(
        &self,
        name: &str,
        pictures: impl IntoIterator<Item: Borrow<RgbImage>>,
    ) -> anyhow::Result<()> {
        let folder = self.folder.join(name);
        if folder.is_dir() {
            return Ok(());
        }
        let wrap = |error| {
            let context = format!("can't write {}", folder.display());
            anyhow::Error::new(error).context(context)
        };
        whole_folder(&folder, &beside(&folder, "partial"), wrap, |unfinished| {
            let mut numbered = pictures.into_iter().enumerate();
            numbered.try_for_each(|(index, picture)| {
                picture::save(
                    picture.borrow(),
                    &unfinished.join(format!("{index:03}.png")),
                )
            })
        })
    }

    /// The iterations that have pictures, oldest first; the base is none.
    fn iterations(&self) -> Vec<Iteration> {
        let mut iterations = iterations_in(&self.folder);
        iterations.retain(|iteration| *iteration != BASE);
        iterations
    }

    /// Headings and folders of what is shown, from the source to what was wanted.
    fn columns(&self, upto: Iteration, iterations_max: usize) -> Vec<(String, PathBuf)> {
        let mut iterations = self.iterations();
        iterations.retain(|iteration| *iteration <= upto);
        let mut columns = vec![
            ("source".to_owned(), self.folder.join(SOURCE)),
            ("base".to_owned(), self.folder.join(name(BASE))),
        ];
        let shown = thinned(&iterations, iterations_max);
        columns.extend(shown.into_iter().map(|iteration| {
            let heading = format!("iteration {iteration}");
            (heading, self.folder.join(name(iteration)))
        }));
        let wanted = self.folder.join(WANTED);
        columns.extend(wanted.is_dir().then(|| (WANTED.to_owned(), wanted)));
        columns
    }

    fn pairs(&self) -> anyhow::Result<Vec<Described>> {
        let file = self.folder.join(PAIRS);
        let context = || format!("can't read {}", file.display());
        let text = fs::read(&file).with_context(context)?;
        serde_json::from_slice(&text).with_context(context)
    }

    /// Rows are pairs; columns are the source, the base, iterations up to this one, and what was wanted.
    pub(super) fn grid(&self, title: Vec<String>, upto: Iteration) -> anyhow::Result<RgbImage> {
        let (headings, folders): (Vec<String>, Vec<PathBuf>) =
            self.columns(upto, GRID_ITERATIONS_MAX).into_iter().unzip();
        let columns = folders.iter().map(|folder| read_all(folder));
        let columns: Vec<Vec<RgbImage>> = columns.collect::<Result<_, _>>()?;
        let rows = self.pairs()?.into_iter().enumerate().map(|(index, pair)| {
            let cells = columns.iter().map(|pictures| Cell {
                picture: pictures.get(index).map(Cow::Borrowed),
                lines: Vec::new(),
            });
            let task = Some(pair.task).filter(|task| !task.is_empty() && *task != pair.prompt);
            Row {
                cells: cells.collect(),
                caption: std::iter::once(pair.prompt).chain(task).collect(),
            }
        });
        let sheet = Sheet {
            title,
            headings,
            rows: rows.collect(),
            abreast: 1,
        };
        Ok(sheet.draw())
    }

    /// Every pair's strip, for a page in the run folder; none where nothing was drawn.
    pub(crate) fn strips(&self) -> Vec<Strip> {
        let newest = self.iterations().pop();
        let (Some(newest), Ok(pairs)) = (newest, self.pairs()) else {
            return Vec::new();
        };
        let columns = self.columns(newest, STRIP_ITERATIONS_MAX);
        let strips = pairs.into_iter().enumerate().map(|(index, pair)| {
            let frames = columns.iter().filter_map(|(heading, folder)| {
                let file = folder.join(format!("{index:03}.png"));
                let inner = file.strip_prefix(&self.folder).ok()?.to_str()?;
                let path = format!("{SAMPLES}/{FOLDER}/{inner}");
                file.is_file().then(|| (heading.clone(), path))
            });
            Strip {
                prompt: pair.prompt,
                task: pair.task,
                frames: frames.collect(),
            }
        });
        strips.collect()
    }
}

fn name(iteration: Iteration) -> String {
    format!("{:06}", iteration.0)
}

fn read_all(folder: &Path) -> anyhow::Result<Vec<RgbImage>> {
    let files = pictures_in(folder).into_iter();
    let read = files.map(|file| {
        let image = image::open(&file).with_context(|| format!("can't read {}", file.display()));
        Ok(image?.into_rgb8())
    });
    read.collect()
}

/// At most `max` of these, evenly spread, the first and the last among them.
fn thinned(iterations: &[Iteration], max: usize) -> Vec<Iteration> {
    let count = iterations.len();
    if count <= max {
        return iterations.to_vec();
    }
    let place = |index: usize| index * (count - 1) / (max - 1);
    (0..max).map(|index| iterations[place(index)]).collect()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn picture(colour: [u8; 3]) -> RgbImage {
        RgbImage::from_pixel(8, 8, Rgb(colour))
    }

    fn pair(prompt: &str, target: Option<RgbImage>) -> Pair {
        Pair {
            prompt: prompt.to_owned(),
            requirement: String::new(),
            task: "recolour".to_owned(),
            sources: picture([1, 0, 0]).into(),
            target,
            oracle: None,
        }
    }

    fn film(place: &tempfile::TempDir, target: Option<RgbImage>) -> Film {
        let pairs = [pair("first", target.clone()), pair("第二", target)];
        Film::begin(&RunFolder::new(place.path()), &pairs).expect("a film")
    }

    #[test]
    fn a_strip_leads_from_the_source_over_all_iterations_to_what_was_wanted() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let film = film(&place, Some(picture([9, 0, 0])));
        assert_eq!(film.strips(), [], "there are no edits yet");
        for (iteration, shade) in [(0, 2), (20, 4), (10, 3)] {
            let edits = [picture([shade, 0, 0]), picture([shade, 0, 0])];
            film.add(Iteration(iteration), &edits).expect("written");
        }
        let strips = film.strips();
        assert_eq!(strips[1].prompt, "第二");
        let headings: Vec<&str> = strips[1]
            .frames
            .iter()
            .map(|(heading, _)| &**heading)
            .collect();
        assert_eq!(
            headings,
            ["source", "base", "iteration 10", "iteration 20", "wanted"]
        );
        assert_eq!(strips[1].frames[2].1, "samples/heldout/000010/001.png");
        for (_, path) in strips.iter().flat_map(|strip| &strip.frames) {
            assert!(place.path().join(path).is_file(), "{path}");
        }
    }

    #[test]
    fn a_grid_has_the_iterations_up_to_its_own() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let film = film(&place, None);
        for (iteration, shade) in [(0, 2), (10, 3), (20, 4)] {
            let edits = [picture([shade, 0, 0]), picture([shade, 0, 0])];
            film.add(Iteration(iteration), &edits).expect("written");
        }
        let has = |upto, shade| {
            let grid = film
                .grid(vec!["a run".to_owned()], Iteration(upto))
                .expect("a grid");
            grid.pixels().any(|pixel| *pixel == Rgb([shade, 0, 0]))
        };
        for shade in [1, 2, 3] {
            assert!(has(10, shade), "{shade}");
        }
        assert!(!has(10, 4) && has(20, 4));
    }

    #[test]
    fn what_is_drawn_stays_as_it_is() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let film = film(&place, None);
        let killed = film.folder.join("000010.partial");
        fs::create_dir_all(&killed).expect("a folder");
        fs::write(killed.join("007.png"), "cut short").expect("a file");
        assert!(!film.has(Iteration(10)));
        film.add(Iteration(10), &[picture([3, 0, 0])])
            .expect("written");
        film.add(Iteration(10), &[picture([4, 0, 0])])
            .expect("left alone");
        assert!(film.has(Iteration(10)));
        let read = read_all(&film.folder.join("000010")).expect("pictures");
        assert_eq!(read, [picture([3, 0, 0])]);
    }

    #[test]
    fn many_iterations_are_thinned_evenly_with_both_ends() {
        let all: Vec<Iteration> = (1..=30).map(Iteration).collect();
        let thinned: Vec<u32> = thinned(&all, 6)
            .iter()
            .map(|iteration| iteration.0)
            .collect();
        assert_eq!(thinned, [1, 6, 12, 18, 24, 30]);
        assert_eq!(super::thinned(&all[..3], 6), all[..3]);
    }
}
