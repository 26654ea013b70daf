//! The ops on burn's CubeCL devices, GPUs above all: each names its kernels (`retouch-kernels`) and what their results look like.
//!
//! The backend is lazy. What an op does is registered with its inputs and the shapes of its results, and is launched when burn's
//! fusion comes to it, so that nothing here waits for the device.

mod activation;
mod attention;
mod gate;
mod group_norm;
mod linear;
mod lora;
mod norm;
mod ranges;
mod rope;

use burn::backend::TensorMetadata;
use burn::backend::fusion::custom::{
    CustomOpIr, HandleContainer, OperationFn, OperationIr, StreamId, TensorIr,
};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape, Tensor};
use retouch_kernels::{CubeBackend, CubeFusionHandle, CubeTensor};

use super::fused::{OpBackend, cube_constant};

pub(crate) use burn::backend::Cube;

/// A float tensor of such a device, of which there may be no more than a promise yet.
pub(super) type CubeFloat = FloatTensor<Cube>;

impl OpBackend for Cube {
    fn narrowed(tensor: CubeFloat, dtype: DType) -> CubeFloat {
        if tensor.dtype() == dtype {
            return tensor;
        }
        Self::float_cast(tensor, dtype.into())
    }
}

/// What a kernel gives: its shape and type.
pub(super) type Result = (Shape, DType);

/// Has `kernels` run on the inputs once they are there.
pub(super) fn launch<const N: usize>(
    name: &'static str,
    inputs: Vec<CubeFloat>,
    results: [Result; N],
    kernels: impl Fn(Vec<CubeTensor>) -> [CubeTensor; N] + Send + Sync + 'static,
) -> [CubeFloat; N] {
    let client = inputs[0].client.clone();
    let inputs: Vec<TensorIr> = inputs.into_iter().map(CubeFloat::into_ir).collect();
    let result = |(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype);
    let results = results.map(result);
    let description = CustomOpIr::new(name, &inputs, &results);
    let ids = results.map(|result| result.id);
    let operation = OperationFn(move |handles: &mut HandleContainer<CubeFusionHandle>| {
        let given = |input: &TensorIr| handles.get_float_tensor::<CubeBackend>(input);
        let outputs = kernels(inputs.iter().map(given).collect());
        for (id, output) in ids.iter().zip(outputs) {
            handles.register_float_tensor::<CubeBackend>(id, output);
        }
        Ok(())
    });
    let stream = StreamId::current();
    let outputs = client.register(stream, OperationIr::Custom(description), operation);
    outputs.try_into().expect("as many results as were named")
}

/// The result of a kernel that has one.
pub(super) fn launch_one(
    name: &'static str,
    inputs: Vec<CubeFloat>,
    result: Result,
    kernel: impl Fn(Vec<CubeTensor>) -> CubeTensor + Send + Sync + 'static,
) -> CubeFloat {
    let [output] = launch(name, inputs, [result], move |inputs| [kernel(inputs)]);
    output
}

/// Shape and type of a tensor.
pub(super) fn like(tensor: &CubeFloat) -> Result {
    (tensor.shape(), tensor.dtype())
}

/// An op's inputs, and after them the bias that it still has to add.
pub(super) fn with_bias(mut inputs: Vec<CubeFloat>, bias: &Option<Tensor<1>>) -> Vec<CubeFloat> {
    inputs.extend(bias.clone().map(constant));
    inputs
}

/// `x + bias`, where something else than the op's kernel needs it.
pub(super) fn biased(x: CubeFloat, bias: &Option<Tensor<1>>) -> CubeFloat {
    let Some(bias) = bias.clone().map(constant) else {
        return x;
    };
    let result = like(&x);
    launch_one("add_bias", vec![x, bias], result, |inputs| {
        let [x, bias] = named(inputs);
        retouch_kernels::add_bias(x, bias)
    })
}

fn constant(bias: Tensor<1>) -> CubeFloat {
    cube_constant(bias).expect("a linear layer left its bias to an op only if it is one")
}

/// A kernel's inputs by name.
pub(super) fn named<const N: usize>(inputs: Vec<CubeTensor>) -> [CubeTensor; N] {
    inputs.try_into().expect("as many inputs as were given")
}

/// The inputs that a kernel always has, by name, and those after them.
pub(super) fn apart<const N: usize>(
    inputs: Vec<CubeTensor>,
) -> ([CubeTensor; N], impl Iterator<Item = CubeTensor>) {
    let mut inputs = inputs.into_iter();
    let named = std::array::from_fn(|_| inputs.next().expect("as many inputs as were given"));
    (named, inputs)
}
