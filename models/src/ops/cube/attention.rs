use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use retouch_kernels::{self as kernels, AttentionGrads, CubeTensor, Keys};

use super::super::attention::Attention;
use super::super::attention_blocks::Scores;
use super::super::fused::FusedOp;
use super::super::mask::Lengths;
use super::ranges::{Ranges, ranges};
use super::{Cube, CubeFloat, apart, launch, like};

/// Heads are a multiple of what tensor cores take at once, and tiles of wider ones would not fit.
const WIDTH_STEP: usize = 16;
const WIDTH_MAX: usize = 256;

#[derive(Clone, Debug)]
pub(crate) struct Saved {
    inputs: [CubeFloat; 3],
    output: CubeFloat,
    log_sums: CubeFloat,
    ranges: Option<Ranges>,
}

impl FusedOp<Cube, 3> for Attention {
    type Saved = Saved;

    fn takes(&self, [q, k, _]: &[Shape; 3], tracked: [bool; 3]) -> bool {
        let (width, shared) = (q[3], q[1] != k[1]);
        // Only frozen models share key heads.
        width % WIDTH_STEP == 0 && width <= WIDTH_MAX && !(shared && tracked.contains(&true))
    }

    fn forward(&self, inputs: [CubeFloat; 3], _: [bool; 3]) -> (CubeFloat, Saved) {
        let scale = self.scale;
        let (q, k) = (inputs[0].shape(), inputs[1].shape());
        let lengths = Lengths {
            batch: q[0],
            queries: q[2],
            keys: k[2],
        };
        let ranges = ranges(&self.mask, lengths, &inputs[0].device());
        let output = (Shape::from([q[0], q[2], q[1] * q[3]]), inputs[0].dtype());
        let log_sums = (Shape::from([q[0], q[1], q[2]]), DType::F32);
        let given = with_ranges(inputs.to_vec(), &ranges);
        let [output, log_sums] = launch("attention", given, [output, log_sums], move |given| {
            let ([q, k, v], ranges) = apart(given);
            let keys = keys(ranges);
            let (output, log_sums) = kernels::attention(q, k, v, keys.as_ref(), scale);
            [output, log_sums]
        });
        let saved = Saved {
            inputs,
            output: output.clone(),
            log_sums,
            ranges,
        };
        (output, saved)
    }

    fn backward(&self, saved: Saved, grad: CubeFloat, _: [bool; 3]) -> [Option<CubeFloat>; 3] {
        let scale = self.scale;
        let results = saved.inputs.each_ref().map(like);
        let (q, k) = (&results[0].0, &results[1].0);
        let scores = Scores {
            batch: q[0],
            heads: q[1],
            queries: q[2],
            keys: k[2],
            number: results[0].1.size(),
        };
        let at_once = scores.queries_at_once();
        let [q, k, v] = saved.inputs;
        let given = vec![q, k, v, saved.output, saved.log_sums, grad];
        let given = with_ranges(given, &saved.ranges);
        launch("attention_backward", given, results, move |given| {
            let ([q, k, v, output, log_sums, grad], ranges) = apart(given);
            let keys = keys(ranges);
            let keys = keys.as_ref();
            let grads =
                kernels::attention_backward(q, k, v, output, log_sums, grad, keys, scale, at_once);
            let AttentionGrads { q, k, v } = grads;
            [q, k, v]
        })
        .map(Some)
    }
}

fn with_ranges(mut inputs: Vec<CubeFloat>, ranges: &Option<Ranges>) -> Vec<CubeFloat> {
    inputs.extend(ranges.iter().flatten().cloned());
    inputs
}

/// What [`with_ranges`] added.
fn keys(mut ranges: impl Iterator<Item = CubeTensor>) -> Option<Keys> {
    let (first, last) = ranges.next().zip(ranges.next())?;
    Some(Keys { first, last })
}
