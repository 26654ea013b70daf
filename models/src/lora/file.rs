use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use burn::tensor::{DType, TensorData};

use super::black_forest;
use super::format::{Format, Part, SUPPORTED, Spelling, refused};
use super::interchange::{self, Found};
use super::listed::listed;
use super::peft_config::PeftConfig;
use crate::weights::{LoadError, Weights};

/// An adapter as a file has it, whatever model it is for. Its factors are read when they are wanted.
pub struct AdapterFile {
    weights: Weights,
    format: &'static Format,
    config: Option<PeftConfig>,
    layers: Vec<StoredLayer>,
}

/// A layer that an adapter file changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredLayer {
    /// As the model names it, or with underscores for its dots if the format has no dots.
    pub(super) name: String,
    pub(super) spelling: Spelling,
    pub(super) in_features: usize,
    pub(super) out_features: usize,
    pub(super) rank: usize,
    /// The update is scaled by this over the rank, or over its root if the file says so.
    pub(super) alpha: f64,
    a: String,
    b: String,
    /// Of B, those of this layer.
    rows: Range<usize>,
}

impl StoredLayer {
    /// The same layer under its model's name.
    pub(super) fn renamed(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            spelling: Spelling::Dotted,
            ..self.clone()
        }
    }
}

/// The names of a layer's tensors.
#[derive(Default)]
struct Names<'a> {
    a: Option<&'a str>,
    b: Option<&'a str>,
    alpha: Option<&'a str>,
}

impl AdapterFile {
    /// Opens what an adapter is published as: a peft folder, a folder with diffusers' `pytorch_lora_weights.safetensors`,
    /// or a safetensors file of any format that is known. Only headers are read.
    ///
    /// # Errors
    /// If the path is none of these, a file can't be read, or the adapter is of a kind that is not plain LoRA.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let Found { weights, config } = interchange::find(path)?;
        let names: Vec<&str> = weights.names().collect();
        if let Some((kind, name)) = names.iter().find_map(|name| Some((refused(name)?, *name))) {
            let problem = format!("{kind} ({name}) is not supported; supported: {SUPPORTED}");
            return Err(LoadError::format(weights.path(), problem));
        }
        let format = Format::of(names.iter().copied());
        let layers = Reader {
            weights: &weights,
            format,
            config: config.as_ref(),
            problems: Vec::new(),
        }
        .read(&names)?;
        Ok(Self {
            weights,
            format,
            config,
            layers,
        })
    }

    /// The file that the factors are in.
    pub fn path(&self) -> &Path {
        self.weights.path()
    }

    /// The program whose way to name layers it has.
    pub fn format(&self) -> &'static str {
        self.format.name
    }

    /// Number of layers that it changes.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether it changes none, which no file that opens does.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    pub(super) fn layers(&self) -> &[StoredLayer] {
        &self.layers
    }

    /// The same file with its layers under other names.
    pub(super) fn with_layers(self, layers: Vec<StoredLayer>) -> Self {
        Self { layers, ..self }
    }

    /// Whether alphas are over the root of the rank (rsLoRA).
    pub(super) fn is_rank_stabilized(&self) -> bool {
        self.config
            .as_ref()
            .is_some_and(PeftConfig::is_rank_stabilized)
    }

    /// The factor on a layer's output.
    pub(super) fn scale(&self, layer: &StoredLayer) -> f64 {
        let rank = layer.rank as f64;
        layer.alpha
            / if self.is_rank_stabilized() {
                rank.sqrt()
            } else {
                rank
            }
    }

    /// The factors of a layer, in the file's element type if no other is wanted.
    ///
    /// # Shapes
    /// * output: `[r, in]` and `[out, r]`
    pub(super) fn factors(&self, layer: &StoredLayer, dtype: Option<DType>) -> [TensorData; 2] {
        let read = |name: &str| {
            let data = match dtype {
                Some(dtype) => self.weights.data_as(name, dtype),
                None => self.weights.data(name),
            };
            data.expect("factors were found readable")
        };
        [read(&layer.a), rows_of(read(&layer.b), &layer.rows)]
    }
}

/// Some rows of a matrix.
fn rows_of(matrix: TensorData, rows: &Range<usize>) -> TensorData {
    let [height, width] = [matrix.shape()[0], matrix.shape()[1]];
    if *rows == (0..height) {
        return matrix;
    }
    let row_bytes = width * matrix.dtype().size();
    let bytes = &matrix.as_bytes()[rows.start * row_bytes..rows.end * row_bytes];
    TensorData::from_bytes_vec(bytes.to_vec(), vec![rows.len(), width], matrix.dtype())
}

/// Makes layers of the names, shapes and alphas of a file.
struct Reader<'a> {
    weights: &'a Weights,
    format: &'static Format,
    config: Option<&'a PeftConfig>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn read(mut self, names: &[&'a str]) -> Result<Vec<StoredLayer>, LoadError> {
        let by_layer = self.by_layer(names);
        let mut layers = Vec::new();
        for (name, tensors) in by_layer {
            match self.layer(name, &tensors) {
                Ok(parts) => layers.extend(parts),
                Err(problem) => self.problems.push(problem),
            }
        }
        if layers.is_empty() && self.problems.is_empty() {
            self.problems.push("it has no factors".to_owned());
        }
        match self.problems.is_empty() {
            true => Ok(layers),
            false => Err(LoadError::format(
                self.weights.path(),
                format!("no sound adapter; {}", listed(&self.problems, "; ")),
            )),
        }
    }

    /// The tensors of each layer.
    fn by_layer(&mut self, names: &[&'a str]) -> BTreeMap<&'a str, Names<'a>> {
        let mut layers: BTreeMap<&str, Names<'_>> = BTreeMap::new();
        let (mut strangers, mut adapters) = (Vec::new(), BTreeSet::new());
        for name in names {
            let Some(tensor) = self.format.tensor(name) else {
                strangers.push((*name).to_owned());
                continue;
            };
            adapters.extend(tensor.adapter);
            let layer = layers.entry(tensor.layer).or_default();
            let place = match tensor.part {
                Part::A => &mut layer.a,
                Part::B => &mut layer.b,
                Part::Alpha => &mut layer.alpha,
            };
            if let Some(other) = place.replace(name) {
                self.problems
                    .push(format!("{other} and {name} are the same factor"));
            }
        }
        if !strangers.is_empty() {
            let format = self.format.name;
            let problem = match layers.is_empty() {
                true => "none of its tensors is named as an adapter's are".to_owned(),
                false => format!("names that are not in the format of {format}"),
            };
            let (count, names) = (strangers.len(), listed(&strangers, ", "));
            self.problems.push(format!(
                "{problem} ({count}): {names}; supported: {SUPPORTED}"
            ));
        }
        if adapters.len() > 1 {
            let adapters: Vec<String> = adapters.into_iter().map(str::to_owned).collect();
            self.problems.push(format!(
                "several adapters in one file: {}",
                adapters.join(", ")
            ));
        }
        layers
    }

    /// The model's layers of which `name` is the file's.
    fn layer(&self, name: &str, tensors: &Names<'_>) -> Result<Vec<StoredLayer>, String> {
        let (Some(a), Some(b)) = (tensors.a, tensors.b) else {
            let factor = if tensors.a.is_some() {
                "B (up)"
            } else {
                "A (down)"
            };
            return Err(format!("{name} lacks its factor {factor}"));
        };
        let (shape_a, shape_b) = (self.shape(a)?, self.shape(b)?);
        let ([rank, in_features], [out_features, rank_b]) = (shape_a, shape_b);
        if rank != rank_b || rank == 0 {
            return Err(format!(
                "{a} {shape_a:?} and {b} {shape_b:?} are no factors of one product"
            ));
        }
        let alpha = match (tensors.alpha, self.config) {
            (Some(alpha), _) => self.alpha(alpha)?,
            (None, Some(config)) => config.alpha_of(name, rank)?,
            // As diffusers takes it: every layer's own.
            (None, None) => rank as f64,
        };
        let spelling = self.format.spelling;
        let (names, spelling) = match black_forest::layers(name, spelling.separator()) {
            Some(names) => (names, Spelling::Dotted),
            None => (vec![name.to_owned()], spelling),
        };
        let rows = black_forest::rows(names.len(), in_features, out_features).ok_or_else(|| {
            format!(
                "{b} has {out_features} rows, which are not those of {}",
                names.join(", ")
            )
        })?;
        let layer = |(name, rows): (String, Range<usize>)| StoredLayer {
            name,
            spelling,
            in_features,
            out_features: rows.len(),
            rank,
            alpha,
            a: a.to_owned(),
            b: b.to_owned(),
            rows,
        };
        Ok(names.into_iter().zip(rows).map(layer).collect())
    }

    fn shape(&self, name: &str) -> Result<[usize; 2], String> {
        let shape = self.weights.shape(name).unwrap_or_default();
        if !self.weights.is_float(name) {
            let dtype = self.weights.dtype_name(name).unwrap_or_default();
            return Err(format!(
                "{name} is {dtype}, an element type that is not supported"
            ));
        }
        shape
            .try_into()
            .map_err(|_| format!("{name} has shape {shape:?}, expected two dimensions"))
    }

    fn alpha(&self, name: &str) -> Result<f64, String> {
        let data = self.weights.data_as(name, DType::F32);
        let values: Vec<f32> = data.map_or(Vec::new(), |data| data.iter::<f32>().collect());
        match values[..] {
            [alpha] if alpha.is_finite() => Ok(f64::from(alpha)),
            _ => Err(format!("{name} is {values:?}, expected one finite number")),
        }
    }
}
