//! `retouch devices warm`: compiles and tunes what a run will launch, before the run.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::Args;
use image::RgbImage;
use retouch_learner::{dry_run::dry_run, workload::condition_shape};
use retouch_models::{
    device::{self, cache},
    editor::{EditorSource, Parts, Sources},
    exchange, lora,
};
use retouch_proto::{ContentHash, GroupId, Iteration, RunConfig, config::DeviceName, worker::Role};
use retouch_reward_worker::scorer::{Group, Scorer};
use retouch_rollout_worker::sampler::{GroupInput, Sampler, Version};

use crate::{
    config::{ConfigArgs, check, count_sources, judge_files, model_file},
    exit::UsageError,
    output::remark,
    room,
};

/// What the judges are asked about.
const PROMPT: &str = "make the sky red";

/// Compile and tune what a run will launch on each of its devices, once, so that its first iteration need not.
///
/// Each role does on each of its devices what it will do in the run: a group is sampled and judged,
/// and one group's samples are trained on. What that compiles and measures stays in
/// $RETOUCH_CACHE (or ~/.cache/retouch), where every process of this node finds it. Cards are
/// warmed at the same time; tuned choices are kept by card number. Nothing of the run is written.
///
/// Examples:
///
///   retouch devices warm run.toml
///   retouch devices warm run.toml --device cuda:0
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct WarmArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only this one of the run's devices.
    #[arg(long)]
    device: Option<DeviceName>,
}

pub(crate) fn run(args: WarmArgs) -> anyhow::Result<()> {
    let mut config = args.config.load_here()?;
    let mut needed = vec![model_file(&config)];
    needed.extend(judge_files(&config));
    check(&needed)?;
    let devices = devices(&config);
    let begin = Instant::now();
    match (args.device, devices.len()) {
        (Some(device), _) => {
            let Some(roles) = devices.get(&device) else {
                let problem = format!(
                    "--device {device}: the run has nothing to do there that could be warmed"
                );
                return Err(UsageError(problem).into());
            };
            count_sources(&mut config);
            warm(&config, device, roles)?;
        }
        (None, 0) => {
            remark!("the run computes on the CPU alone, which has nothing to warm");
            return Ok(());
        }
        // One process a device: so it is in a run, and cards need not wait for one another.
        (None, _) => in_processes(&args.config, devices.keys())?,
    }
    if args.device.is_none() {
        remark!(
            "warm after {:.1} s; kept in {}",
            begin.elapsed().as_secs_f64(),
            cache::folder().display()
        );
    }
    Ok(())
}

/// The devices that have kernels to compile, with the roles on each.
fn devices(config: &RunConfig) -> BTreeMap<DeviceName, Vec<Role>> {
    let mut devices: BTreeMap<DeviceName, Vec<Role>> = BTreeMap::new();
    for role in Role::ALL {
        let (_, names) = config.devices_of(role);
        let compiled = names
            .names()
            .iter()
            .filter(|name| **name != DeviceName::Cpu);
        compiled.for_each(|name| devices.entry(*name).or_default().push(role));
    }
    devices
}

fn in_processes<'a>(
    config: &ConfigArgs,
    devices: impl Iterator<Item = &'a DeviceName>,
) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("can't find this program")?;
    let start = |device: &DeviceName| {
        let child = Command::new(&program)
            .args(["devices", "warm"])
            .args(config.arguments())
            .args(["--device", &device.to_string()])
            .stdin(Stdio::null())
            .spawn();
        Ok((*device, child.context("can't start a process")?))
    };
    let children: Vec<_> = devices.map(start).collect::<anyhow::Result<_>>()?;
    // All are waited for: none goes on alone after an error.
    let ended: Vec<_> = children
        .into_iter()
        .map(|(device, mut child)| (device, child.wait()))
        .collect();
    for (device, status) in ended {
        let status = status.context("can't wait for a process")?;
        if !status.success() {
            bail!("{device} could not be warmed: its process ended with {status}");
        }
    }
    Ok(())
}

/// One device, in this process: its roles one after the other.
fn warm(config: &RunConfig, name: DeviceName, roles: &[Role]) -> anyhow::Result<()> {
    let device = device::open(name).map_err(|error| UsageError(error.to_string()))?;
    for role in roles {
        room::check_together(config, &[*role], name)?;
        let begin = Instant::now();
        match role {
            Role::Rollout => roll_out(config, &device)?,
            Role::Reward => judge(config, &device)?,
            Role::Learner => train(config, name)?,
        }
        // The next role has the device to itself, as in a process of its own.
        device.memory_cleanup();
        remark!("{name}  {role:<8} {:>7.1} s", begin.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A group, from its prompt to decoded images, by a policy that has an adapter.
fn roll_out(config: &RunConfig, device: &Device) -> anyhow::Result<()> {
    let editors = EditorSource::shared();
    let (folder, dtype) = (
        Path::new(&config.model.path),
        device::float_type(config.model.dtype),
    );
    let editor = editors
        .load(folder, device, Parts::Transformer, dtype)
        .map_err(UsageError::from)?;
    let adapter = lora::init_flat(&config.lora.adapter, editor.projections(), config.seed);
    let bytes = exchange::adapter_to_bytes(&adapter);
    let version = Version {
        hash: ContentHash::of(&bytes),
        bytes: bytes.into(),
    };
    let mut sampler = Sampler::load(config, device.clone(), &editors).map_err(UsageError::from)?;
    let group = GroupId {
        iteration: Iteration(1),
        index: 0,
    };
    sampler.sample_group(&GroupInput {
        group,
        prompt: PROMPT.to_owned(),
        paths: Vec::new(),
        sources: Arc::new(sources(config)),
        version: Some(version),
        group_size: config.rollout.group_size as usize,
    })?;
    Ok(())
}

fn judge(config: &RunConfig, device: &Device) -> anyhow::Result<()> {
    let scorer =
        Scorer::load(&config.reward, device).map_err(|error| UsageError(error.to_string()))?;
    let edits = vec![picture(config); config.rollout.group_size as usize];
    scorer.score(&Group {
        prompt: PROMPT.to_owned(),
        requirement: PROMPT.to_owned(),
        sources: sources(config).images,
        edits,
    })?;
    Ok(())
}

/// As a dry run, on one group.
fn train(config: &RunConfig, name: DeviceName) -> anyhow::Result<()> {
    let mut config = config.clone();
    config.learner.device = name.into();
    config.rollout.groups_per_iteration = 1;
    dry_run(&config, &mut |_| std::ops::ControlFlow::Continue(()))?;
    Ok(())
}

/// As many as a row has at most, of the largest size.
fn sources(config: &RunConfig) -> Sources {
    let shape = condition_shape(config);
    Sources {
        images: vec![picture(config); shape.sources],
        size: shape.size,
    }
}

fn picture(config: &RunConfig) -> RgbImage {
    let size = condition_shape(config).size;
    RgbImage::new(size.width as u32, size.height as u32)
}

#[cfg(test)]
mod tests {
    use retouch_proto::config::Devices;

    use super::*;

    #[test]
    fn each_device_is_warmed_for_the_roles_on_it_and_the_cpu_for_none() {
        let mut config = RunConfig::default();
        config.model.device =
            Devices::named(vec![DeviceName::Cuda(0), DeviceName::Cuda(1)]).expect("cards");
        config.learner.device = DeviceName::Cuda(1).into();
        config.reward.device = DeviceName::Cpu.into();
        let devices = devices(&config).into_iter();
        let expected = [
            (DeviceName::Cuda(0), vec![Role::Rollout]),
            (DeviceName::Cuda(1), vec![Role::Rollout, Role::Learner]),
        ];
        assert_eq!(devices.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn every_role_does_its_work_once() {
        let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny");
        let mut config = retouch_proto::config::preset(retouch_proto::config::Preset::Tiny);
        config.model.path = format!("{assets}/editor");
        config.reward.terms[0].path = format!("{assets}/judge");
        config.reward.terms[0].template = format!("{assets}/judge/template.txt");
        config.rollout.group_size = 2;
        // No device is as quick to test on; what is done does not depend on it.
        warm(&config, DeviceName::Cpu, &Role::ALL).expect("all roles work");
    }
}
