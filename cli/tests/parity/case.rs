use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use retouch_models::weights::Weights;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use toml::{Table, Value};

/// What a case may differ by if it says nothing else.
const TOLERANCE: f64 = 1e-4;
const MIN_COSINE: f64 = 0.999;
const MAX_NORM_ERROR: f64 = 0.03;

/// How close each output has to be to the expected one.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    /// The largest difference over the largest expected value is at most this.
    Difference(f64),
    /// For bf16, whose roundings differ from one implementation to the next, the angle and the length.
    Direction {
        min_cosine: f64,
        /// How far the ratio of the Euclidean norms may be from 1.
        max_norm_error: f64,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Difference(tolerance) => write!(f, "tolerance {tolerance:.0e}"),
            Self::Direction {
                min_cosine,
                max_norm_error,
            } => write!(
                f,
                "expected a cosine of at least {min_cosine} and a norm within {max_norm_error:.0e}"
            ),
        }
    }
}

/// One case folder, read.
pub(crate) struct Case {
    folder: PathBuf,
    pub(crate) component: String,
    /// Of weights and arithmetic.
    pub(crate) dtype: DType,
    pub(crate) bound: Bound,
    parameters: Table,
    io: Weights,
}

impl Case {
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(folder.join("case.toml"))?;
        let parameters: Table = text.parse().context("case.toml")?;
        let component = parameters.get("component").and_then(Value::as_str);
        let dtype = dtype(&parameters)?;
        Ok(Self {
            folder: folder.to_owned(),
            component: component.context("case.toml has no component")?.to_owned(),
            dtype,
            bound: bound(&parameters, dtype)?,
            io: Weights::from_file(&folder.join("io.safetensors"))?,
            parameters,
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The model as diffusers and transformers lay it out: the loaders' own names for the files.
    pub(crate) fn model_folder(&self) -> anyhow::Result<TempDir> {
        let folder = tempfile::tempdir()?;
        self.link("config.json", &folder.path().join("config.json"))?;
        self.link(
            "weights.safetensors",
            &folder.path().join("model.safetensors"),
        )?;
        Ok(folder)
    }

    /// The tokenizer as transformers lays it out, with a configuration that sets nothing.
    pub(crate) fn tokenizer_folder(&self) -> anyhow::Result<TempDir> {
        let folder = tempfile::tempdir()?;
        self.link("tokenizer.json", &folder.path().join("tokenizer.json"))?;
        std::fs::write(folder.path().join("tokenizer_config.json"), "{}")?;
        Ok(folder)
    }

    fn link(&self, file: &str, to: &Path) -> anyhow::Result<()> {
        let source = std::path::absolute(self.path(file))?;
        Ok(std::os::unix::fs::symlink(source, to)?)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.parameters.contains_key(name)
    }

    pub(crate) fn text(&self, name: &str) -> anyhow::Result<&str> {
        self.parameter(name)?
            .as_str()
            .ok_or_else(|| anyhow!("{name} is no string"))
    }

    pub(crate) fn texts(&self, name: &str) -> anyhow::Result<Vec<&str>> {
        let list = self.parameter(name)?.as_array();
        let texts = list.and_then(|list| list.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| anyhow!("{name} is no list of strings"))
    }

    pub(crate) fn number(&self, name: &str) -> anyhow::Result<f64> {
        number(self.parameter(name)?).ok_or_else(|| anyhow!("{name} is no number"))
    }

    pub(crate) fn count(&self, name: &str) -> anyhow::Result<usize> {
        let value = self.parameter(name)?.as_integer();
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| anyhow!("{name} is no count"))
    }

    pub(crate) fn flag(&self, name: &str) -> anyhow::Result<bool> {
        self.parameter(name)?
            .as_bool()
            .ok_or_else(|| anyhow!("{name} is no boolean"))
    }

    /// A name that stands for one of the run file's choices.
    pub(crate) fn choice<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<T> {
        let value = self.parameter(name)?.clone();
        value.try_into().with_context(|| name.to_owned())
    }

    fn parameter(&self, name: &str) -> anyhow::Result<&Value> {
        self.parameters
            .get(name)
            .with_context(|| format!("case.toml has no {name}"))
    }

    /// The names in `io.safetensors` that start with `prefix`, without it.
    pub(crate) fn names<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.io
            .names()
            .filter_map(move |name| name.strip_prefix(prefix))
    }

    pub(crate) fn has_input(&self, name: &str) -> bool {
        self.names("in.").any(|known| known == name)
    }

    /// Any tensor of the case as it is stored.
    pub(crate) fn data(&self, name: &str) -> anyhow::Result<TensorData> {
        self.io
            .data(name)
            .with_context(|| format!("io.safetensors has no readable {name}"))
    }

    /// Float input `name` of rank `D` in the type that the case computes in.
    pub(crate) fn narrow_input<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> anyhow::Result<Tensor<D>> {
        let data = self.input_of_rank(name, D)?.convert_dtype(self.dtype);
        Ok(Tensor::from_data(data, (device, self.dtype)))
    }

    /// Float input `name` of rank `D`, in f32.
    pub(crate) fn input<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> anyhow::Result<Tensor<D>> {
        let data = self.input_of_rank(name, D)?.convert_dtype(DType::F32);
        Ok(Tensor::from_data(data, device))
    }

    /// Integer input `name` of rank `D`.
    pub(crate) fn ids<const D: usize>(
        &self,
        name: &str,
        device: &Device,
    ) -> anyhow::Result<Tensor<D, Int>> {
        Ok(Tensor::from_data(
            self.input_of_rank(name, D)?.convert_dtype(DType::I64),
            device,
        ))
    }

    /// The values of float input `name`, in row-major order.
    pub(crate) fn values(&self, name: &str) -> anyhow::Result<Vec<f64>> {
        Ok(self.data(&format!("in.{name}"))?.iter::<f64>().collect())
    }

    /// The values of integer input `name`, in row-major order.
    pub(crate) fn integers<T: TryFrom<i64>>(&self, name: &str) -> anyhow::Result<Vec<T>> {
        let data = self.data(&format!("in.{name}"))?;
        let values = data
            .iter::<i64>()
            .map(|value| T::try_from(value).ok())
            .collect::<Option<_>>();
        values.with_context(|| format!("in.{name} is out of range"))
    }

    /// The dimensions of input `name`.
    pub(crate) fn dims<const D: usize>(&self, name: &str) -> anyhow::Result<[usize; D]> {
        let data = self.input_of_rank(name, D)?;
        data.shape()
            .as_slice()
            .try_into()
            .with_context(|| format!("in.{name} has another rank"))
    }

    fn input_of_rank(&self, name: &str, rank: usize) -> anyhow::Result<TensorData> {
        let data = self.data(&format!("in.{name}"))?;
        let shape = data.shape().as_slice().to_vec();
        ensure!(
            shape.len() == rank,
            "in.{name} is {shape:?}, expected {rank} dimensions"
        );
        Ok(data)
    }
}

fn dtype(parameters: &Table) -> anyhow::Result<DType> {
    match parameters.get("dtype").map(Value::as_str) {
        None | Some(Some("f32")) => Ok(DType::F32),
        Some(Some("bf16")) => Ok(DType::BF16),
        Some(_) => bail!(
            "dtype is {}, expected \"f32\" or \"bf16\"",
            parameters["dtype"]
        ),
    }
}

fn bound(parameters: &Table, dtype: DType) -> anyhow::Result<Bound> {
    let number = |name: &str, default: f64| {
        let value = parameters.get(name).map_or(Some(default), number);
        value.with_context(|| format!("{name} is no number"))
    };
    Ok(match dtype {
        DType::F32 => Bound::Difference(number("tolerance", TOLERANCE)?),
        _ => Bound::Direction {
            min_cosine: number("min_cosine", MIN_COSINE)?,
            max_norm_error: number("max_norm_error", MAX_NORM_ERROR)?,
        },
    })
}

fn number(value: &Value) -> Option<f64> {
    value
        .as_float()
        .or_else(|| value.as_integer().map(|value| value as f64))
}
