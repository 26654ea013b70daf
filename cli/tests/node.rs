//! One process with several roles gives what processes of their own give, in hardly more memory.

mod harness;

use std::path::Path;

use burn::tensor::{DType, Device};
use harness::cluster::Cluster;
use retouch_models::weights::{Pretrained, PretrainedConfig};
use retouch_models::{
    editor::{Editor, Encoders, FluxKontext, FluxKontextEncoders},
    flux::{FluxTransformer, FluxTransformerConfig},
    init::Init,
    scheduler::FlowMatchScheduler,
};

const SETTINGS: &str = r#"
iterations = 2
learner = { ranks = 1, micro_batch_size = 4, checkpoint_every = 4 }
rollout = { groups_per_iteration = 2, group_size = 4, num_inference_steps = 2 }
cluster = { threads_per_worker = 1 }
"#;

/// A cluster whose editor's weights are what takes memory, as those of published models do.
fn start() -> Cluster {
    let cluster = Cluster::start(SETTINGS);
    widen(&cluster.path().join("editor"));
    cluster
}

fn widen(folder: &Path) {
    let device = Device::flex();
    let encoders = FluxKontextEncoders::load(folder, &device, DType::F32).expect("encoders");
    let scheduler = FlowMatchScheduler::load(&folder.join("scheduler")).expect("a scheduler");
    let config = FluxTransformerConfig {
        num_attention_heads: 16,
        ..FluxTransformerConfig::load(&folder.join("transformer")).expect("a configuration")
    };
    let transformer = FluxTransformer::init(&config, &Init::new(1, &device));
    let editor = Editor::new(FluxKontext::new(transformer, encoders), scheduler, &device);
    editor.save(folder).expect("an editor");
}

#[test]
fn roles_that_share_a_process_make_the_same_adapter_in_little_more_memory() {
    let mut apart = start();
    apart.start_workers(&[("rollout-worker", 1), ("reward-worker", 1), ("learner", 1)]);
    assert!(apart.finish(), "{}", apart.logs());

    let mut together = start();
    together.start_node("rollout-worker,learner");
    together.start_worker("reward-worker", 0);
    assert!(together.finish(), "{}", together.logs());
    assert_eq!(together.result(), apart.result());

    let mut all = start();
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
