//! Keeps the certificates in the run folder good while a coordinator lives longer than they do.

use std::sync::Arc;
use std::time::Duration;

use retouch_credentials::Authority;
use retouch_proto::RunFolder;
use tokio::time::sleep;

/// Certificates are renewed months before they expire, so nothing depends on the hour.
pub(crate) const DAILY: Duration = Duration::from_secs(24 * 3600);

/// Renews from time to time what is about to expire. (A start of the coordinator has done it already.)
pub(crate) async fn renew(authority: Arc<Authority>, folder: RunFolder, every: Duration) {
    loop {
        sleep(every).await;
        if let Err(error) = authority.write_missing(&folder.credentials()) {
            tracing::warn!(%error, "certificates in the run folder could not be renewed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_written_and_again_when_it_is_missing_again() {
        let run_dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::new(run_dir.path());
        let authority = Arc::new(Authority::open_or_create(&folder.credentials()).unwrap());
        let every = Duration::from_millis(5);
        let renewal = tokio::spawn(renew(authority, folder.clone(), every));
        let key = folder.credentials().join("control/key.pem");
        for _ in 0..2 {
            let written = async {
                while !key.exists() {
                    sleep(every).await;
                }
            };
            let written = tokio::time::timeout(Duration::from_secs(20), written).await;
            written.unwrap();
            std::fs::remove_file(&key).unwrap();
        }
        renewal.abort();
    }
}
