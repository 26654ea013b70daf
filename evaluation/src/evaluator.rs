//! Edits pairs by the base and by an adapter, and scores both.

use std::path::Path;

use image::RgbImage;
use retouch_models::{
    device::{self, DeviceError},
    editor::EditError,
    lora::LoraAdapter,
    weights::LoadError,
};
use retouch_proto::RunConfig;
use retouch_reward_worker::scorer::{Group, ScoreError, Scorer, ScorerError};
use thiserror::Error;

use crate::{
    outcome::{Outcome, Scored},
    pair_editor::PairEditor,
    pairs::Pair,
};

/// An evaluation that can't be made.
#[derive(Debug, Error)]
pub enum EvaluationError {
    /// A device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The editor or the adapter can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A judge can't be loaded.
    #[error(transparent)]
    Scorer(#[from] ScorerError),
    /// A pair can't be edited.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// An edit has no score.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// An editor with an adapter, and the judges of both.
pub struct Evaluator {
    editor: PairEditor,
    adapter: LoraAdapter,
    scorer: Scorer,
}

impl Evaluator {
    /// Loads what a run file describes, with the adapter in the PEFT folder `adapter`.
    ///
    /// # Errors
    /// If a device, a model or the adapter can't be used.
    pub fn load(config: &RunConfig, adapter: &Path) -> Result<Self, EvaluationError> {
        let editor = PairEditor::load(config, config.model.device.first())?;
        Ok(Self {
            adapter: editor.adapter(adapter)?,
            editor,
            scorer: Scorer::load(&config.reward, &device::open(config.reward.device.first())?)?,
        })
    }

    /// Edits every pair before and after, on all cores or in batches on a GPU; outcomes are in the order of `pairs`.
    ///
    /// `progress` is called from any thread, once for each pair that is done.
    ///
    /// # Errors
    /// If a pair can't be edited or scored: the error of the first such pair.
    pub fn evaluate(
        &self,
        pairs: Vec<Pair>,
        progress: &(dyn Fn() + Sync),
    ) -> Result<Vec<Outcome>, EvaluationError> {
        let scored = self.editor.in_batches(&pairs, |batch| {
            let scored = self.before_and_after(batch, &pairs);
            batch.iter().for_each(|_| progress());
            scored
        })?;
        let outcome = |(pair, [before, after]): (Pair, [Scored; 2])| Outcome {
            pair,
            before,
            after,
        };
        Ok(pairs.into_iter().zip(scored).map(outcome).collect())
    }

    /// Solver, steps and guidance, in words.
    pub fn sampling(&self) -> String {
        self.editor.sampling()
    }

    /// Edits and scores of some pairs of one size, in their order.
    fn before_and_after(
        &self,
        batch: &[usize],
        pairs: &[Pair],
    ) -> Result<Vec<[Scored; 2]>, EvaluationError> {
        let conditions = self.editor.conditions(batch, pairs)?;
        let before = self.editor.edit(batch, &conditions, None)?;
        let after = self.editor.edit(batch, &conditions, Some(&self.adapter))?;
        let edits = before.into_iter().zip(after).zip(batch);
        let scored =
            edits.map(|((before, after), &index)| self.score(&pairs[index], before, after));
        scored.collect()
    }

    fn score(
        &self,
        pair: &Pair,
        before: RgbImage,
        after: RgbImage,
    ) -> Result<[Scored; 2], EvaluationError> {
        // One group of both: a judge scores them in one prefill.
        let group = Group {
            prompt: pair.prompt.clone(),
            requirement: pair.requirement.clone(),
            sources: pair.sources.images.clone(),
            edits: vec![before, after],
        };
        let scores = self.scorer.score(&group)?.scores;
        let mut scored = group.edits.into_iter().zip(scores);
        Ok([(); 2].map(|()| {
            let (image, score) = scored.next().expect("a score for each of two edits");
            Scored {
                oracle: pair.oracle.as_ref().map(|oracle| oracle(&image)),
                judge: score.reward,
                image,
            }
        }))
    }
}
