//! Datasets in the Edit-R1 format, and the one reader of their rows.
//!
//! A dataset is a folder with `train_metadata.jsonl` and `test_metadata.jsonl` (one for each [`Split`]) and the images
//! that their lines name. Whoever needs rows gets them here: coordinator, `sft`, `evaluate`, `config check` and
//! `dataset check` judge a folder by the same rules and in the same words.
//!
//! Reading order: [`Row`] is a line of such a file and has the checks of one; [`read`] gives a split's rows or every
//! problem with them, [`read_with`] adds what one caller needs besides, and [`check`] only judges both splits; [`image_file()`] finds the image that a row
//! names, and says how far links are followed; [`read_lines`] is the reader of JSON lines below them;
//! [`DatasetError`] collects problems. `import`, in builds with the feature `parquet`, makes such a folder of the Hub's shards. Images are not decoded here, so that the coordinator needs no model code.

mod error;
mod image_file;
#[cfg(feature = "parquet")]
pub mod import;
mod lines;
mod row;
mod split;

pub use error::{DatasetError, both};
pub use image_file::{ImagePathError, image_file};
pub use lines::{parse_json, read_lines};
pub use row::{Row, SourcesLimit};
pub use split::{Counts, Split, check, read, read_held_out, read_with};
