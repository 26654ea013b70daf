//! Attention that never keeps the scores: the backward pass computes them again from their log-sum-exp.

use burn::prelude::*;
use burn_flex::FlexTensor;

use super::attention_kernels::{Problem, backward, forward};
use super::fused::{self, Flex, FusedOp};
use super::heads::HeadGrad;
use super::mask::{AttentionMask, Lengths};
use super::plain;
use super::values::{dense, dense_rows, dims, tensor};

/// Scaled dot-product attention, `softmax(scale q k^T + mask) v`, heads joined again.
///
/// With fewer key heads than query heads, `Hq / Hkv` neighbouring query heads share a key head.
/// Views such as those of [`split_heads`](super::split_heads) are read as they are.
///
/// # Shapes
/// - q: `[B, Hq, S, hd]`, k and v: `[B, Hkv, Sk, hd]`
/// - output: `[B, S, Hq * hd]`
pub fn attention(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    mask: &AttentionMask,
    scale: f32,
) -> Tensor<3> {
    check(&q, &k, &v, mask);
    let op = Attention {
        mask: mask.clone(),
        scale,
    };
    match fused::apply(op, [q, k, v].map(Tensor::into_dispatch)) {
        Ok(y) => Tensor::from_dispatch(y),
        Err(inputs) => {
            let [q, k, v] = inputs.map(Tensor::from_dispatch);
            match mask {
                // Masks stay with our own op: a row that may see nothing is zero there, which backends do not promise.
                AttentionMask::None => plain::backend_attention(q, k, v, scale),
                mask => plain::attention(q, k, v, None, mask, scale),
            }
        }
    }
}

/// [`attention`] with `bias` added to the scaled scores, as T5's relative positions are.
///
/// # Shapes
/// - q: `[B, Hq, S, hd]`, k and v: `[B, Hkv, Sk, hd]`
/// - bias: `[B or 1, Hq, S, Sk]`
/// - output: `[B, S, Hq * hd]`
pub fn attention_with_bias(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Tensor<4>,
    mask: &AttentionMask,
    scale: f32,
) -> Tensor<3> {
    check(&q, &k, &v, mask);
    plain::attention(q, k, v, Some(bias), mask, scale)
}

fn check(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, mask: &AttentionMask) {
    let [batch, heads, queries, head_dim] = q.dims();
    let [_, kv_heads, keys, _] = k.dims();
    assert_eq!(
        heads % kv_heads,
        0,
        "query heads are a multiple of key heads"
    );
    assert_eq!(
        k.dims(),
        [batch, kv_heads, keys, head_dim],
        "keys fit the queries"
    );
    assert_eq!(v.dims(), k.dims(), "values fit the keys");
    mask.check(Lengths {
        batch,
        queries,
        keys,
    });
}

#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) mask: AttentionMask,
    pub(super) scale: f32,
}

#[derive(Clone, Debug)]
pub(super) struct Saved {
    inputs: [FlexTensor; 3],
    output: FlexTensor,
    /// Log of the sum of exponentials of every row of scores: `[B, Hq, S]`.
    log_sums: Vec<f32>,
}

impl Attention {
    fn problem<'a>(&'a self, [q, k, v]: &'a [FlexTensor; 3]) -> Problem<'a> {
        Problem::new(q, k, v, &self.mask, self.scale)
    }
}

impl FusedOp<Flex, 3> for Attention {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; 3], _: [bool; 3]) -> (FlexTensor, Saved) {
        // Heads are read where `split_heads` left them: a copy would be as large as the activations.
        let inputs = inputs.map(dense_rows);
        let [batch, heads, queries, width] = dims(&inputs[0]);
        let (output, log_sums) = forward(&self.problem(&inputs));
        let output = tensor(output, [batch, queries, heads * width]);
        let saved = Saved {
            inputs,
            output: output.clone(),
            log_sums,
        };
        (output, saved)
    }

    fn backward(
        &self,
        saved: Saved,
        grad: FlexTensor,
        tracked: [bool; 3],
    ) -> [Option<FlexTensor>; 3] {
        let grad = dense(grad);
        let mut grads = [0, 1, 2].map(|i| tracked[i].then(|| HeadGrad::like(&saved.inputs[i])));
        backward(
            &self.problem(&saved.inputs),
            &saved.output,
            &saved.log_sums,
            &grad,
            &mut grads,
        );
        grads.map(|grad| grad.map(HeadGrad::into_tensor))
    }
}
