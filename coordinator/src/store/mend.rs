//! Before a record is opened: whether it is all that the run has recorded, and what it is mended from if not.
//!
//! A file is damaged from outside, was copied without its write-ahead log, or is an older copy of itself. SQLite sees
//! only the first of these. The copies in the checkpoints show the others: a record always knows more than they do.
//!
//! 1. No run begins anew where checkpoints are.
//! 2. Nothing is overwritten: a record that is replaced stays beside it, under another name.

use std::cmp::Reverse;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use retouch_proto::Iteration;
use retouch_proto::files::{beside, put_in_place};
use retouch_proto::run_folder::{CheckpointFile, RunFolder};
use rusqlite::{Connection, OpenFlags};
use url::Url;

use super::identity::{self, Identity, Recorded};
use super::{StoreError, schema};

/// How much a record knows. Of two records of one run, the one that is less is the older one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Extent {
    events: i64,
    checkpoints: i64,
}

/// A record as it was found.
enum Found {
    Missing,
    /// Without tables, or without the run that it belongs to: no start was ever finished with it.
    Empty,
    Whole(Extent),
    Damaged(String),
}

/// A checkpoint's copy of the record.
struct Copy {
    iteration: Iteration,
    path: PathBuf,
}

impl Found {
    /// What is wrong with it, if something is.
    fn problem(&self) -> String {
        match self {
            Self::Missing => "is missing".to_owned(),
            Self::Empty => "is empty".to_owned(),
            Self::Whole(_) => "ends earlier than a checkpoint's copy of it: it is an old one, or was copied without \
                               run.db-wal"
                .to_owned(),
            Self::Damaged(problem) => format!("is corrupt ({problem})"),
        }
    }
}

/// Makes sure that the run folder's record is the newest that there is. Tells what was done, if something was.
///
/// # Errors
/// If it belongs to another run, or is damaged and no checkpoint has a whole copy of it.
pub(super) fn mend(
    folder: &RunFolder,
    identity: &Identity<'_>,
) -> Result<Option<String>, StoreError> {
    let record = folder.record();
    let found = examine(&record, identity)?;
    let known = match found {
        Found::Whole(extent) => Some(extent),
        _ => None,
    };
    let (copy, mut problems) = newest_copy(folder, Some(identity), known)?;
    let Some(copy) = copy else {
        if known.is_some() || (!matches!(found, Found::Damaged(_)) && problems.is_empty()) {
            return Ok(None);
        }
        problems.truncate(3);
        return Err(StoreError::Lost {
            path: record,
            problem: found.problem(),
            copies: problems,
        });
    };
    let kept = put_record(&copy.path, folder)?;
    let kept = kept.map_or(String::new(), |kept| {
        format!("; the old one is kept as {}", kept.display())
    });
    let (problem, iteration) = (found.problem(), copy.iteration);
    Ok(Some(format!(
        "run.db {problem}: it was replaced by the copy in checkpoint {iteration}{kept}"
    )))
}

/// Whether there is neither a record to continue with, nor a checkpoint here to mend it from.
///
/// # Errors
/// If files can't be read.
pub(crate) fn has_nothing(folder: &RunFolder, identity: &Identity<'_>) -> Result<bool, StoreError> {
    match examine(&folder.record(), identity)? {
        Found::Whole(_) => Ok(false),
        _ => Ok(newest_copy(folder, Some(identity), None)?.0.is_none()),
    }
}

/// The newest whole record of a folder that no coordinator has open: its own, or a checkpoint's copy of it.
pub(super) fn newest_whole(folder: &RunFolder) -> Result<Option<PathBuf>, StoreError> {
    let record = folder.record();
    let found = match fs::metadata(&record) {
        Ok(metadata) if metadata.len() > 0 => {
            damage(&record, open_to_read(&record), |connection| {
                check_pages(connection)?;
                look(connection, None)
            })?
        }
        _ => Found::Missing,
    };
    let known = match found {
        Found::Whole(extent) => Some(extent),
        _ => None,
    };
    let (copy, _) = newest_copy(folder, None, known)?;
    Ok(copy.map(|copy| copy.path).or(known.map(|_| record)))
}

/// Puts a copy in the record's place, whole or not at all. What was there is kept under another name, which is given.
///
/// # Errors
/// If the run folder can't be written.
pub(crate) fn put_record(copy: &Path, folder: &RunFolder) -> Result<Option<PathBuf>, StoreError> {
    let record = folder.record();
    let io = |source| StoreError::io(&record, source);
    let partial = beside(&record, "partial");
    let copied = fs::copy(copy, &partial);
    if copied.is_err() {
        let _ = fs::remove_file(&partial);
    }
    copied.map_err(io)?;
    let kept = set_aside(&record).map_err(io)?;
    put_in_place(&partial, &record).map_err(io)?;
    Ok(kept)
}

/// A log belongs to the file that it was written for: SQLite would apply it to whatever has the name.
fn set_aside(record: &Path) -> std::io::Result<Option<PathBuf>> {
    let kept = free_name(record, "damaged");
    let (log, index) = (companion(record, "-wal"), companion(record, "-shm"));
    if exists(&log) {
        fs::rename(&log, companion(&kept, "-wal"))?;
    }
    if exists(&index) {
        fs::remove_file(&index)?;
    }
    if !exists(record) {
        return Ok(None);
    }
    fs::rename(record, &kept)?;
    Ok(Some(kept))
}

/// `NAME.SUFFIX`, or the first of `NAME.SUFFIX2`, ... that is not taken.
pub(super) fn free_name(path: &Path, suffix: &str) -> PathBuf {
    let numbered = (2..).map(|number| beside(path, &format!("{suffix}{number}")));
    std::iter::once(beside(path, suffix))
        .chain(numbered)
        .find(|name| !exists(name))
        .expect("names do not run out")
}

fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Also if it is a link that leads nowhere.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn examine(path: &Path, identity: &Identity<'_>) -> Result<Found, StoreError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > 0 => {}
        // Not opened: SQLite deletes the log of an empty file, and it may be all that is left.
        Ok(_) => return Ok(Found::Empty),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(StoreError::io(path, error)),
    }
    let opened = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
    damage(path, opened, |connection| {
        check_pages(connection)?;
        look(connection, Some(identity))
    })
}

/// Opens a record that may be in use, and leaves nothing beside one that is not.
pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let log = fs::metadata(companion(path, "-wal"));
    match log.is_ok_and(|log| log.len() > 0) {
        true => Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY),
        false => open_immutable(path),
    }
}

/// The newest copy that knows more than that, and what is wrong with those that are newer.
fn newest_copy(
    folder: &RunFolder,
    identity: Option<&Identity<'_>>,
    known: Option<Extent>,
) -> Result<(Option<Copy>, Vec<String>), StoreError> {
    let mut problems = Vec::new();
    for iteration in checkpoints(folder)? {
        let name = CheckpointFile::Record.name(iteration);
        let path = folder.join(&name);
        if !exists(&path) {
            problems.push(format!("{name} is missing"));
            continue;
        }
        let knows = |found: &Found| matches!(found, Found::Whole(extent) if known.is_none_or(|known| known < *extent));
        let found = damage(&path, open_immutable(&path), |connection| {
            let found = look(connection, identity)?;
            // Every page is read only where that decides something.
            if matches!(&found, Ok(found) if knows(found)) {
                check_pages(connection)?;
            }
            Ok(found)
        });
        match found {
            Ok(found) if knows(&found) => return Ok((Some(Copy { iteration, path }), problems)),
            // Older copies know even less.
            Ok(Found::Whole(_)) => return Ok((None, problems)),
            Ok(found) => problems.push(format!("{name} {}", found.problem())),
            Err(error) => problems.push(format!("{name}: {error}")),
        }
    }
    Ok((None, problems))
}

/// The iterations of all checkpoint folders with something in them, newest first.
pub(crate) fn checkpoints(folder: &RunFolder) -> Result<Vec<Iteration>, StoreError> {
    let checkpoints = folder.checkpoints();
    let entries = match fs::read_dir(&checkpoints) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io(&checkpoints, error)),
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let mut found: Vec<Iteration> = entries
        .flatten()
        .filter_map(number)
        .map(Iteration)
        .collect();
    found.retain(|iteration| {
        let files = fs::read_dir(folder.checkpoint(*iteration));
        files.is_ok_and(|mut files| files.next().is_some())
    });
    found.sort_by_key(|iteration| Reverse(*iteration));
    Ok(found)
}

/// Reads a file that no process writes, and leaves nothing beside it.
pub(super) fn open_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match Url::from_file_path(absolute) {
        Ok(mut url) => {
            url.set_query(Some("immutable=1"));
            Connection::open_with_flags(url.as_str(), flags)
        }
        Err(()) => Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY),
    }
}

type Looked = rusqlite::Result<Result<Found, StoreError>>;

/// Tells what a damaged file is from what can't be read for other reasons.
fn damage(
    path: &Path,
    opened: rusqlite::Result<Connection>,
    look: impl FnOnce(&Connection) -> Looked,
) -> Result<Found, StoreError> {
    match opened.and_then(|connection| look(&connection)) {
        Ok(found) => found,
        Err(error) => match StoreError::sqlite(path, error) {
            StoreError::Corrupt { problem, .. } => Ok(Found::Damaged(problem)),
            error => Err(error),
        },
    }
}

/// What was damaged from outside is better found now than met in the middle of a run.
pub(super) fn check_pages(connection: &Connection) -> rusqlite::Result<()> {
    let query = "PRAGMA quick_check(1)";
    let found: String = connection.query_row(query, [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(found),
        )),
    }
}

/// What a record is, if it is that of the run.
fn look(connection: &Connection, identity: Option<&Identity<'_>>) -> Looked {
    if let Err(newer) = schema::check_version(connection)? {
        return Ok(Err(newer));
    }
    if schema::version(connection)? == 0 {
        return Ok(Ok(Found::Empty));
    }
    let recorded = identity::recorded(connection)?;
    if let Some(Err(other)) = identity.map(|identity| identity.check(&recorded)) {
        return Ok(Err(other));
    }
    let extent = extent(connection)?;
    Ok(Ok(match recorded {
        Recorded { dataset: None, .. } if extent.is_nothing() => Found::Empty,
        _ => Found::Whole(extent),
    }))
}

impl Extent {
    fn is_nothing(self) -> bool {
        self == Self {
            events: 0,
            checkpoints: 0,
        }
    }
}

fn extent(connection: &Connection) -> rusqlite::Result<Extent> {
    let query = "SELECT (SELECT coalesce(max(sequence), 0) FROM events), (SELECT coalesce(max(id), 0) FROM checkpoints)";
    connection.query_row(query, [], |row| {
        Ok(Extent {
            events: row.get(0)?,
            checkpoints: row.get(1)?,
        })
    })
}
