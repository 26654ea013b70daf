//! Ranks that come and go: what is killed, and when, changes no bit of the result.

mod harness;
#[path = "../../xtask/src/chaos/random.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod random;

use std::time::Duration;

use harness::cluster::Cluster;
use random::Random;

const RANKS: usize = 4;
const KILLS: usize = 50;
/// The run is given so many kills at a time, and has to get on before the next ones.
const BURST: usize = 10;
const SEED: u64 = 20;

fn settings(ranks: usize, iterations: u64) -> String {
    format!(
        r#"
iterations = {iterations}
learner = {{ ranks = {ranks}, micro_batch_size = 4, checkpoint_every = 4 }}
rollout = {{ groups_per_iteration = 2, group_size = 4, num_inference_steps = 2 }}
cluster = {{ threads_per_worker = 1, heartbeat_ms = 200, rank_grace_s = 120 }}
"#
    )
}

const OTHERS: [(&str, usize); 2] = [("rollout-worker", 1), ("reward-worker", 1)];

#[test]
fn fifty_killed_ranks_change_nothing() {
    let mut killed = Cluster::start(&settings(RANKS, 10_000));
    killed.start_workers(&OTHERS);
    killed.start_workers(&[("learner", RANKS)]);
    let mut random = Random::new(SEED);
    let mut spared = 0;
    for kill in 0..KILLS {
        if kill % BURST == 0 {
            let before = killed.committed();
            killed.wait_for("the run gets on", || {
                (killed.committed() > before).then_some(())
            });
            // Were all lost at once, the run would go back to its last checkpoint.
            spared = random.between(0, RANKS as u64 - 1) as usize;
        }
        std::thread::sleep(Duration::from_millis(random.between(0, 399)));
        let rank = (spared + 1 + random.between(0, RANKS as u64 - 2) as usize) % RANKS;
        killed.kill(&format!("learner-{rank}"));
        killed.start_worker("learner", rank);
    }
    killed.command(&["drain"]);
    assert!(killed.finish(), "{}", killed.logs());
    let log = killed.log("coordinator");
    for bad in ["rewound", "disagree"] {
        assert!(!log.contains(bad), "{bad}\n{log}");
    }
    let (adapter, versions) = killed.result();
    println!("{KILLS} kills, {} iterations", versions.len());

    let mut alone = Cluster::start(&settings(1, versions.len() as u64));
    alone.start_workers(&OTHERS);
    alone.start_workers(&[("learner", 1)]);
    assert!(alone.finish(), "{}", alone.logs());
    assert_eq!(alone.result(), (adapter, versions));
}
