use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use burn::tensor::{DType, Tensor, TensorData};

use crate::case::{Bound, Case};

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

/// How far an output is from what is expected.
pub(crate) struct Distance {
    /// In figures.
    pub(crate) text: String,
    /// The part of what the case's bound allows: beyond 1 it fails.
    pub(crate) share: f64,
}

/// The output of a case that comes closest to its bound.
pub(crate) struct Worst {
    pub(crate) output: String,
    pub(crate) distance: Distance,
}

/// Compares every expected tensor of the case with what was computed.
///
/// # Errors
/// If one is missing, of another shape, not finite or beyond the case's bound; all such are named.
pub(crate) fn compare(case: &Case, outputs: &Outputs) -> anyhow::Result<Worst> {
    let mut errors = Vec::new();
    let mut worst: Option<Worst> = None;
    for output in expected_names(case) {
        match distance_of(case, &output, outputs) {
            // Vectors without length have no direction, and a NaN for a share.
            Ok(distance) if distance.share.is_nan() || distance.share > 1.0 => {
                errors.push(format!(
                    "{output}: off by {}, {}",
                    distance.text, case.bound
                ));
            }
            Ok(distance) => {
                let before = worst.as_ref().map_or(-1.0, |worst| worst.distance.share);
                if distance.share > before {
                    worst = Some(Worst { output, distance });
                }
            }
            Err(error) => errors.push(format!("{output}: {error:#}")),
        }
    }
    ensure!(errors.is_empty(), "{}", errors.join("; "));
    worst.context("io.safetensors expects nothing")
}

fn expected_names(case: &Case) -> Vec<String> {
    let names = case.names("").filter(|name| !name.starts_with("in."));
    names.map(str::to_owned).collect()
}

fn distance_of(case: &Case, name: &str, outputs: &Outputs) -> anyhow::Result<Distance> {
    let expected = case.data(name)?;
    let found = outputs.0.get(name).context("not computed")?;
    let (shape, expected_shape) = (found.shape().as_slice(), expected.shape().as_slice());
    ensure!(
        shape == expected_shape,
        "shape {shape:?}, expected {expected_shape:?}"
    );
    let [found, wanted] = [found, &expected].map(|data| data.iter().collect::<Vec<f64>>());
    let mut values = found.iter().chain(&wanted);
    ensure!(values.all(|value| value.is_finite()), "not finite");
    if !is_exact(expected.dtype()) {
        return Ok(distance(&found, &wanted, case.bound));
    }
    ensure!(found == wanted, "an integer is another one");
    Ok(Distance {
        text: "exact".to_owned(),
        share: 0.0,
    })
}

fn distance(found: &[f64], wanted: &[f64], bound: Bound) -> Distance {
    match bound {
        Bound::Difference(tolerance) => {
            let error = difference(found, wanted);
            Distance {
                text: format!("{error:.2e}"),
                share: error / tolerance,
            }
        }
        Bound::Direction {
            min_cosine,
            max_norm_error,
        } => {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let [found_norm, wanted_norm] = [found, wanted].map(|x| dot(x, x).sqrt());
            let cosine = dot(found, wanted) / (found_norm * wanted_norm);
            let norm_error = found_norm / wanted_norm - 1.0;
            let shares = [
                (1.0 - cosine) / (1.0 - min_cosine),
                norm_error.abs() / max_norm_error,
            ];
            Distance {
                text: format!("cosine {cosine:.6}, norm {norm_error:+.1e}"),
                share: shares[0].max(shares[1]),
            }
        }
    }
}

/// max |a - b| / max |b|; the plain difference where nothing but zeros is expected.
fn difference(found: &[f64], wanted: &[f64]) -> f64 {
    let pairs = || found.iter().zip(wanted);
    let difference = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let scale = pairs().map(|(_, b)| b.abs()).fold(0.0, f64::max);
    if scale > 0.0 {
        difference / scale
    } else {
        difference
    }
}

/// Ids, shapes and flags are right or wrong.
fn is_exact(dtype: DType) -> bool {
    matches!(dtype, DType::I64 | DType::I32 | DType::U8)
}
