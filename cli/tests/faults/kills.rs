//! Every process of a run is killed and stopped at many moments; the adapter stays the same. These are a few of the runs
//! that `cargo xtask chaos` makes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    chaos::{campaign::Campaign, place::Place, plan::Kind, report},
    harness::{retouch_path, root, run::Run, signal},
};

#[test]
fn kills_and_stops_of_every_process_change_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = Place {
        retouch: retouch_path(),
        assets: root().join("assets/tiny"),
        folder: folder.path().to_owned(),
        clock: None,
        disks: false,
    };
    let campaign = Campaign {
        staleness: vec![0],
        seeds: (1..=6).collect(),
        kinds: vec![Kind::Kill, Kind::Stop],
        jobs: 1,
        limit: Duration::from_secs(180),
        keep: false,
        aloud: false,
    };
    let outcomes = campaign.make(&place, |outcome| {
        println!("{}", report::line(outcome));
        print!("{}", report::details(outcome));
    });
    assert!(report::is_well(&outcomes), "{}", report::table(&outcomes));
    let mut faults = BTreeMap::new();
    for (kind, count) in outcomes.iter().flat_map(|outcome| &outcome.faults) {
        *faults.entry(kind.as_str()).or_default() += count;
    }
    let enough = |kind| faults.get(kind) >= Some(&6);
    assert!(enough("kill") && enough("stop"), "too few: {faults:?}");
}

/// The time from a coordinator's death until all workers have joined its next life, as people see it.
#[test]
fn a_killed_coordinator_is_back_at_once() {
    let mut run = Run::launch(&["iterations=6"]);
    let before = run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let last = generations(&before).into_iter().max().expect("workers");
    let pid = run.process("coordinator");
    signal("KILL", pid);
    let begin = Instant::now();
    let back = run.wait_for(|status| {
        let now = generations(status);
        now.len() == 5 && now.into_iter().all(|generation| generation > last)
    });
    let took = begin.elapsed();
    println!("all five workers were back {took:.1?} after the kill");
    assert!(
        back["committed"].as_u64() >= before["committed"].as_u64(),
        "{back:#}"
    );
    assert_ne!(run.process("coordinator"), pid);
    run.finish_well();
}

fn generations(status: &Value) -> Vec<u64> {
    let workers = status["workers"].as_array().expect("workers");
    let generation = |worker: &Value| worker["generation"].as_u64();
    workers.iter().filter_map(generation).collect()
}
