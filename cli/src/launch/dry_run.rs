//! `retouch launch --dry-run`: one iteration of a learner on random samples, its memory as planned and as measured.

use std::ops::ControlFlow;

use retouch_learner::{
    dry_run::{DryRun, dry_run},
    workload::workload,
};
use retouch_models::inspect::{Estimate, Role, estimate, inspect};
use retouch_proto::RunConfig;
use retouch_worker::process;
use serde::Serialize;

use crate::{
    config::{check, model_file},
    estimate::print_estimate,
    exit::complain,
    memory::peak_resident_kib,
    output::{print_json, say},
    show::size,
};

/// What is printed, as JSON or for people.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    walked: DryRun,
    activation_checkpointing: &'static str,
    /// What `retouch model check --role learner` tells.
    plan: Estimate,
    /// The most that this process had in memory.
    peak_resident_bytes: u64,
}

pub(super) fn run(config: &RunConfig, json: bool) -> anyhow::Result<()> {
    check(&[model_file(config)])?;
    let inspection = inspect(config.model.path.as_ref())?;
    let plan = estimate(&inspection, Role::Learner, &workload(config, Role::Learner))?;
    process::set_compute_threads(config.cluster.threads_per_worker)?;
    let mut told = 0;
    let walked = dry_run(config, &mut |progress| {
        let tenth = 10 * progress.done / progress.total.max(1);
        if tenth > told {
            told = tenth;
            complain(format_args!(
                "{} of {} pairs",
                progress.done, progress.total
            ));
        }
        ControlFlow::Continue(())
    })?;
    let report = Report {
        walked,
        activation_checkpointing: config.learner.activation_checkpointing.as_str(),
        plan,
        peak_resident_bytes: 1024 * peak_resident_kib(std::process::id()),
    };
    if json {
        return print_json(&report);
    }
    print(&report);
    Ok(())
}

fn print(report: &Report) {
    let DryRun {
        shapes,
        ranks,
        groups,
        evaluations,
        adapter_values,
        load_s,
        iteration_s,
        stages_s,
    } = &report.walked;
    say!("shapes");
    for shape in shapes {
        say!("  {:<24} {:?}", shape.name, shape.shape);
    }
    say!("  {:<24} [{adapter_values}]", "adapter");
    say!(
        "work: the first of {ranks} rank(s), {groups} group(s); pairs for v_theta {}, v_old {}, v_ref {}",
        evaluations.theta,
        evaluations.old,
        evaluations.reference
    );
    say!(
        "activation checkpointing: {}",
        report.activation_checkpointing
    );
    print_estimate(&report.plan);
    say!(
        "it had {} at most, {:+.1} % of what was planned",
        size(report.peak_resident_bytes),
        100.0 * (report.peak_resident_bytes as f64 / report.plan.bytes as f64 - 1.0)
    );
    say!("time: {load_s:.2} s to load, {iteration_s:.2} s for the iteration, of which");
    for (stage, seconds) in stages_s {
        say!("  {stage:<24} {seconds:>9.3} s");
    }
}
