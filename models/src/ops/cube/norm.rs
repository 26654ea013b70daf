use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use retouch_kernels::{self as kernels, CubeTensor, Normalization};

use super::super::fused::{FusedOp, OpBackend};
use super::super::norm::{Modulate, Norm};
use super::super::norm_kernels::Kind;
use super::{Cube, CubeFloat, launch_one, like};

const MODULATION: Normalization = Normalization {
    centered: true,
    one_plus_scale: true,
};

impl Norm {
    fn normalization(&self) -> Normalization {
        Normalization {
            centered: matches!(self.kind, Kind::Layer),
            one_plus_scale: false,
        }
    }
}

/// x, then the scale, then the shift, as far as there are any.
fn normalized(inputs: Vec<CubeFloat>, kind: Normalization, eps: f32) -> CubeFloat {
    let result = like(&inputs[0]);
    launch_one("normalize", inputs, result, move |inputs| {
        let mut inputs = inputs.into_iter();
        let x = inputs.next().expect("x");
        kernels::normalize(x, inputs.next(), inputs.next(), kind, eps)
    })
}

/// The gradient of x: of the inputs x, the gradient of the result and, where there is one, the scale.
fn input_grad(inputs: Vec<CubeFloat>, kind: Normalization, eps: f32) -> CubeFloat {
    let result = like(&inputs[0]);
    launch_one("normalize_grad", inputs, result, move |inputs| {
        let mut inputs = inputs.into_iter();
        let mut next = || -> Option<CubeTensor> { inputs.next() };
        let (x, grad) = (next().expect("x"), next().expect("a gradient"));
        kernels::normalize_grad(x, next(), grad, kind, eps)
    })
}

impl<const N: usize> FusedOp<Cube, N> for Norm {
    /// x and, where there is one, the weight.
    type Saved = Vec<CubeFloat>;

    /// Weights of norms are trained with everything else or not at all, in plain ops then.
    fn takes(&self, _: &[Shape; N], tracked: [bool; N]) -> bool {
        !tracked[1..].contains(&true)
    }

    fn forward(&self, inputs: [CubeFloat; N], tracked: [bool; N]) -> (CubeFloat, Self::Saved) {
        let saved = match tracked[0] {
            true => inputs[..N.min(2)].to_vec(),
            false => Vec::new(),
        };
        let y = normalized(inputs.into(), self.normalization(), self.eps);
        (y, saved)
    }

    fn backward(
        &self,
        mut saved: Self::Saved,
        grad: CubeFloat,
        _: [bool; N],
    ) -> [Option<CubeFloat>; N] {
        saved.insert(1, grad);
        let mut dx = Some(input_grad(saved, self.normalization(), self.eps));
        std::array::from_fn(|_| dx.take())
    }
}

impl FusedOp<Cube, 3> for Modulate {
    /// x and the scale.
    type Saved = [CubeFloat; 2];

    fn forward(&self, inputs: [CubeFloat; 3], _: [bool; 3]) -> (CubeFloat, Self::Saved) {
        let [x, scale, _] = inputs.clone();
        (normalized(inputs.into(), MODULATION, self.eps), [x, scale])
    }

    fn backward(
        &self,
        [x, scale]: Self::Saved,
        grad: CubeFloat,
        tracked: [bool; 3],
    ) -> [Option<CubeFloat>; 3] {
        let of_scale = tracked[1].then(|| {
            let normal = normalized(vec![x.clone()], MODULATION, self.eps);
            summed_over_rows(Cube::float_mul(normal, grad.clone()))
        });
        let of_shift = tracked[2].then(|| summed_over_rows(grad.clone()));
        let of_x = tracked[0].then(|| input_grad(vec![x, grad, scale], MODULATION, self.eps));
        [of_x, of_scale, of_shift]
    }
}

/// `[B, S, D]` summed to `[B, 1, D]`, in f32.
pub(super) fn summed_over_rows(x: CubeFloat) -> CubeFloat {
    debug_assert_eq!(x.rank(), 3);
    Cube::float_sum_dim(Cube::narrowed(x, DType::F32), 1)
}
