//! One process with several roles gives what processes of their own give, in hardly more memory.

mod cluster;

use cluster::Cluster;

const SETTINGS: &str = r#"
iterations = 3
learner = { ranks = 1, micro_batch_size = 32, checkpoint_every = 4 }
rollout = { groups_per_iteration = 2, group_size = 32, num_inference_steps = 2 }
cluster = { threads_per_worker = 1 }
"#;

#[test]
fn roles_that_share_a_process_make_the_same_adapter_in_little_more_memory() {
    let mut apart = Cluster::start(SETTINGS);
    apart.start_workers(&[("rollout-worker", 1), ("reward-worker", 1), ("learner", 1)]);
    assert!(apart.finish(), "{}", apart.logs());

    let mut together = Cluster::start(SETTINGS);
    together.start_node("rollout-worker,learner");
    together.start_worker("reward-worker", 0);
    assert!(together.finish(), "{}", together.logs());
    assert_eq!(together.result(), apart.result());

    let mut all = Cluster::start(SETTINGS);
    all.start_node("rollout-worker,reward-worker,learner");
    assert!(all.finish(), "{}", all.logs());
    assert_eq!(all.result(), apart.result());

    let peaks = |cluster: &Cluster| cluster.peaks_kib.borrow().clone();
    let (apart, together) = (peaks(&apart), peaks(&together));
    println!("KiB at most: {apart:?}; {together:?}; {:?}", peaks(&all));
    let larger = apart["rollout-worker-0"].max(apart["learner-0"]);
    let node = together["node"];
    assert!(
        10 * node <= 12 * larger,
        "{node} KiB, the larger role alone has {larger} KiB"
    );
}

#[test]
fn a_role_given_twice_is_refused_by_name() {
    let mut cluster = Cluster::start(SETTINGS);
    cluster.start_node("learner,rollout-worker,learner");
    let said = cluster.wait_for("the node ends", || {
        let log = cluster.log("node");
        log.contains("twice").then_some(log)
    });
    assert!(said.contains("--roles has learner twice"), "{said}");
}
