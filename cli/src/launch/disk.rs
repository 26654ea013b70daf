//! Whether the run folder's disk has room for what a run will leave there.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use retouch_models::{editor::Layout, lora::flat_len};
use retouch_proto::RunConfig;

use crate::{exit::UsageError, output::remark, show::size};

/// Vectors of an adapter's length in a checkpoint: the learner's state has five, the version one; the exported adapter
/// has two, one for each format.
const VECTORS: u64 = 8;
/// Of checkpoints that a run can't do without: a new one is written before an old one goes.
const NEEDED: u64 = 2;

/// Refuses a disk without room for two checkpoints, and says so of one without room for all that will stay.
pub(super) fn check(config: &RunConfig) -> Result<(), UsageError> {
    // What can't be asked is no reason not to begin.
    let (Some(free), Some(checkpoint)) = (free_bytes(config.run_dir.as_ref()), of_one(config))
    else {
        return Ok(());
    };
    if let Some(warning) = judged(&config.run_dir, free, checkpoint, staying(config))? {
        remark!("{warning}");
    }
    Ok(())
}

fn judged(
    run_dir: &str,
    free: u64,
    checkpoint: u64,
    staying: u64,
) -> Result<Option<String>, UsageError> {
    let (there, all) = (size(free), staying * checkpoint);
    if free < NEEDED * checkpoint {
        return Err(UsageError(format!(
            "run_dir: the disk of {run_dir} has {there} free, a run needs {NEEDED} checkpoints of {}",
            size(checkpoint)
        )));
    }
    Ok((free < all).then(|| {
        format!(
            "the disk of {run_dir} has {there} free, all checkpoints of this run take {}; checkpoint.keep_last says how \
             many stay",
            size(all)
        )
    }))
}

/// Bytes of a checkpoint with its exported adapter; none where the model can't be read, which others say.
fn of_one(config: &RunConfig) -> Option<u64> {
    let layout = Layout::read(config.model.path.as_ref()).ok()?;
    let values = flat_len(&config.lora.adapter, &layout.projections) as u64;
    Some(VECTORS * values * size_of::<f32>() as u64)
}

/// How many checkpoints are there in the end.
fn staying(config: &RunConfig) -> u64 {
    let all = u64::from(
        config
            .iterations
            .div_ceil(config.learner.checkpoint_every.max(1)),
    );
    match u64::from(config.checkpoint.keep_last) {
        0 => all,
        last => all.min(last + u64::from(config.checkpoint.keep_best) + 1),
    }
}

/// What is free for us where the folder is, or will be.
fn free_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir());
    let disk = statvfs(there.unwrap_or(Path::new("."))).ok()?;
    Some(disk.blocks_available() as u64 * disk.fragment_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_stay_as_the_run_file_says() {
        let mut config = RunConfig::default();
        (config.iterations, config.learner.checkpoint_every) = (95, 10);
        (config.checkpoint.keep_last, config.checkpoint.keep_best) = (0, 2);
        assert_eq!(staying(&config), 10);
        config.checkpoint.keep_last = 3;
        assert_eq!(staying(&config), 6);
        config.iterations = 5;
        assert_eq!(staying(&config), 1);
    }

    #[test]
    fn a_disk_has_room_for_two_checkpoints_and_should_for_all() {
        let judged = |free: u64| judged("runs/a", free << 20, 10 << 20, 5);
        let refused = judged(19).expect_err("no room").to_string();
        assert!(
            refused.contains("runs/a has 19.0 MiB free, a run needs 2 checkpoints of 10.0 MiB"),
            "{refused}"
        );
        let warning = judged(20).expect("room for two").expect("not for all");
        assert!(warning.contains("take 50.0 MiB"), "{warning}");
        assert_eq!(judged(50).expect("room for all"), None);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_has_the_room_of_those_above() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inner = folder.path().join("runs/first");
        assert!(free_bytes(&inner).is_some_and(|free| free > 0));
        assert!(free_bytes(Path::new("no/such")).is_some());
    }
}
