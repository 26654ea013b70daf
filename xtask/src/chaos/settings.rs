//! The run file of the runs that are disturbed.

use std::path::Path;

use super::{plan::Plan, run::Task};

pub(crate) const ITERATIONS: u64 = 6;

/// The smallest run that has every stage: a learner's step of two shards on a few samples.
pub(crate) fn run_file(assets: &Path, run: &Path, task: &Task) -> String {
    let Plan {
        ranks,
        rollout_workers,
        checkpoint_every,
        ..
    } = task.plan;
    format!(
        r#"preset = "tiny"
name = "chaos"
run_dir = {run:?}
iterations = {ITERATIONS}
[model]
path = {editor:?}
[dataset]
path = {dataset:?}
[rollout]
groups_per_iteration = 2
group_size = 2
num_inference_steps = 2
staleness_max = {staleness}
[[reward.terms]]
path = {judge:?}
template = {template:?}
[filter]
rule = "none"
ban = false
[learner]
ranks = {ranks}
micro_batch_size = 2
checkpoint_every = {checkpoint_every}
[cluster]
rollout_workers = {rollout_workers}
reward_workers = 1
threads_per_worker = 1
rank_grace_s = 5
"#,
        editor = assets.join("editor"),
        dataset = assets.join("dataset"),
        judge = assets.join("judge"),
        template = assets.join("judge/template.txt"),
        staleness = task.staleness,
    )
}
