//! A run whose learners sum through NCCL, on a machine without the GPU that it asks for: the real
//! library mints the unique id, the coordinator brings it to every rank, and the run ends with
//! what is missing.
//!
//! Needs `--features nccl` and the library (`cargo xtask nccl` fetches it).
#![cfg(feature = "nccl")]

mod harness;

use harness::cluster::Cluster;

const RANKS: usize = 2;
/// No machine has so many GPUs. The run file may ask for one that `launch` would refuse; the ranks
/// themselves compute on the CPU.
const SETTINGS: &str = r#"
iterations = 2
learner = { ranks = 2, collective = "nccl", device = "cuda:63" }
rollout = { groups_per_iteration = 2, group_size = 2, num_inference_steps = 2 }
cluster = { threads_per_worker = 1 }
"#;

/// The ids that log lines speak of.
fn ids(log: &str) -> Vec<&str> {
    log.split("UniqueId(")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .collect()
}

#[test]
fn nccl_ids_reach_every_rank_and_the_run_says_which_device_is_missing() {
    let mut cluster = Cluster::start(SETTINGS);
    cluster.start_workers(&[
        ("rollout-worker", 1),
        ("reward-worker", 1),
        ("learner", RANKS),
    ]);
    assert!(!cluster.finish(), "the run can't go on\n{}", cluster.logs());
    let line = |log: &str, part: &str| {
        let line = log.lines().find(|line| line.contains(part));
        let line = line.unwrap_or_else(|| panic!("nobody says {part:?}\n{}", cluster.logs()));
        line.to_owned()
    };
    let minted = line(&cluster.log("learner-0"), "minted");
    assert_eq!(ids(&minted).len(), 1, "{minted}");
    for rank in 0..RANKS {
        let told = line(
            &cluster.log(&format!("learner-{rank}")),
            "meeting the other ranks",
        );
        assert_eq!(ids(&told), ids(&minted), "rank {rank}");
    }
    let end = line(&cluster.log("coordinator"), "training failed");
    assert!(
        end.contains("rank ") && end.contains(" on cuda:63: "),
        "{end}"
    );
}
