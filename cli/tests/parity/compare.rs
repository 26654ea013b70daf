use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use burn::tensor::{DType, Tensor, TensorData};

use crate::case::Case;

/// What a component computed, under the names of `io.safetensors`.
#[derive(Default, PartialEq)]
pub(crate) struct Outputs(BTreeMap<String, TensorData>);

impl Outputs {
    pub(crate) fn float<const D: usize>(self, name: &str, tensor: Tensor<D>) -> Self {
        self.data(name, tensor.into_data())
    }

    /// Values in row-major order.
    pub(crate) fn values(self, name: &str, values: Vec<f64>, shape: &[usize]) -> Self {
        self.data(name, TensorData::new(values, shape.to_vec()))
    }

    pub(crate) fn list(self, name: &str, values: Vec<f32>) -> Self {
        let shape = [values.len()];
        self.data(name, TensorData::new(values, shape))
    }

    pub(crate) fn data(mut self, name: &str, data: TensorData) -> Self {
        self.0.insert(name.to_owned(), data);
        self
    }
}

/// How far the output of a case that is furthest off is.
pub(crate) struct Worst {
    pub(crate) output: String,
    pub(crate) error: f64,
}

/// Compares every expected tensor of the case with what was computed.
///
/// # Errors
/// If one is missing, of another shape, not finite or beyond the tolerance; all such are named.
pub(crate) fn compare(case: &Case, outputs: &Outputs) -> anyhow::Result<Worst> {
    let mut errors = Vec::new();
    let mut worst = Worst {
        output: "none".to_owned(),
        error: -1.0,
    };
    for name in expected_names(case) {
        match error_of(case, &name, outputs) {
            Ok(error) if error > case.tolerance => {
                errors.push(format!(
                    "{name}: off by {error:.2e}, tolerance {:.0e}",
                    case.tolerance
                ));
            }
            Ok(error) if error > worst.error => {
                worst = Worst {
                    output: name,
                    error,
                }
            }
            Ok(_) => {}
            Err(error) => errors.push(format!("{name}: {error:#}")),
        }
    }
    ensure!(errors.is_empty(), "{}", errors.join("; "));
    ensure!(worst.error >= 0.0, "io.safetensors expects nothing");
    Ok(worst)
}

fn expected_names(case: &Case) -> Vec<String> {
    let names = case.names("").filter(|name| !name.starts_with("in."));
    names.map(str::to_owned).collect()
}

/// max |a - b| / max |b|; the plain difference where nothing but zeros is expected.
fn error_of(case: &Case, name: &str, outputs: &Outputs) -> anyhow::Result<f64> {
    let expected = case.data(name)?;
    let found = outputs.0.get(name).context("not computed")?;
    let (shape, expected_shape) = (found.shape().as_slice(), expected.shape().as_slice());
    ensure!(
        shape == expected_shape,
        "shape {shape:?}, expected {expected_shape:?}"
    );
    let pairs = || found.iter::<f64>().zip(expected.iter::<f64>());
    ensure!(
        pairs().all(|(a, b)| a.is_finite() && b.is_finite()),
        "not finite"
    );
    let difference = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    if is_exact(expected.dtype()) {
        ensure!(difference == 0.0, "an integer is off by {difference}");
        return Ok(0.0);
    }
    let scale = pairs().map(|(_, b)| b.abs()).fold(0.0, f64::max);
    Ok(if scale > 0.0 {
        difference / scale
    } else {
        difference
    })
}

/// Ids, shapes and flags are right or wrong.
fn is_exact(dtype: DType) -> bool {
    matches!(dtype, DType::I64 | DType::I32 | DType::U8)
}
