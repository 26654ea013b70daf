use std::ops::Range;

use burn::tensor::Tensor;
use retouch_models::editor::{Editor, Prepared};
use retouch_models::lora::LoraAdapter;

use crate::metrics::{StageTimes, timed};
use crate::nft::{NftBatch, NftConfig, rows};

/// What the policies that are not trained predict for a batch. Both are [B, S, C].
#[derive(Clone, Debug)]
pub(super) struct Frozen {
    /// Of the policy that sampled; `None` if it is the trained one.
    pub(super) v_old: Option<Tensor<3>>,
    /// Of the reference; `None` where the KL term has no weight.
    pub(super) v_ref: Option<Tensor<3>>,
}

/// The policies that are not trained.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrozenPolicies<'a> {
    /// The one that sampled; `None` if it is the trained one.
    pub(super) old: Option<&'a LoraAdapter>,
    /// The one that the KL term measures from; `None` is the base model.
    pub(super) reference: Option<&'a LoraAdapter>,
}

impl Frozen {
    /// Asks the policy that sampled and the reference.
    pub(super) fn ask(
        editor: &Editor,
        condition: &Prepared,
        policies: FrozenPolicies<'_>,
        batch: &NftBatch,
        config: &NftConfig,
        times: &mut StageTimes,
    ) -> Self {
        let pairs = batch.t.len();
        let velocity =
            |adapter| editor.velocity_of(batch.x_t.clone(), batch.times(), condition, adapter);
        // Left out where the trained policy would only be asked twice, as in the first iteration.
        let v_old = policies.old.map(|old| {
            times.evaluations.old += pairs;
            timed(&mut times.v_old, || velocity(Some(old)))
        });
        // Left out where the KL term has no weight.
        let v_ref = (config.kl_beta != 0.0).then(|| {
            times.evaluations.reference += pairs;
            timed(&mut times.v_ref, || velocity(policies.reference))
        });
        Self { v_old, v_ref }
    }

    /// What they predict for some of the pairs.
    pub(super) fn rows(&self, pairs: Range<usize>) -> Self {
        let part = |v: &Option<Tensor<3>>| v.as_ref().map(|v| rows(v, &pairs));
        Self {
            v_old: part(&self.v_old),
            v_ref: part(&self.v_ref),
        }
    }
}
