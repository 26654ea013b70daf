//! The memory that each role needs for a model, in parts that can be checked by hand.
//!
//! Weights, adapters, optimizer state and caches are counted; what passes through a network at once is a
//! multiple of its tokens' width, measured on small models (`models/tests/memory_estimates.rs`).

use std::fmt;
use std::path::Path;

use burn::tensor::DType;
use retouch_settings::DeviceName;
use serde::Serialize;

use super::effort::Effort;
use super::folder::{FolderKind, Inspection};
use super::judge::JudgeOutline;
use super::{editor_effort, editor_memory};
use crate::editor::{Assumed, ImageSize, Outline, images_at_once};
use crate::lora::{Checkpointing, LoraConfig};
use crate::weights::LoadError;

/// An f32 as a factor.
pub(super) const F32: (u64, &str) = (4, "B (f32)");

/// What a process does with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Samples groups of edits.
    RolloutWorker,
    /// Scores groups.
    RewardWorker,
    /// Trains the adapter.
    Learner,
}

impl Role {
    /// Every role that holds a model.
    pub const ALL: [Self; 3] = [Self::RolloutWorker, Self::RewardWorker, Self::Learner];

    /// What its model is.
    pub fn needs(self) -> FolderKind {
        match self {
            Self::RolloutWorker | Self::Learner => FolderKind::Editor,
            Self::RewardWorker => FolderKind::Judge,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::RolloutWorker => "rollout-worker",
            Self::RewardWorker => "reward-worker",
            Self::Learner => "learner",
        })
    }
}

/// What a role has to do at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Where it computes: what is in memory there is what is told.
    pub device: DeviceName,
    /// The float type of the weights.
    pub dtype: DType,
    /// Size of the edited images and of each source.
    pub size: ImageSize,
    /// Most source images of an edit.
    pub sources: usize,
    /// Edits of a group.
    pub group_size: usize,
    /// Prompt tokens of an editor.
    pub max_sequence_length: usize,
    /// Steps in which an edit is sampled.
    pub num_inference_steps: usize,
    /// Whether each step is guided.
    pub guidance: Guidance,
    /// (sample, timestep) pairs in one forward pass of a learner.
    pub micro_batch_size: usize,
    /// What a learner keeps of a forward pass.
    pub checkpointing: Checkpointing,
    /// Micro batches that a learner works on at a time: one on a GPU, one a thread on a CPU.
    pub lanes: usize,
    /// Gradient sums that a learner holds.
    pub shards: usize,
    /// The adapter.
    pub lora: LoraConfig,
    /// What the KL term of a learner's loss keeps beside the base model.
    pub reference: Reference,
}

/// The policy from which a learner's KL term measures the trained one's distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// The base model, or none.
    Base,
    /// An adapter of the trained one's size.
    Adapter,
}

impl Reference {
    pub(super) fn adapters(self) -> u64 {
        match self {
            Self::Base => 0,
            Self::Adapter => 1,
        }
    }
}

/// How many velocities a sampling step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guidance {
    /// One.
    None,
    /// Two: classifier-free guidance has one under the negative prompt besides.
    ClassifierFree,
}

impl Guidance {
    pub(super) fn evaluations(self) -> u64 {
        match self {
            Self::None => 1,
            Self::ClassifierFree => 2,
        }
    }
}

impl Workload {
    /// Edits of a group that are decoded at once.
    pub(super) fn decoded_at_once(&self) -> usize {
        images_at_once(self.size).min(self.group_size.max(1))
    }

    /// A number on its way through a network, as a factor: CPUs compute in f32.
    pub(super) fn number(&self) -> (u64, &'static str) {
        match self.device {
            DeviceName::Cpu => F32,
            _ => (self.dtype.size() as u64, "B"),
        }
    }

    pub(super) fn assumed(&self) -> Assumed<'_> {
        Assumed {
            size: self.size,
            sources: self.sources,
            prompt_tokens: self.max_sequence_length,
            lora: &self.lora,
        }
    }
}

/// One part of an estimate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryLine {
    /// What it is for.
    pub what: String,
    /// How it comes about.
    pub arithmetic: String,
    /// The product.
    pub bytes: u64,
}

/// The memory that a role needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The role.
    pub role: Role,
    /// The parts, which are there at the same time.
    pub lines: Vec<MemoryLine>,
    /// Their sum.
    pub bytes: u64,
    /// The arithmetic that it does.
    pub effort: Effort,
}

/// What a role needs for the model in an inspected folder.
///
/// # Errors
/// If the role needs another kind of model, or a configuration can't be read.
pub fn estimate(
    inspection: &Inspection,
    role: Role,
    workload: &Workload,
) -> Result<Estimate, LoadError> {
    let folder: &Path = &inspection.folder;
    if role.needs() != inspection.kind {
        let (needed, found) = (role.needs(), inspection.kind);
        let reason = format!("the {role} needs {needed}, the folder holds {found}");
        return Err(LoadError::format(folder, reason));
    }
    let (lines, effort) = match role {
        Role::RewardWorker => {
            let judge = JudgeOutline::read(folder, workload)?;
            (judge.memory(workload), judge.effort(workload))
        }
        Role::RolloutWorker => {
            let editor = Outline::read(&inspection.class, folder, &workload.assumed())?;
            let memory = editor_memory::rollout(&editor, workload);
            (memory, editor_effort::rollout(&editor, workload))
        }
        Role::Learner => {
            let editor = Outline::read(&inspection.class, folder, &workload.assumed())?;
            let memory = editor_memory::learner(&editor, workload);
            (memory, editor_effort::learner(&editor, workload))
        }
    };
    Ok(Estimate {
        role,
        bytes: bytes(&lines),
        lines,
        effort,
    })
}

impl MemoryLine {
    /// A product of named factors, such as `[(11901408320, "values"), (2, "B")]`.
    pub(super) fn product(what: impl Into<String>, factors: &[(u64, &str)]) -> Self {
        let words = factors
            .iter()
            .map(|(count, unit)| format!("{count} {unit}").trim_end().to_owned());
        Self {
            what: what.into(),
            arithmetic: words.collect::<Vec<_>>().join(" x "),
            bytes: factors.iter().map(|(count, _)| count).product(),
        }
    }

    /// The weights of a model.
    pub(super) fn weights(what: &str, parameters: u64, dtype: DType) -> Self {
        let size = dtype.size() as u64;
        let unit = format!("B ({})", dtype_name(dtype));
        Self::product(
            format!("{what} weights"),
            &[(parameters, "values"), (size, &unit)],
        )
    }
}

/// Of what is there one after the other, that which takes more.
pub(super) fn fuller(one: Vec<MemoryLine>, other: Vec<MemoryLine>) -> Vec<MemoryLine> {
    match bytes(&one) > bytes(&other) {
        true => one,
        false => other,
    }
}

fn bytes(lines: &[MemoryLine]) -> u64 {
    lines.iter().map(|line| line.bytes).sum()
}

fn dtype_name(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}
