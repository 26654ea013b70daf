//! Named f32 vectors and a counter as safetensors, the same bytes for the same values.

use std::borrow::Cow;

use safetensors::tensor::{Dtype, SafeTensors, View};

/// Why bytes do not hold the expected vectors.
#[derive(Debug, thiserror::Error)]
pub enum VectorsError {
    /// The bytes are not a safetensors file.
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor is of another type or shape.
    #[error("tensor {name} is {dtype:?} {shape:?}, expected {expected}")]
    Tensor {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// What it should be.
        expected: String,
    },
}

/// The bytes of `step` and the named vectors.
pub(crate) fn to_bytes(step: u64, vectors: &[(&str, &[f32])]) -> Vec<u8> {
    let step = [step];
    let counter = Raw {
        dtype: Dtype::U64,
        len: 1,
        bytes: bytemuck::cast_slice(&step),
    };
    let vectors = vectors.iter().map(|&(name, values)| {
        let bytes = bytemuck::cast_slice(values);
        (
            name,
            Raw {
                dtype: Dtype::F32,
                len: values.len(),
                bytes,
            },
        )
    });
    // Metadata would be written in random order.
    safetensors::serialize(std::iter::once(("step", counter)).chain(vectors), None)
        .expect("names and sizes are right by construction")
}

/// Reads what [`to_bytes`] wrote; all vectors are as long as the first.
pub(crate) fn from_bytes<const N: usize>(
    bytes: &[u8],
    names: [&str; N],
) -> Result<(u64, [Vec<f32>; N]), VectorsError> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let step = values::<u64>(&tensors, "step", Dtype::U64, 1)?[0];
    let len = tensors.tensor(names[0])?.shape().iter().product();
    let mut vectors = [const { Vec::new() }; N];
    for (vector, name) in vectors.iter_mut().zip(names) {
        *vector = values(&tensors, name, Dtype::F32, len)?;
    }
    Ok((step, vectors))
}

fn values<T: bytemuck::Pod>(
    tensors: &SafeTensors<'_>,
    name: &str,
    dtype: Dtype,
    len: usize,
) -> Result<Vec<T>, VectorsError> {
    let view = tensors.tensor(name)?;
    let shape = view.shape().to_vec();
    let fits = view.dtype() == dtype && shape.len() == 1 && shape[0] == len;
    if !fits {
        let expected = format!("{dtype:?} [{len}]");
        return Err(VectorsError::Tensor {
            name: name.to_owned(),
            dtype: view.dtype(),
            shape,
            expected,
        });
    }
    // The file's bytes need not be aligned for T.
    Ok(bytemuck::pod_collect_to_vec(view.data()))
}

struct Raw<'a> {
    dtype: Dtype,
    len: usize,
    bytes: &'a [u8],
}

impl View for Raw<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        std::slice::from_ref(&self.len)
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
