//! The rows of a dataset with targets.

use std::path::{Path, PathBuf};

use retouch_dataset::{DatasetError, Row, SourcesLimit, Split, read_with};
use retouch_models::images;

/// An instruction, the images it is about, and what the edit should look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The instruction.
    pub(super) prompt: String,
    /// The source images' files, at least one.
    pub(super) images: Vec<PathBuf>,
    /// The target image's file.
    pub(super) target: PathBuf,
}

/// Reads the rows of a split, all of which must name a target and no more sources than are taken, with images that can
/// be read.
pub(super) fn read_pairs(
    folder: &Path,
    split: Split,
    limit: SourcesLimit,
) -> Result<Vec<Pair>, DatasetError> {
    read_with(folder, split, |row: Row| {
        row.check_limit(limit)?;
        row.check_images(|path| images::open(&folder.join(path)).map(drop))?;
        let target = row
            .target
            .ok_or("row has no \"target\" image, which supervised training learns from")?;
        Ok(Pair {
            prompt: row.prompt,
            images: row.images.iter().map(|path| folder.join(path)).collect(),
            target: folder.join(target),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(lines: &str) -> Result<Vec<Pair>, String> {
        let folder = tempfile::tempdir().unwrap();
        let image = image::RgbImage::new(16, 16);
        image.save(folder.path().join("a.png")).unwrap();
        fs::write(folder.path().join(Split::Train.file_name()), lines).unwrap();
        let pairs = read_pairs(folder.path(), Split::Train, SourcesLimit::Model(2))
            .map_err(|error| error.to_string())?;
        assert!(
            pairs
                .iter()
                .all(|pair| pair.target == folder.path().join("a.png"))
        );
        Ok(pairs)
    }

    #[test]
    fn pairs_are_read_in_order_and_all_have_targets() {
        let row = |prompt: &str| {
            format!("{{\"prompt\":\"{prompt}\",\"image\":\"a.png\",\"target\":\"a.png\"}}\n")
        };
        let pairs = read(&format!("{}\n{}", row("add a dot"), row("remove it"))).unwrap();
        let prompts: Vec<&str> = pairs.iter().map(|pair| &*pair.prompt).collect();
        assert_eq!(prompts, ["add a dot", "remove it"]);
        let several = |count: usize| {
            let images = ["\"a.png\""].repeat(count).join(",");
            row("join them").replacen("\"a.png\"", &format!("[{images}]"), 1)
        };
        let counts = read(&several(2)).unwrap();
        assert_eq!(counts[0].images.len(), 2);
        let error = read(&several(3)).unwrap_err();
        assert!(
            error.contains("jsonl:1: image names 3 files, the base model takes 2"),
            "{error}"
        );
        let none = "{\"prompt\":\"x\",\"image\":\"a.png\",\"target\":null}\n";
        let error = read(&format!("{}{none}", row("x"))).unwrap_err();
        assert!(error.contains("jsonl:2: row has no \"target\""), "{error}");
    }
}
