//! `retouch groups --id I/N --save FOLDER`: a group with its pictures, from the workers that hold them or from the disk.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use retouch_credentials::Access;
use retouch_proto::{
    BlobRef, GroupId, Iteration, RunFolder,
    lookup::GroupView,
    saved_group::{GroupPictures, SavedCandidate, SavedGroup, candidate_file},
};
use retouch_worker::blobs::{
    BlobClient, BlobClientOptions, BlobStore, BlobStoreOptions, FetchLimits, Retention,
};

use super::target::Target;
use crate::{exit::UsageError, group_sheet::group_sheet, picture};

const SHEET_FILE: &str = "sheet.png";
/// A group's pictures are a few hundred MiB at most.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// A worker that is gone does not come back with its blobs.
const LIMITS: FetchLimits = FetchLimits {
    connect: Duration::from_secs(3),
    chunk: Duration::from_secs(10),
    rounds: 1,
    pause: Duration::from_millis(100),
    transfers_max: 8,
    in_flight_bytes_max: 1 << 30,
    busy_max: Duration::from_secs(30),
};

/// Refuses a folder that has something in it, before any work.
///
/// # Errors
/// If it does.
pub(super) fn check_folder(folder: &Path) -> Result<(), UsageError> {
    let is_empty =
        fs::read_dir(folder).map_or(!folder.exists(), |mut files| files.next().is_none());
    match is_empty {
        true => Ok(()),
        false => Err(UsageError(format!(
            "--save {}: give the name of a new folder; this one is not empty",
            folder.display()
        ))),
    }
}

/// Writes the group, its pictures and a sheet of them into `folder`.
///
/// # Errors
/// If it has no scores yet, its pictures are gone, or something can't be written.
pub(super) async fn save(target: &Target, view: &GroupView, folder: &Path) -> anyhow::Result<()> {
    if view.candidates.is_empty() {
        bail!(
            "group {} has no scores yet: it is {}",
            view.group,
            view.state
        );
    }
    let group = saved(view);
    let pictures = pictures(target, view).await?;
    let sheet = group_sheet(&group, &pictures)?;
    let context = || format!("can't write {}", folder.display());
    group.write(folder, &pictures).with_context(context)?;
    picture::save(&sheet, &folder.join(SHEET_FILE))
}

fn saved(view: &GroupView) -> SavedGroup {
    let candidates = view.candidates.iter().enumerate();
    let candidates = candidates.map(|(sample, candidate)| SavedCandidate {
        picture: candidate_file(sample),
        reward: candidate.reward,
        advantage: candidate.advantage,
        terms: candidate.terms.clone(),
    });
    SavedGroup {
        group: view.group,
        prompt: view.prompt.clone(),
        requirement: view.requirement.clone(),
        candidates: candidates.collect(),
    }
}

async fn pictures(target: &Target, view: &GroupView) -> anyhow::Result<GroupPictures<Bytes>> {
    let folder = target.run_folder().map(RunFolder::new);
    if let Some(kept) = folder.as_ref().and_then(|folder| kept(folder, view.group)) {
        return Ok(kept);
    }
    match from_workers(target, view).await {
        Ok(pictures) => Ok(pictures),
        Err(error) => Err(error.context(gone(folder.as_ref(), view.group))),
    }
}

/// The pictures in the run folder, if it is this group that was kept of its iteration.
fn kept(folder: &RunFolder, group: GroupId) -> Option<GroupPictures<Bytes>> {
    let kept = folder.saved_groups().of(group.iteration);
    let (saved, pictures) = SavedGroup::read(&kept).ok()?;
    (saved.group == group).then(|| GroupPictures {
        sources: pictures.sources.into_iter().map(Bytes::from).collect(),
        candidates: pictures.candidates.into_iter().map(Bytes::from).collect(),
    })
}

async fn from_workers(target: &Target, view: &GroupView) -> anyhow::Result<GroupPictures<Bytes>> {
    let blobs = view.pictures.as_ref();
    let blobs = blobs.context("the coordinator names no pictures of it")?;
    if blobs.sources.iter().any(|blob| blob.owners.is_empty()) {
        bail!("no worker holds them");
    }
    let access = target.access(&target.address()?).await?;
    fetch(access, blobs).await
}

async fn fetch(
    access: Access,
    blobs: &GroupPictures<BlobRef>,
) -> anyhow::Result<GroupPictures<Bytes>> {
    let place = tempfile::tempdir().context("no temporary folder can be made")?;
    let store = BlobStore::open(BlobStoreOptions {
        folder: place.path().to_owned(),
        memory_bytes_max: MEMORY_BYTES_MAX,
        disk_bytes_max: 0,
    })?;
    let client = BlobClient::new(
        store,
        BlobClientOptions {
            access,
            run_folder: None,
            own_address: None,
            limits: LIMITS,
        },
    );
    Ok(GroupPictures {
        sources: fetch_all(&client, &blobs.sources).await?,
        candidates: fetch_all(&client, &blobs.candidates).await?,
    })
}

async fn fetch_all(client: &BlobClient, blobs: &[BlobRef]) -> anyhow::Result<Vec<Bytes>> {
    let mut fetched = Vec::with_capacity(blobs.len());
    for blob in blobs {
        fetched.push(client.fetch(blob, Retention::Pinned).await?);
    }
    Ok(fetched)
}

/// Why there are no pictures, and of which groups there are.
fn gone(folder: Option<&RunFolder>, group: GroupId) -> String {
    let begin = format!(
        "the pictures of group {group} are gone: workers hold them until their iteration is committed"
    );
    let Some(folder) = folder else {
        return format!(
            "{begin}; samples/groups/{} of the run folder keeps one group of the iteration",
            group.iteration
        );
    };
    let groups = folder.saved_groups();
    let of = |iteration: Iteration| {
        let (saved, _) = SavedGroup::read(&groups.of(iteration)).ok()?;
        Some(saved.group)
    };
    if let Some(other) = of(group.iteration) {
        return format!(
            "{begin}; of iteration {} there is --id {other}",
            group.iteration
        );
    }
    match groups.iterations().last().and_then(|newest| of(*newest)) {
        Some(newest) => format!("{begin}; the newest that is kept is --id {newest}"),
        None => format!("{begin}, and the run folder keeps none (samples.keep_groups)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(folder: &RunFolder, iteration: u32, index: u32) -> GroupId {
        let iteration = Iteration(iteration);
        let group = SavedGroup {
            group: GroupId { iteration, index },
            prompt: String::new(),
            requirement: String::new(),
            candidates: Vec::new(),
        };
        let pictures = GroupPictures {
            sources: vec![Bytes::from_static(b"source")],
            candidates: Vec::new(),
        };
        folder
            .saved_groups()
            .keep(&group, &pictures, 10)
            .expect("it is kept");
        group.group
    }

    #[test]
    fn a_kept_group_is_found_on_disk_and_others_are_told_of_it() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::new(place.path());
        let id = |iteration, index| GroupId {
            iteration: Iteration(iteration),
            index,
        };
        assert!(gone(Some(&folder), id(3, 1)).contains("keeps none"));
        let group = keep(&folder, 3, 2);
        let found = kept(&folder, group).expect("it is kept");
        assert_eq!(found.sources[0], Bytes::from_static(b"source"));
        assert_eq!(
            kept(&folder, id(3, 1)),
            None,
            "another group of the iteration"
        );
        let text = gone(Some(&folder), id(3, 1));
        assert!(text.contains("pictures of group 3/1 are gone"), "{text}");
        assert!(text.ends_with("of iteration 3 there is --id 3/2"), "{text}");
        assert!(gone(Some(&folder), id(1, 0)).ends_with("is --id 3/2"));
        assert!(gone(None, id(1, 0)).contains("samples/groups/1"));
    }

    #[test]
    fn only_new_or_empty_folders_are_written_to() {
        let place = tempfile::tempdir().expect("a temporary folder");
        assert!(check_folder(place.path()).is_ok());
        assert!(check_folder(&place.path().join("new")).is_ok());
        fs::write(place.path().join("file"), "").expect("a file");
        for taken in [place.path(), &place.path().join("file")] {
            let error = check_folder(taken).unwrap_err().to_string();
            assert!(error.contains("not empty"), "{error}");
        }
    }
}
