//! The backend extension: ops with a hand-written forward and backward pass on burn's CPU backend.
//!
//! [`apply`] looks at where the tensors are. On the flex backend, on an autodiff device or not, the fused implementation
//! runs and is recorded as one step of the graph; anything else is handed back for the plain ops. Types may be mixed: an op
//! computes in f32, its result has the type of its first input, and every gradient that of its own input.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{
    BalancedCheckpointing, CheckpointStrategy, NoCheckpointing,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, BackendTensor, DispatchAutodiffContext, DispatchKindConversion, DispatchTensor,
    DispatchTensorKind, Flex, GradientCheckpointingStrategy,
};
use burn::tensor::DType;
use burn_flex::FlexTensor;
use std::fmt::Debug;

use super::values::narrowed;

/// A tensor of an autodiff device.
type Recorded = FloatTensor<Autodiff<Flex>>;

/// An op of `N` float tensors with one result, which follows the first of them.
pub(crate) trait FusedOp<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// `tracked[i]` says whether input `i` will want a gradient: only what those need is to be saved.
    ///
    /// Inputs may be narrower than f32; the result is f32.
    fn forward(&self, inputs: [FlexTensor; N], tracked: [bool; N]) -> (FlexTensor, Self::Saved);

    /// The gradients of the tracked inputs in f32, from that of the result, which may be narrower.
    fn backward(
        &self,
        saved: Self::Saved,
        grad: FlexTensor,
        tracked: [bool; N],
    ) -> [Option<FlexTensor>; N];
}

/// Runs the op, or gives the inputs back if they are not floats on the flex backend.
pub(crate) fn apply<const N: usize, Op: FusedOp<N>>(
    op: Op,
    inputs: [DispatchTensor; N],
) -> Result<DispatchTensor, [DispatchTensor; N]> {
    if !inputs.iter().all(is_flex_float) {
        return Err(inputs);
    }
    let context = inputs
        .iter()
        .map(|input| input.autodiff)
        .fold(DispatchAutodiffContext::Disabled, |a, b| a.merge(b));
    Ok(match context {
        DispatchAutodiffContext::Disabled => {
            let inputs = inputs.map(flex);
            let dtype = inputs[0].dtype();
            let (output, _) = op.forward(inputs, [false; N]);
            let output = narrowed(output, dtype);
            <DispatchTensor as DispatchKindConversion<Flex>>::from_backend(BackendTensor::Float(
                output,
            ))
        }
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Disabled) => {
            record::<N, Op, NoCheckpointing>(op, inputs)
        }
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Balanced) => {
            record::<N, Op, BalancedCheckpointing>(op, inputs)
        }
    })
}

fn is_flex_float(tensor: &DispatchTensor) -> bool {
    let known = |dtype| matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
    let kind = match &tensor.kind {
        DispatchTensorKind::Autodiff(inner) => inner,
        kind => kind,
    };
    // With one backend compiled in, nothing else remains to match.
    #[allow(unreachable_patterns)]
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => known(tensor.dtype()),
        DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => {
            known(tensor.primitive().dtype())
        }
        _ => false,
    }
}

fn flex(tensor: DispatchTensor) -> FlexTensor {
    <DispatchTensor as DispatchKindConversion<Flex>>::try_into_backend(tensor)
        .expect("a tensor of the flex backend")
        .float()
}

/// A tensor of a plain device takes part as a constant.
fn lifted<C>(tensor: DispatchTensor) -> Recorded
where
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    if tensor.autodiff == DispatchAutodiffContext::Disabled {
        return Recorded::new(flex(tensor));
    }
    <DispatchTensor as DispatchKindConversion<Autodiff<Flex, C>>>::try_into_backend(tensor)
        .expect("an autodiff tensor of the flex backend")
        .float()
}

fn record<const N: usize, Op, C>(op: Op, inputs: [DispatchTensor; N]) -> DispatchTensor
where
    Op: FusedOp<N>,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<Autodiff<Flex, C>>,
{
    let inputs = inputs.map(lifted::<C>);
    let tracked = inputs.each_ref().map(|input| input.is_tracked());
    let nodes = inputs.each_ref().map(|input| input.node());
    let values = inputs.map(Recorded::into_primitive);
    let dtypes = values.each_ref().map(FlexTensor::dtype);
    let (output, saved) = op.forward(values, tracked);
    let output = narrowed(output, dtypes[0]);
    // A result that no gradient goes through starts no graph, which would keep what the op saved.
    let output = if tracked.contains(&true) {
        let step = Step(std::marker::PhantomData);
        match step.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((op, saved, dtypes), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    } else {
        Recorded::new(output)
    };
    <DispatchTensor as DispatchKindConversion<Autodiff<Flex, C>>>::from_backend(
        BackendTensor::Float(output),
    )
}

/// The backward step of an op in burn's graph.
#[derive(Debug)]
struct Step<Op>(std::marker::PhantomData<fn() -> Op>);

impl<const N: usize, Op: FusedOp<N>> Backward<Flex, N> for Step<Op> {
    type State = (Op, Op::Saved, [DType; N]);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (op, saved, dtypes) = ops.state;
        let grad = grads.consume::<Flex>(&ops.node);
        let tracked = ops.parents.each_ref().map(Option::is_some);
        let input_grads = op.backward(saved, grad, tracked);
        for ((parent, grad), dtype) in ops.parents.into_iter().zip(input_grads).zip(dtypes) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, narrowed(grad, dtype));
            }
        }
    }
}
