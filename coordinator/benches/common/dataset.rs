//! A dataset for a whole coordinator.

use std::path::Path;
use std::{fs, io};

/// Makes one of this many rows.
pub(crate) fn write(folder: &Path, rows: usize) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("a.png"), "")?;
    let row =
        "{\"prompt\": \"make it blue\", \"image\": \"a.png\", \"requirement\": \"it is blue\"}\n";
    fs::write(folder.join("train_metadata.jsonl"), row.repeat(rows))
}
