//! The backend extension: ops with a hand-written forward and backward pass, on burn's CPU backend and on its CubeCL devices.
//!
//! [`apply`] looks at where the tensors are. Where the op has kernels of ours, on an autodiff device or not, they run and are
//! recorded as one step of the graph; anything else is handed back for the plain ops. Types may be mixed: an op computes in f32,
//! its result has the type of its first input, and every gradient that of its own input.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{
    BalancedCheckpointing, CheckpointStrategy, NoCheckpointing,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, Backend, BackendTensor, DispatchAutodiffContext, DispatchKindConversion,
    DispatchTensor, DispatchTensorKind, GradientCheckpointingStrategy, TensorMetadata,
};
#[cfg(feature = "cube")]
use burn::tensor::Tensor;
use burn::tensor::{DType, Shape};
use std::fmt::Debug;

#[cfg(feature = "cube")]
pub(crate) use super::cube::Cube;
use super::path::{Path, path};
use super::values;

pub(crate) use burn::backend::Flex;

/// A backend on which there are kernels of ours.
pub(crate) trait OpBackend: Backend {
    /// A result of an op, or a gradient, as `dtype`.
    fn narrowed(tensor: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self>;
}

impl OpBackend for Flex {
    fn narrowed(tensor: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        values::narrowed(tensor, dtype)
    }
}

/// A tensor of an autodiff device.
type Recorded<B> = FloatTensor<Autodiff<B>>;

/// An op of `N` float tensors with one result, which follows the first of them.
pub(crate) trait FusedOp<B: OpBackend, const N: usize>:
    Clone + Debug + Send + 'static
{
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// Whether there are kernels for such tensors; `tracked[i]` says whether input `i` will want a gradient.
    fn takes(&self, _shapes: &[Shape; N], _tracked: [bool; N]) -> bool {
        true
    }

    /// `tracked[i]` says whether input `i` will want a gradient: only what those need is to be saved.
    ///
    /// Inputs may be narrower than f32; so may be the result, if it has the type of the first input.
    fn forward(
        &self,
        inputs: [FloatTensor<B>; N],
        tracked: [bool; N],
    ) -> (FloatTensor<B>, Self::Saved);

    /// The gradients of the tracked inputs, from that of the result; any of them may be narrower than f32.
    fn backward(
        &self,
        saved: Self::Saved,
        grad: FloatTensor<B>,
        tracked: [bool; N],
    ) -> [Option<FloatTensor<B>>; N];
}

/// An op with kernels for every backend that this build has.
#[cfg(not(feature = "cube"))]
pub(crate) trait AnyOp<const N: usize>: FusedOp<Flex, N> {}
#[cfg(not(feature = "cube"))]
impl<const N: usize, Op: FusedOp<Flex, N>> AnyOp<N> for Op {}

/// An op with kernels for every backend that this build has.
#[cfg(feature = "cube")]
pub(crate) trait AnyOp<const N: usize>: FusedOp<Flex, N> + FusedOp<Cube, N> {}
#[cfg(feature = "cube")]
impl<const N: usize, Op: FusedOp<Flex, N> + FusedOp<Cube, N>> AnyOp<N> for Op {}

/// Runs the op, or gives the inputs back if there are no kernels for where or what they are.
pub(crate) fn apply<const N: usize, Op: AnyOp<N>>(
    op: Op,
    inputs: [DispatchTensor; N],
) -> Result<DispatchTensor, [DispatchTensor; N]> {
    match place(&inputs) {
        Some(Place::Cpu) => apply_on::<Flex, N, Op>(op, inputs),
        #[cfg(feature = "cube")]
        Some(Place::Cube) => apply_on::<Cube, N, Op>(op, inputs),
        None => Err(inputs),
    }
}

/// [`apply`], for an op that has kernels for the CPU alone.
pub(crate) fn apply_on_cpu<const N: usize, Op: FusedOp<Flex, N>>(
    op: Op,
    inputs: [DispatchTensor; N],
) -> Result<DispatchTensor, [DispatchTensor; N]> {
    match place(&inputs) {
        Some(Place::Cpu) => apply_on::<Flex, N, Op>(op, inputs),
        _ => Err(inputs),
    }
}

fn apply_on<B, const N: usize, Op>(
    op: Op,
    inputs: [DispatchTensor; N],
) -> Result<DispatchTensor, [DispatchTensor; N]>
where
    B: OpBackend,
    Op: FusedOp<B, N>,
    DispatchTensor: DispatchKindConversion<B>
        + DispatchKindConversion<Autodiff<B, NoCheckpointing>>
        + DispatchKindConversion<Autodiff<B, BalancedCheckpointing>>,
{
    let contexts = inputs.iter().map(|input| input.autodiff);
    let context = contexts.fold(DispatchAutodiffContext::Disabled, |a, b| a.merge(b));
    let shapes = inputs.each_ref().map(|input| input.kind.shape());
    match context {
        DispatchAutodiffContext::Disabled => {
            if !op.takes(&shapes, [false; N]) {
                return Err(inputs);
            }
            let inputs = inputs.map(plain::<B>);
            let dtype = inputs[0].dtype();
            let (output, _) = op.forward(inputs, [false; N]);
            let output = BackendTensor::Float(B::narrowed(output, dtype));
            Ok(<DispatchTensor as DispatchKindConversion<B>>::from_backend(
                output,
            ))
        }
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Disabled) => {
            record::<B, N, Op, NoCheckpointing>(op, inputs, shapes)
        }
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Balanced) => {
            record::<B, N, Op, BalancedCheckpointing>(op, inputs, shapes)
        }
    }
}

enum Place {
    Cpu,
    #[cfg(feature = "cube")]
    Cube,
}

/// Where all inputs are, if they are floats there and ops take kernels of ours at all.
fn place(inputs: &[DispatchTensor]) -> Option<Place> {
    if path() == Path::Plain || !inputs.iter().all(is_float) {
        return None;
    }
    let mut inputs = inputs.iter().map(inner);
    match inputs.next()? {
        DispatchTensorKind::Flex(_) => inputs
            .all(|kind| matches!(kind, DispatchTensorKind::Flex(_)))
            .then_some(Place::Cpu),
        #[cfg(feature = "cube")]
        DispatchTensorKind::Cube(_) => inputs
            .all(|kind| matches!(kind, DispatchTensorKind::Cube(_)))
            .then_some(Place::Cube),
        #[allow(unreachable_patterns)]
        _ => None,
    }
}

fn inner(tensor: &DispatchTensor) -> &DispatchTensorKind {
    match &tensor.kind {
        DispatchTensorKind::Autodiff(inner) => inner,
        kind => kind,
    }
}

fn is_float(tensor: &DispatchTensor) -> bool {
    matches!(tensor.kind.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

fn plain<B: OpBackend>(tensor: DispatchTensor) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(tensor)
        .expect("a tensor of this backend")
        .float()
}

/// The numbers of a tensor on a CubeCL device for which ops have kernels of ours, if no gradient goes through it.
#[cfg(feature = "cube")]
pub(crate) fn cube_constant<const D: usize>(tensor: Tensor<D>) -> Option<FloatTensor<Cube>> {
    fn untracked(tensor: Recorded<Cube>) -> Option<FloatTensor<Cube>> {
        (!tensor.is_tracked()).then(|| tensor.into_primitive())
    }
    let tensor = tensor.into_dispatch();
    let Some(Place::Cube) = place(std::slice::from_ref(&tensor)) else {
        return None;
    };
    match tensor.autodiff {
        DispatchAutodiffContext::Disabled => Some(plain::<Cube>(tensor)),
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Disabled) => {
            untracked(lifted::<Cube, NoCheckpointing>(tensor))
        }
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Balanced) => {
            untracked(lifted::<Cube, BalancedCheckpointing>(tensor))
        }
    }
}

/// A tensor of a plain device takes part as a constant.
fn lifted<B: OpBackend, C>(tensor: DispatchTensor) -> Recorded<B>
where
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    if tensor.autodiff == DispatchAutodiffContext::Disabled {
        return Recorded::<B>::new(plain::<B>(tensor));
    }
    <DispatchTensor as DispatchKindConversion<Autodiff<B, C>>>::try_into_backend(tensor)
        .expect("an autodiff tensor of this backend")
        .float()
}

fn dispatched<B: OpBackend, C>(tensor: Recorded<B>) -> DispatchTensor
where
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<Autodiff<B, C>>,
{
    let tensor = BackendTensor::Float(tensor);
    <DispatchTensor as DispatchKindConversion<Autodiff<B, C>>>::from_backend(tensor)
}

fn record<B, const N: usize, Op, C>(
    op: Op,
    inputs: [DispatchTensor; N],
    shapes: [Shape; N],
) -> Result<DispatchTensor, [DispatchTensor; N]>
where
    B: OpBackend,
    Op: FusedOp<B, N>,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let inputs = inputs.map(lifted::<B, C>);
    let tracked = inputs.each_ref().map(|input| input.is_tracked());
    if !op.takes(&shapes, tracked) {
        return Err(inputs.map(dispatched::<B, C>));
    }
    let nodes = inputs.each_ref().map(|input| input.node());
    let values = inputs.map(Recorded::<B>::into_primitive);
    let dtypes = values.each_ref().map(TensorMetadata::dtype);
    let (output, saved) = op.forward(values, tracked);
    let output = B::narrowed(output, dtypes[0]);
    // A result that no gradient goes through starts no graph, which would keep what the op saved.
    let output = if tracked.contains(&true) {
        let step = Step(std::marker::PhantomData);
        match step.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((op, saved, dtypes), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    } else {
        Recorded::<B>::new(output)
    };
    Ok(dispatched::<B, C>(output))
}

/// The backward step of an op in burn's graph.
#[derive(Debug)]
struct Step<Op>(std::marker::PhantomData<fn() -> Op>);

impl<B: OpBackend, const N: usize, Op: FusedOp<B, N>> Backward<B, N> for Step<Op> {
    type State = (Op, Op::Saved, [DType; N]);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (op, saved, dtypes) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let tracked = ops.parents.each_ref().map(Option::is_some);
        let input_grads = op.backward(saved, grad, tracked);
        for ((parent, grad), dtype) in ops.parents.into_iter().zip(input_grads).zip(dtypes) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<B>(parent.id, B::narrowed(grad, dtype));
            }
        }
    }
}
