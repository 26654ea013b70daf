//! The record of a run that is over.

use retouch_coordinator::lookup::Lookup;
use retouch_proto::RunFolder;

use super::target::Target;
use crate::exit::{Unreachable, UsageError};

/// The record in the run's folder, for a run without a coordinator; `error` if there is none.
pub(super) fn record_of(target: &Target, error: anyhow::Error) -> anyhow::Result<Lookup> {
    let Some(folder) = target.run_folder().filter(|_| error.is::<Unreachable>()) else {
        return Err(error);
    };
    if !RunFolder::new(folder).record().is_file() {
        let problem = format!("{} is no run folder: it has no record", folder.display());
        return Err(UsageError(problem).into());
    }
    Ok(Lookup::of_folder(folder))
}
