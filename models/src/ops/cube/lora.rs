use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use retouch_kernels::{self as kernels, CubeTensor};

use super::super::fused::FusedOp;
use super::super::linear::LoraLinear;
use super::linear::with_width;
use super::{Cube, CubeFloat, apart, launch, like, named};

/// What the way back needs; `down` is `x (scale a)^T`.
#[derive(Clone, Debug)]
pub(crate) struct Saved {
    x: CubeFloat,
    weight: CubeFloat,
    a: CubeFloat,
    b: CubeFloat,
    down: CubeFloat,
}

impl<const N: usize> FusedOp<Cube, N> for LoraLinear {
    type Saved = Saved;

    /// The base is frozen beside an adapter.
    fn takes(&self, _: &[Shape; N], tracked: [bool; N]) -> bool {
        !tracked[1] && !tracked[4..].contains(&true)
    }

    fn forward(&self, inputs: [CubeFloat; N], _: [bool; N]) -> (CubeFloat, Saved) {
        let [x, weight, a, b]: [CubeFloat; 4] = std::array::from_fn(|i| inputs[i].clone());
        let scale = self.scale;
        let results = [&weight, &a].map(|layer| with_width(&x, layer.shape()[0]));
        let [y, down] = launch("lora_linear", inputs.into(), results, move |inputs| {
            let ([x, weight, a, b], mut bias) = apart(inputs);
            kernels::lora_linear(x, weight, bias.next(), a, b, scale).into()
        });
        let saved = Saved {
            x,
            weight,
            a,
            b,
            down: down.clone(),
        };
        (y, saved)
    }

    fn backward(
        &self,
        saved: Saved,
        grad: CubeFloat,
        tracked: [bool; N],
    ) -> [Option<CubeFloat>; N] {
        let Saved {
            x,
            weight,
            a,
            b,
            down,
        } = saved;
        let scale = self.scale;
        let factor = |factor: &CubeFloat| (factor.shape(), DType::F32);
        let (results, wants_x) = ([factor(&a), factor(&b)], tracked[0]);
        let inputs = vec![grad, x.clone(), weight, a, b, down];
        let kernels = move |inputs: Vec<CubeTensor>| {
            let [grad, x, weight, a, b, down] = named(inputs);
            kernels::lora_grads(grad, x, weight, [a, b], down, scale, wants_x)
        };
        let (dx, da, db) = if wants_x {
            let [da, db] = results;
            let [da, db, dx] = launch("lora_grads", inputs, [da, db, like(&x)], move |inputs| {
                let (factors, dx) = kernels(inputs);
                let [da, db] = factors;
                [da, db, dx.expect("wanted")]
            });
            (Some(dx), da, db)
        } else {
            let [da, db] = launch("lora_grads", inputs, results, move |inputs| {
                kernels(inputs).0
            });
            (None, da, db)
        };
        let (mut dx, mut da, mut db) = (dx, Some(da), Some(db));
        std::array::from_fn(|i| match i {
            0 => dx.take(),
            2 => da.take(),
            3 => db.take(),
            _ => None,
        })
    }
}
