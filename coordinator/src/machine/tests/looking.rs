//! What people find of a run in its record.

use retouch_proto::Iteration;
use retouch_proto::lookup::{Attempts, GroupQuery, GroupStage, GroupView};

use super::driver::{Driver, config, rows};
use crate::lookup::{AtWork, Lookup, at_work, name_owners};
use crate::machine::record::Entry;
use crate::store::Store;

const ROLLOUT: usize = 0;

const ALL: GroupQuery = GroupQuery {
    iteration: None,
    index: None,
    prompt: None,
    stage: None,
    attempts: Attempts::Valid,
    limit: 100,
};

/// What the driver's machine wrote down, in a record of its own.
struct Recorded {
    folder: tempfile::TempDir,
}

impl Recorded {
    fn of(entries: &[Entry]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut store, _) = Store::open(folder.path(), &config(), "rows").expect("a new record");
        store.write(entries).expect("a writable record");
        Self { folder }
    }

    fn lookup(&self) -> Lookup {
        Lookup::new(self.folder.path().to_owned(), rows(20).into())
    }

    fn groups(&self, query: GroupQuery, at_work: &AtWork) -> Vec<GroupView> {
        let found = self.lookup().groups(&query, at_work);
        found.expect("a readable record")
    }
}

fn names(groups: &[GroupView]) -> Vec<(String, GroupStage)> {
    let named = groups.iter();
    named
        .map(|view| (view.group.to_string(), view.state))
        .collect()
}

fn named(names: &[(&str, GroupStage)]) -> Vec<(String, GroupStage)> {
    names
        .iter()
        .map(|(name, stage)| ((*name).to_owned(), *stage))
        .collect()
}

#[test]
fn groups_tell_who_made_them_what_they_got_and_who_is_at_them_now() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    driver.work_until(|driver| driver.tasks(ROLLOUT).len() == 2);
    let at_work = at_work(&driver.machine.status(driver.now_ms));
    let recorded = Recorded::of(&driver.entries);
    let groups = recorded.groups(ALL, &at_work);
    let expected = [
        ("2/0", GroupStage::Sampling),
        ("2/1", GroupStage::Sampling),
        ("1/0", GroupStage::Kept),
        ("1/1", GroupStage::Kept),
    ];
    assert_eq!(names(&groups), named(&expected));
    assert_eq!(groups[0].at_work.as_deref(), Some("rollout-0"));
    let kept = &groups[2];
    assert_eq!(kept.sampled_by.as_deref(), Some("rollout-0"));
    assert_eq!(kept.scored_by.as_deref(), Some("reward-0"));
    assert_eq!(
        kept.policy.as_ref().map(|policy| policy.iteration),
        Some(Iteration(0))
    );
    assert_eq!((kept.candidates.len(), &kept.at_work), (2, &None));
    for candidate in &kept.candidates {
        assert!(candidate.advantage.is_some() && candidate.image.is_some());
    }
    let mean = kept.candidates.iter().map(|c| c.reward).sum::<f64>() / 2.0;
    assert_eq!(kept.reward_mean, Some(mean));
    let found = recorded.groups(ALL, &AtWork::new());
    assert_eq!(
        found[0].state,
        GroupStage::Queued,
        "the record alone knows of no work"
    );
}

#[test]
fn pictures_of_one_group_are_told_with_those_who_may_hold_them() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    let recorded = Recorded::of(&driver.entries);
    let find = |index| {
        let query = GroupQuery {
            iteration: Some(Iteration(1)),
            index,
            ..ALL
        };
        recorded.groups(query, &AtWork::new())
    };
    assert!(find(None).iter().all(|group| group.pictures.is_none()));
    let mut groups = find(Some(0));
    let status = driver.machine.status(driver.now_ms);
    name_owners(&mut groups, &status);
    let pictures = groups[0].pictures.as_ref().expect("it was sampled");
    let address = |name: &str| {
        let mut workers = status.workers.iter();
        let worker = workers.find(|worker| worker.id.as_str() == name);
        worker.and_then(|worker| worker.blobs.clone())
    };
    let holders =
        [address("rollout-0"), address("reward-0")].map(|address| address.expect("it lives"));
    let hashes: Vec<_> = pictures
        .candidates
        .iter()
        .map(|blob| Some(blob.hash))
        .collect();
    let images: Vec<_> = groups[0].candidates.iter().map(|c| c.image).collect();
    assert_eq!(hashes, images);
    for blob in pictures.candidates.iter().chain(&pictures.sources) {
        assert_eq!(blob.owners, holders);
    }
}

#[test]
fn a_query_leaves_out_what_is_otherwise() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(2);
    let recorded = Recorded::of(&driver.entries);
    let find = |query| recorded.groups(query, &AtWork::new());
    let one = find(GroupQuery {
        iteration: Some(Iteration(1)),
        index: Some(1),
        ..ALL
    });
    assert_eq!(names(&one), named(&[("1/1", GroupStage::Kept)]));
    let kept = find(GroupQuery {
        stage: Some(GroupStage::Kept),
        limit: 3,
        ..ALL
    });
    let expected = ["2/0", "2/1", "1/0"].map(|name| (name, GroupStage::Kept));
    assert_eq!(names(&kept), named(&expected));
    let prompt = one[0].prompt.to_uppercase();
    let same = find(GroupQuery {
        prompt: Some(prompt),
        ..ALL
    });
    let without_pictures = GroupView {
        pictures: None,
        ..one[0].clone()
    };
    assert!(same.contains(&without_pictures));
    assert!(
        same.iter()
            .all(|group| group.prompt.contains(&one[0].prompt))
    );
    let none = find(GroupQuery {
        prompt: Some("nobody said that".into()),
        ..ALL
    });
    assert_eq!(none, []);
}

#[test]
fn a_dropped_group_has_its_reason_and_no_scores() {
    let mut driver = Driver::with_all_roles(config());
    driver.fail(ROLLOUT, "the image is broken", false, Vec::new());
    let recorded = Recorded::of(&driver.entries);
    let dropped = recorded.groups(
        GroupQuery {
            stage: Some(GroupStage::Dropped),
            ..ALL
        },
        &AtWork::new(),
    );
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0].dropped.as_deref(), Some("the image is broken"));
    assert_eq!(
        (&dropped[0].reward_mean, dropped[0].candidates.len()),
        (&None, 0)
    );
}

#[test]
fn what_was_taken_back_is_shown_when_it_is_asked_for() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until_committed(1);
    let (from, to) = (Iteration(1), Iteration(0));
    driver.entries.push(Entry::Rewound { from, to });
    let recorded = Recorded::of(&driver.entries);
    assert_eq!(recorded.groups(ALL, &AtWork::new()), []);
    let all = recorded.groups(
        GroupQuery {
            attempts: Attempts::All,
            iteration: Some(Iteration(1)),
            ..ALL
        },
        &AtWork::new(),
    );
    assert!(all.len() == 2 && all.iter().all(|group| group.rewound));
    assert_eq!(recorded.lookup().versions().unwrap(), []);
}

#[test]
fn versions_are_what_iterations_left_behind() {
    let mut driver = Driver::with_all_roles(config());
    driver.work_until(|driver| driver.exit.is_some());
    let versions = Recorded::of(&driver.entries).lookup().versions().unwrap();
    let seen: Vec<(u32, bool)> = versions
        .iter()
        .map(|version| (version.iteration.0, version.checkpointed))
        .collect();
    assert_eq!(seen, [(1, false), (2, false), (3, true)]);
    let last = driver.machine.progress.committed();
    let hash = |hash: retouch_proto::ContentHash| Some(hash.to_string());
    assert_eq!(versions[2].version, last.policy.hash().and_then(hash));
    assert_eq!(
        versions[2].state,
        last.state.and_then(|state| hash(state.hash))
    );
    assert_eq!(
        versions[2].ema_adapter,
        driver
            .machine
            .progress
            .checkpoint()
            .ema_adapter
            .and_then(hash)
    );
    assert!(versions[2].reward_mean.is_some());
}
