//! `retouch samples`: the same held-out pairs edited with the adapters that a run exports on its way.
//!
//! Everything lies in the run folder's `samples/heldout/`, in order: `pairs.json` says what the pairs are, `source/` and
//! `wanted/` have their images, and a folder for each iteration the edits, `000000` those of the base. From these a grid
//! `samples/heldout_<iteration>.png` is drawn, and the report's film strips.
//!
//! No part of a run waits for this or reads it (A9): it only reads what a run has exported.

mod film;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use image::RgbImage;
use retouch_coordinator::{
    store::Reader,
    tensorboard::{Picture, add_pictures},
};
use retouch_evaluation::{Pair, PairEditor};
use retouch_proto::{
    ContentHash, Iteration, RunConfig, RunFolder, config::DeviceName, saved_group::SavedGroup,
};
use retouch_worker::process;

pub(crate) use self::film::{Film, Strip};
use crate::{
    control::{recorded_config, run_folders},
    group_sheet::group_sheet,
    heldout, memory,
    output::remark,
    picture,
    show::now_unix_ms,
};

/// The iteration that stands for the base.
const BASE: Iteration = Iteration(0);

/// Edit held-out pairs with the adapters of a run.
///
/// Edits the first held-out pairs (samples.pairs) with the EMA adapter of every `samples.every`
/// iterations that the run has exported and that has no pictures yet, and draws a grid of them:
/// samples/heldout_000010.png in the run folder, with source, base and all iterations so far.
/// TensorBoard and the report show them too. `launch` does this by itself while the run goes on;
/// on a cluster, give this command at any time.
///
/// Example:
///
///   retouch samples runs/first
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SamplesArgs {
    /// The run's folder.
    #[arg(value_name = "RUN_FOLDER", add = run_folders())]
    folder: PathBuf,
    /// Where to compute, instead of the first device of `model.device`: `cpu` or `cuda:N`.
    #[arg(long)]
    device: Option<DeviceName>,
    /// End when the process with this id ends, and leave the processor to others.
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

pub(crate) fn run(args: SamplesArgs) -> anyhow::Result<()> {
    if let Some(parent) = args.parent {
        process::die_with_parent(parent)?;
        memory::yield_to_others();
    }
    let folder = RunFolder::new(args.folder);
    let config = recorded_config(&folder)?;
    let device = args.device.unwrap_or_else(|| config.model.device.first());
    let drawn = draw(&config, &folder, device)?;
    match drawn.last() {
        Some(newest) => remark!("{}", grid_file(&folder, *newest).display()),
        None => remark!("{}", nothing_due(config.samples.every)),
    }
    Ok(())
}

fn nothing_due(every: u32) -> String {
    match every {
        0 => "samples.every = 0: no pictures are drawn".to_owned(),
        every => format!(
            "every exported adapter that is due has its pictures; one is due every {every} iterations (samples.every)"
        ),
    }
}

/// Where an iteration's grid lies.
fn grid_file(folder: &RunFolder, iteration: Iteration) -> PathBuf {
    folder
        .samples()
        .join(format!("heldout_{:06}.png", iteration.0))
}

/// Draws what is due; gives the iterations.
///
/// # Errors
/// If the record, the dataset, the editor or an adapter can't be read, or pictures not be written.
pub(crate) fn draw(
    config: &RunConfig,
    folder: &RunFolder,
    device: DeviceName,
) -> anyhow::Result<Vec<Iteration>> {
    let due = due(config, folder)?;
    if due.is_empty() {
        return Ok(Vec::new());
    }
    let pairs = heldout::read_first_pairs(config, config.samples.pairs as usize)?;
    let film = Film::begin(folder, &pairs)?;
    let editor = PairEditor::load(config, device)?;
    if !film.has(BASE) {
        film.add(BASE, &editor.edit_all(&pairs, None)?)?;
    }
    for (iteration, adapter) in &due {
        draw_one(config, folder, &film, &editor, &pairs, *iteration, adapter)?;
    }
    Ok(due.into_iter().map(|(iteration, _)| iteration).collect())
}

/// The exported adapters that have no pictures and are to have some, oldest first.
///
/// # Errors
/// If the record can't be read.
pub(crate) fn due(
    config: &RunConfig,
    folder: &RunFolder,
) -> anyhow::Result<Vec<(Iteration, ContentHash)>> {
    let every = config.samples.every;
    if every == 0 || !folder.adapters().is_dir() {
        return Ok(Vec::new());
    }
    let record = Reader::open(folder.path())?;
    let committed = record.committed()?.iteration;
    let mut adapters = record.adapters()?;
    adapters.retain(|(iteration, _)| *iteration <= committed);
    let iterations = adapters.iter().map(|(iteration, _)| *iteration);
    let chosen = first_of_each(every, iterations);
    adapters.retain(|(iteration, adapter)| {
        let is_there = || folder.adapter(&adapter.to_string()).is_dir();
        chosen.contains(iteration) && !Film::of(folder).has(*iteration) && is_there()
    });
    adapters.dedup_by_key(|(iteration, _)| *iteration);
    Ok(adapters)
}

/// Of iterations in rising order the first at or after each multiple of `every`: checkpoints need not fall on them.
fn first_of_each(every: u32, iterations: impl Iterator<Item = Iteration>) -> Vec<Iteration> {
    let mut chosen: Vec<Iteration> = Vec::new();
    for iteration in iterations {
        let last = chosen.last().map_or(0, |last| last.0 / every);
        if iteration.0 / every > last {
            chosen.push(iteration);
        }
    }
    chosen
}

fn draw_one(
    config: &RunConfig,
    folder: &RunFolder,
    film: &Film,
    editor: &PairEditor,
    pairs: &[Pair],
    iteration: Iteration,
    adapter: &ContentHash,
) -> anyhow::Result<()> {
    let path = folder.adapter(&adapter.to_string());
    let adapter = editor.adapter(&path)?;
    film.add(iteration, &editor.edit_all(pairs, Some(&adapter))?)?;
    let title = vec![
        format!(
            "{}: held-out pairs up to iteration {iteration}",
            config.name
        ),
        format!(
            "model {}, data {}, {}, seed {}, retouch {}",
            config.model.path,
            config.dataset.path,
            editor.sampling(),
            config.seed,
            env!("CARGO_PKG_VERSION"),
        ),
    ];
    let grid = film.grid(title, iteration)?;
    picture::save(&grid, &grid_file(folder, iteration))?;
    let mut pictures = vec![for_tensorboard("heldout/pairs", iteration, &grid)?];
    pictures.extend(newest_group(folder)?);
    let added = add_pictures(&folder.events(), &pictures, now_unix_ms());
    added.with_context(|| format!("can't write {}", folder.events().display()))
}

/// The sheet of the newest group that is kept, if one is.
fn newest_group(folder: &RunFolder) -> anyhow::Result<Option<Picture>> {
    let groups = folder.saved_groups();
    let Some(iteration) = groups.iterations().pop() else {
        return Ok(None);
    };
    // It may just have been thinned out.
    let Ok((group, pictures)) = SavedGroup::read(&groups.of(iteration)) else {
        return Ok(None);
    };
    let sheet = group_sheet(&group, &pictures)?;
    for_tensorboard("groups/candidates", iteration, &sheet).map(Some)
}

fn for_tensorboard(tag: &str, iteration: Iteration, image: &RgbImage) -> anyhow::Result<Picture> {
    Ok(Picture {
        tag: tag.to_owned(),
        step: iteration.0,
        size: image.dimensions(),
        png: picture::png(image)?,
    })
}

/// How long one call of the command may take: it loads an editor and edits a few pairs.
pub(crate) const DRAW_MAX: Duration = Duration::from_secs(3600);

/// The files of a folder that are pictures, in the order of their names.
fn pictures_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "png"));
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_checkpoint_at_or_after_each_multiple_has_pictures() {
        let chosen = |every, iterations: &[u32]| -> Vec<u32> {
            let iterations = iterations.iter().copied().map(Iteration);
            let chosen = first_of_each(every, iterations);
            chosen.into_iter().map(|iteration| iteration.0).collect()
        };
        assert_eq!(chosen(10, &[10, 20, 30]), [10, 20, 30]);
        assert_eq!(chosen(10, &[4, 8, 12, 16, 20]), [12, 20]);
        assert_eq!(chosen(10, &[50, 51, 100]), [50, 100]);
        assert_eq!(chosen(1, &[1, 2, 2, 3]), [1, 2, 3]);
        assert_eq!(chosen(10, &[1, 2, 3]), [0; 0]);
    }

    #[test]
    fn nothing_is_due_where_it_is_off_or_nothing_was_exported() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::new(place.path());
        let mut config = RunConfig::default();
        assert_eq!(due(&config, &folder).expect("no record is read"), []);
        fs::create_dir(folder.adapters()).expect("a folder");
        config.samples.every = 0;
        assert_eq!(due(&config, &folder).expect("no record is read"), []);
        config.samples.every = 10;
        assert!(due(&config, &folder).is_err(), "there is no record");
    }
}
