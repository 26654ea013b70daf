//! One training task on the device.

use std::{
    cell::LazyCell,
    collections::HashMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use burn::tensor::Device;
use bytes::Bytes;
use retouch_models::{
    device,
    editor::{Condition, Editor, EditorSource, Layout, Parts},
    exchange,
    lora::{self, LoraAdapter, flat_len},
    memory,
    weights::LoadError,
};
use retouch_proto::{
    ContentHash, GroupId, LeaseId,
    config::{Reference, RunConfig},
    run_folder::{CheckpointFile, RunFolder},
    seed::{self, Purpose},
    task::{TrainGroup, TrainMetrics},
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::{
    checkpoint::{self, Checkpoint, CheckpointError},
    inputs::{GroupBytes, TrainInputs},
    ranks::Ranks,
};
use crate::{
    card::Card,
    collective::{Collective, CollectiveError},
    metrics::StepMetrics,
    shards::ShardReduce,
    state::{LearnerState, StateError},
    step::{self, GroupData, SampledBy, SealedGroup, SealedIteration, StepError, StepOutput},
};

/// A training task that did not happen.
#[derive(Debug, Error)]
pub(super) enum TrainError {
    /// The input state can't be read.
    #[error("the learner's state: {0}")]
    State(#[from] StateError),
    /// The input state is of another model, or of other settings of the adapter.
    #[error(
        "the learner's state has {found} parameters, but the adapter that the run file asks for has \
         {expected}: it is of another model or another [lora] section"
    )]
    OtherModel {
        /// Of the state.
        found: usize,
        /// Of the adapter.
        expected: usize,
    },
    /// A group's blobs or an adapter can't be read.
    #[error("{what}: {source}")]
    Blob {
        /// What it is for.
        what: String,
        /// What is wrong with it.
        source: LoadError,
    },
    /// A sample's policy is unknown (A6).
    #[error("group {group} was sampled by version {version}, which the task does not bring")]
    UnknownVersion {
        /// The group.
        group: GroupId,
        /// The version.
        version: ContentHash,
    },
    /// The ranks did not get together.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The step itself.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The checkpoint can't be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl TrainError {
    /// Whether there was no space for the checkpoint, which says nothing about the step.
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Checkpoint(error) if error.is_disk_full())
    }

    /// Whether another attempt could go better: ranks come back and disks are
    /// cleared, but the same numbers give the same error.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Collective(error) => !error.is_lasting(),
            Self::Checkpoint(_) => true,
            Self::Step(step) => matches!(step, StepError::AllReduce(_) | StepError::Cancelled),
            Self::State(_)
            | Self::OtherModel { .. }
            | Self::Blob { .. }
            | Self::UnknownVersion { .. } => false,
        }
    }
}

/// The outcome of a training task.
#[derive(Debug)]
pub(super) struct Trained {
    pub(super) state: Bytes,
    pub(super) version: Bytes,
    pub(super) ema_adapter: Option<ContentHash>,
    pub(super) metrics: TrainMetrics,
}

/// The base model, the settings and the other ranks.
#[derive(Debug)]
pub(super) struct Trainer {
    editor: Editor,
    device: Device,
    config: RunConfig,
    run_dir: PathBuf,
    /// The flat adapter that the KL term measures from; `None` is the base model.
    reference: Option<Vec<f32>>,
    ranks: Ranks,
}

impl Trainer {
    /// Loads the base model of a run, and its reference; encoders are not needed.
    pub(super) fn load(
        config: &RunConfig,
        device: Device,
        editors: &EditorSource,
        run_dir: PathBuf,
        ranks: Ranks,
    ) -> Result<Self, LoadError> {
        let dtype = device::float_type(config.model.dtype);
        let folder = Path::new(&config.model.path);
        Layout::check_targets(folder, &config.lora.adapter)?;
        let editor = editors.load(folder, &device, Parts::Transformer, dtype)?;
        let len = flat_len(&config.lora.adapter, editor.projections());
        let reference = match config.learner.reference {
            Reference::Base => None,
            Reference::Init => Some(initial_policy(&run_dir, len)?),
        };
        Ok(Self {
            editor,
            device,
            config: config.clone(),
            run_dir,
            reference,
            ranks,
        })
    }

    /// Makes one task: all of it or nothing (A8).
    pub(super) fn train(
        &mut self,
        lease: LeaseId,
        inputs: &TrainInputs,
        cancel: &CancellationToken,
    ) -> Result<Trained, TrainError> {
        let state = self.input_state(inputs)?;
        // Every rank sees by itself that nothing changes: the others need not be met, nor waited for.
        let output = if inputs.task.groups.is_empty() {
            StepOutput {
                state,
                metrics: StepMetrics::default(),
            }
        } else {
            self.step(lease, inputs, &state, cancel)?
        };
        let StepOutput { state, metrics } = output;
        let begin = Instant::now();
        let (state_bytes, version) = (state.to_bytes(), exchange::adapter_to_bytes(&state.old));
        let publish_s = begin.elapsed().as_secs_f64();
        let mut trained = Trained {
            state: state_bytes.into(),
            version: version.into(),
            ema_adapter: None,
            metrics: metrics.into(),
        };
        trained.metrics.publish_s = publish_s;
        // All ranks have the same state, so one of them writes it; the folder is shared.
        if inputs.task.checkpoint && inputs.task.collective.rank == 0 {
            self.write_checkpoint(inputs, &state, &mut trained)?;
        }
        Ok(trained)
    }

    fn input_state(&self, inputs: &TrainInputs) -> Result<LearnerState, TrainError> {
        // Derived on every rank, so that the first iteration has no state to wait for.
        let Some(bytes) = &inputs.state else {
            return Ok(LearnerState::initial(self.initial_adapter()));
        };
        let state = LearnerState::from_bytes(bytes)?;
        let expected = flat_len(&self.config.lora.adapter, self.editor.projections());
        let found = state.theta.len();
        // Here rather than in the step, to name the likely cause: an edited run file beside an old checkpoint.
        if found != expected {
            return Err(TrainError::OtherModel { found, expected });
        }
        Ok(state)
    }

    fn step(
        &mut self,
        lease: LeaseId,
        inputs: &TrainInputs,
        state: &LearnerState,
        cancel: &CancellationToken,
    ) -> Result<StepOutput, TrainError> {
        let groups = self.sealed_groups(inputs, state)?;
        let iteration = SealedIteration {
            editor: &self.editor,
            config: &self.config,
            number: inputs.task.iteration,
            reference: self.reference.as_deref(),
            groups: &groups,
        };
        let mut observe = |_| {
            if cancel.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let output = self.ranks.with(
            lease,
            &inputs.task.collective,
            cancel,
            |collective: &mut Collective| {
                tracing::debug!(rank = collective.rank(), groups = groups.len(), "training");
                Ok(step::train_iteration(
                    iteration,
                    state,
                    collective,
                    &mut observe,
                )?)
            },
        );
        // Activations leave a device that other roles may compute on until the next iteration.
        if !memory::is_host(&self.device) {
            memory::release(&self.device);
        }
        output
    }

    fn sealed_groups(
        &self,
        inputs: &TrainInputs,
        state: &LearnerState,
    ) -> Result<Vec<SealedGroup>, TrainError> {
        let versions = self.versions(inputs, state)?;
        // The initial adapter changes nothing, since its second factors are zero. A group that was sampled without a
        // version is late where the old policy is another one by now.
        let initial: LazyCell<Arc<[f32]>, _> = LazyCell::new(|| self.initial_adapter().into());
        let sampled_by = |group: &TrainGroup| {
            let Some(version) = group.version else {
                return Ok(match state.step {
                    0 => SampledBy::Old,
                    _ => SampledBy::Earlier(initial.clone()),
                });
            };
            let known = versions.get(&version).cloned();
            known.ok_or(TrainError::UnknownVersion {
                group: group.group,
                version,
            })
        };
        let group = |(group, bytes): (&TrainGroup, &Option<GroupBytes>)| {
            let data = bytes.as_ref().map(|bytes| self.group_data(group, bytes));
            Ok(SealedGroup {
                group: group.group,
                advantages: group.advantages.clone(),
                sampled_by: sampled_by(group)?,
                data: data.transpose()?,
            })
        };
        let groups = inputs.task.groups.iter().zip(&inputs.groups);
        groups.map(group).collect()
    }

    /// The policies that made samples, by the names that groups give them.
    fn versions(
        &self,
        inputs: &TrainInputs,
        state: &LearnerState,
    ) -> Result<HashMap<ContentHash, SampledBy>, TrainError> {
        // By content, not by iteration: after an iteration without groups two have the same.
        let old = ContentHash::of(&exchange::adapter_to_bytes(&state.old));
        let read = |(&version, bytes): (&ContentHash, &Bytes)| {
            let flat = exchange::adapter_from_bytes(bytes, state.old.len());
            let flat = flat.map_err(|source| TrainError::Blob {
                what: format!("version {version}"),
                source,
            })?;
            Ok::<_, TrainError>((version, SampledBy::Earlier(flat.into())))
        };
        let others = inputs
            .versions
            .iter()
            .filter(|(version, _)| **version != old);
        let mut versions = others.map(read).collect::<Result<HashMap<_, _>, _>>()?;
        versions.insert(old, SampledBy::Old);
        Ok(versions)
    }

    fn group_data(&self, group: &TrainGroup, bytes: &GroupBytes) -> Result<GroupData, TrainError> {
        let blob = |what: &str| {
            let what = format!("{what} of group {}", group.group);
            move |source| TrainError::Blob { what, source }
        };
        Ok(GroupData {
            condition: Condition::from_bytes(&bytes.condition, &self.device)
                .map_err(blob("condition"))?,
            x0: exchange::latents_from_bytes(&bytes.x0, &self.device).map_err(blob("latents"))?,
        })
    }

    /// The adapter of the initial state, derived from the run's seed (A9).
    fn initial_adapter(&self) -> Vec<f32> {
        let seed = seed::derive(self.config.seed, Purpose::LoraInit, 0, 0, 0, 0);
        let projections = self.editor.projections();
        lora::init_flat(&self.config.lora.adapter, projections, seed)
    }

    fn write_checkpoint(
        &self,
        inputs: &TrainInputs,
        state: &LearnerState,
        trained: &mut Trained,
    ) -> Result<(), TrainError> {
        let begin = Instant::now();
        let (projections, lora) = (self.editor.projections(), &self.config.lora.adapter);
        let earlier = inputs.task.earlier.iter().zip(&inputs.earlier);
        let checkpoint = Checkpoint {
            iteration: inputs.task.iteration,
            earlier: earlier
                .map(|(policy, bytes)| (policy.iteration, &bytes[..]))
                .collect(),
            state: &trained.state,
            version: &trained.version,
            ema: &LoraAdapter::from_flat(lora, projections, &state.ema, &self.device),
            lora,
            projections,
            card: Card::of_run(&self.config, inputs.task.iteration),
            is_last: inputs.task.iteration.0 >= self.config.iterations,
        };
        trained.ema_adapter = Some(checkpoint::write(&self.run_dir, &checkpoint)?);
        trained.metrics.checkpoint_s = begin.elapsed().as_secs_f64();
        Ok(())
    }
}

/// The policy that the run started from, which every learner finds in the run folder.
fn initial_policy(run_dir: &Path, len: usize) -> Result<Vec<f32>, LoadError> {
    let path = RunFolder::new(run_dir).initial(CheckpointFile::Version);
    let bytes = fs::read(&path).map_err(|source| LoadError::Io { path, source })?;
    exchange::adapter_from_bytes(&bytes, len)
}
