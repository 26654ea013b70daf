//! At a start: which of the recorded checkpoints is whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use retouch_proto::run_folder::RunFolder;
use retouch_proto::{ContentHash, Iteration};
use rusqlite::Connection;

use super::mend::free_name;
use super::{Loaded, StoreError, parsed};
use crate::machine::record::Checkpoint;

/// Problems that one message tells.
const PROBLEMS_MAX: usize = 4;

/// Makes the newest whole checkpoint the record's last one, so that whoever loads the record meets no other. Those after
/// it are taken out of the record, and what is left of them is moved aside: their iterations are in the record still, and
/// count unless no learner holds the state any more. Tells what was done, if something was.
///
/// # Errors
/// If there were checkpoints and none is whole: to begin anew over them would lose the run.
pub(super) fn settle_on_whole_checkpoint(
    connection: &mut Connection,
    folder: &RunFolder,
) -> Loaded<Option<String>> {
    let Search {
        whole,
        damaged,
        problems,
    } = match newest_whole(connection, folder)? {
        Ok(search) => search,
        Err(error) => return Ok(Err(error)),
    };
    if damaged.is_empty() {
        return Ok(Ok(None));
    }
    let Some(whole) = whole else {
        return Ok(Err(StoreError::NoWholeCheckpoint { problems }));
    };
    for (_, iteration) in &damaged {
        let place = folder.checkpoint(*iteration);
        if let Err(source) = set_aside(&place) {
            return Ok(Err(StoreError::io(&place, source)));
        }
    }
    let transaction = connection.transaction()?;
    for (id, _) in damaged {
        transaction.execute("DELETE FROM checkpoints WHERE id = ?1", [id])?;
    }
    transaction.commit()?;
    let (problems, iteration) = (problems.join(", "), whole.committed.iteration);
    Ok(Ok(Some(format!(
        "{problems}: the last whole checkpoint is {iteration}"
    ))))
}

/// What a look at the recorded checkpoints found, newest first.
pub(super) struct Search {
    /// The newest whole one.
    pub(super) whole: Option<Checkpoint>,
    /// Those after it, by their rows.
    damaged: Vec<(i64, Iteration)>,
    /// What is wrong with them.
    pub(super) problems: Vec<String>,
}

/// Looks for the newest checkpoint with all its files.
pub(super) fn newest_whole(connection: &Connection, folder: &RunFolder) -> Loaded<Search> {
    let mut search = Search {
        whole: None,
        damaged: Vec::new(),
        problems: Vec::new(),
    };
    for (id, text) in recorded(connection)? {
        let checkpoint: Checkpoint = match parsed("checkpoints", &text) {
            Ok(checkpoint) => checkpoint,
            Err(error) => return Ok(Err(error)),
        };
        let iteration = checkpoint.committed.iteration;
        match problem(&checkpoint, folder) {
            Ok(None) => {
                search.whole = Some(checkpoint);
                break;
            }
            Ok(Some(problem)) => {
                // Old ones may have been deleted because they need not stay.
                let is_told = search.problems.is_empty() || folder.checkpoint(iteration).exists();
                if is_told && search.problems.len() < PROBLEMS_MAX {
                    search.problems.push(problem);
                }
                search.damaged.push((id, iteration));
            }
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(search))
}

/// The checkpoints of committed iterations, newest first.
fn recorded(connection: &Connection) -> rusqlite::Result<Vec<(i64, String)>> {
    // By id, not by iteration: after a rewind the same iteration is checkpointed again.
    let query = "SELECT id, checkpoint FROM checkpoints WHERE iteration <= \
                 (SELECT coalesce(max(iteration), 0) FROM iterations WHERE status = 'committed') ORDER BY id DESC";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// What is wrong with a checkpoint's files.
///
/// # Errors
/// If one can't be read for a reason that says nothing about what is in it.
fn problem(checkpoint: &Checkpoint, folder: &RunFolder) -> Result<Option<String>, StoreError> {
    for (expected, name) in checkpoint.files() {
        let path = folder.join(&name);
        match hash(&path) {
            Ok(found) if found == expected => {}
            Ok(found) => {
                let text = format!(
                    "{name} is damaged (its content hashes to {found}, expected {expected})"
                );
                return Ok(Some(text));
            }
            Err(error) if says_nothing(&error) => {
                return Err(StoreError::io(&path, error));
            }
            Err(error) => return Ok(Some(unreadable(&name, &path, &error))),
        }
    }
    Ok(None)
}

fn hash(path: &Path) -> io::Result<ContentHash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}

/// Whether an error is about whoever reads, or the way to the disk: a whole file would give it too.
fn says_nothing(error: &io::Error) -> bool {
    use ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown,
        NetworkUnreachable, NotConnected, OutOfMemory, PermissionDenied, StaleNetworkFileHandle,
        TimedOut, WouldBlock,
    };
    /// EMFILE and ENFILE, which have no kind.
    const TOO_MANY_FILES: [i32; 2] = [24, 23];
    let too_many = |number| TOO_MANY_FILES.contains(&number);
    error.raw_os_error().is_some_and(too_many)
        || matches!(
            error.kind(),
            ConnectionAborted
                | ConnectionReset
                | HostUnreachable
                | Interrupted
                | NetworkDown
                | NetworkUnreachable
                | NotConnected
                | OutOfMemory
                | PermissionDenied
                | StaleNetworkFileHandle
                | TimedOut
                | WouldBlock
        )
}

fn unreadable(name: &str, path: &Path, error: &io::Error) -> String {
    match (error.kind(), fs::read_link(path)) {
        (ErrorKind::NotFound, Ok(to)) => {
            format!("{name} is a link to {}, which is not there", to.display())
        }
        (ErrorKind::NotFound, Err(_)) => format!("{name} is missing"),
        _ => format!("{name} can't be read ({error})"),
    }
}

/// The folder, or the link to one, keeps its content under a name that is no iteration's.
fn set_aside(place: &Path) -> io::Result<()> {
    match fs::rename(place, free_name(place, "damaged")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_could_not_be_looked_at_is_not_taken_for_damaged() {
        // EACCES, EMFILE, ESTALE, ETIMEDOUT; then ENOENT, EIO, EISDIR.
        for (number, expected) in [
            (13, true),
            (24, true),
            (116, true),
            (110, true),
            (2, false),
            (5, false),
            (21, false),
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(says_nothing(&error), expected, "{error}");
        }
    }
}
