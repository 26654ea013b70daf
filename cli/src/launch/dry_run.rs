//! `retouch launch --dry-run`: one iteration of a learner on random samples, its memory as planned and as measured.

use std::ops::ControlFlow;

use burn::tensor::Device;
use retouch_learner::{
    dry_run::{DryRun, dry_run},
    workload::workload,
};
use retouch_models::{
    device::{self, DeviceError, cards},
    inspect::{Estimate, Role, estimate, inspect},
};
use retouch_proto::{RunConfig, config::DeviceName, worker};
use retouch_worker::process;
use serde::Serialize;

use crate::{
    config::{check, check_targets, count_sources, model_file},
    estimate::print_estimate,
    exit::{UsageError, complain},
    memory::peak_resident_kib,
    output::{print_json, say},
    room::{self, card_of},
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
    /// Of the device that was planned for.
    memory: Memory,
}

/// What a dry run had in memory at most.
#[derive(Debug, Serialize)]
#[serde(tag = "of", rename_all = "snake_case")]
enum Memory {
    /// This process, of the machine's.
    Host { peak_bytes: u64 },
    /// Of a GPU's.
    Device {
        device: String,
        /// What the card had less free than before, or of other devices what the backend's pools hold; the driver's
        /// context comes on top.
        peak_bytes: u64,
        /// In use by tensors, as seen after each micro batch.
        peak_in_use_bytes: u64,
        /// Of the card, before the run; unknown for other devices.
        free_bytes: Option<u64>,
        total_bytes: Option<u64>,
    },
}

impl Memory {
    fn peak_bytes(&self) -> u64 {
        match self {
            Self::Host { peak_bytes } | Self::Device { peak_bytes, .. } => *peak_bytes,
        }
    }
}

/// Watches a device's memory; that of the CPU is the process.
struct Watch {
    name: DeviceName,
    device: Device,
    free_bytes: Option<u64>,
    total_bytes: Option<u64>,
    peak_bytes: u64,
    peak_in_use_bytes: u64,
}

impl Watch {
    fn new(name: DeviceName) -> Result<Self, DeviceError> {
        let device = device::open(name)?;
        let card = cards::cards()
            .ok()
            .and_then(|cards| card_of(name, &cards).cloned());
        Ok(Self {
            name,
            device,
            free_bytes: free_bytes(name),
            total_bytes: card.map(|card| card.total_bytes),
            peak_bytes: 0,
            peak_in_use_bytes: 0,
        })
    }

    fn look(&mut self) {
        let Some(usage) = self.device.memory_pool_usage() else {
            return;
        };
        // Pages that the pools let go of stay taken until the backend tells the driver so.
        let taken = self.free_bytes.zip(free_bytes(self.name));
        let taken = taken.map(|(before, now)| before.saturating_sub(now));
        self.peak_bytes = self.peak_bytes.max(taken.unwrap_or(usage.bytes_reserved));
        self.peak_in_use_bytes = self.peak_in_use_bytes.max(usage.bytes_in_use);
    }

    fn end(mut self) -> Memory {
        self.look();
        match self.name {
            DeviceName::Cpu => Memory::Host {
                peak_bytes: 1024 * peak_resident_kib(std::process::id()),
            },
            _ => Memory::Device {
                device: self.name.to_string(),
                peak_bytes: self.peak_bytes,
                peak_in_use_bytes: self.peak_in_use_bytes,
                free_bytes: self.free_bytes,
                total_bytes: self.total_bytes,
            },
        }
    }
}

#[cfg(feature = "cuda")]
fn free_bytes(name: DeviceName) -> Option<u64> {
    let driver = cards::driver().ok()?;
    driver.free_bytes(name.card()?).ok()
}

#[cfg(not(feature = "cuda"))]
fn free_bytes(_name: DeviceName) -> Option<u64> {
    None
}

pub(super) fn run(mut config: RunConfig, json: bool) -> anyhow::Result<()> {
    check(&[model_file(&config)])?;
    check_targets(&config)?;
    let inspection = inspect(config.model.path.as_ref())?;
    process::set_compute_threads(config.cluster.threads_per_worker)?;
    count_sources(&mut config);
    let workload = workload(&config, Role::Learner);
    let plan = estimate(&inspection, Role::Learner, &workload)?;
    let name = config.learner.device.first();
    room::check_together(&config, &[worker::Role::Learner], name)?;
    let mut watch =
        Watch::new(name).map_err(|error| UsageError(format!("learner.device: {error}")))?;
    let mut told = 0;
    let walked = dry_run(&config, &mut |progress| {
        watch.look();
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
        memory: watch.end(),
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
    let peak = report.memory.peak_bytes();
    let whose = match &report.memory {
        Memory::Host { .. } => "it",
        Memory::Device { device, .. } => device,
    };
    say!(
        "{whose} had {} at most, {:+.1} % of what was planned",
        size(peak),
        100.0 * (peak as f64 / report.plan.bytes as f64 - 1.0)
    );
    if let Memory::Device {
        peak_in_use_bytes,
        free_bytes,
        total_bytes,
        ..
    } = &report.memory
    {
        say!(
            "  of it in tensors after a micro batch: {}",
            size(*peak_in_use_bytes)
        );
        if let (Some(free), Some(total)) = (free_bytes, total_bytes) {
            say!("  free before: {} of {}", size(*free), size(*total));
        }
    }
    say!("time: {load_s:.2} s to load, {iteration_s:.2} s for the iteration, of which");
    for (stage, seconds) in stages_s {
        say!("  {stage:<24} {seconds:>9.3} s");
    }
}
