//! Tables of the rotary position embeddings, made on the host.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::layers::rows;

/// Cosines and sines, ready for [`rope_half`](crate::ops::rope_half): each `[B or 1, S, head_dim]`.
#[derive(Clone, Debug)]
pub(super) struct RopeTable {
    /// `[B or 1, S, head_dim]`
    pub(super) cos: Tensor<3>,
    /// `[B or 1, S, head_dim]`
    pub(super) sin: Tensor<3>,
}

impl RopeTable {
    /// A table whose `rows * length` entries have `angles` (half the head size each), repeated for both halves.
    fn from_angles(
        angles: impl Iterator<Item = f32>,
        [rows, length, half]: [usize; 3],
        device: &Device,
        dtype: DType,
    ) -> Self {
        let count = rows * length * half;
        let (mut cos, mut sin) = (Vec::with_capacity(2 * count), Vec::with_capacity(2 * count));
        for angle in angles {
            let (angle_sin, angle_cos) = angle.sin_cos();
            cos.push(angle_cos);
            sin.push(angle_sin);
            if cos.len() % (2 * half) == half {
                cos.extend_from_within(cos.len() - half..);
                sin.extend_from_within(sin.len() - half..);
            }
        }
        let table = |values| {
            let data = TensorData::new(values, [rows, length, 2 * half]);
            Tensor::from_data(data, (device, dtype))
        };
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// The entry at one place of each row: `[batch, 1, head_dim]`.
    ///
    /// # Shapes
    /// * places: the place in each of `batch` rows; a table of one row serves them all
    pub(super) fn at(&self, places: &[usize], batch: usize) -> Self {
        let [table_rows, length, head_dim] = self.cos.dims();
        let picked: Vec<usize> = (0..batch)
            .map(|row| (row % table_rows) * length + places[row])
            .collect();
        let pick = |table: &Tensor<3>| {
            let table = table.clone().reshape([table_rows * length, head_dim]);
            rows(table, &picked).reshape([batch, 1, head_dim])
        };
        Self {
            cos: pick(&self.cos),
            sin: pick(&self.sin),
        }
    }

    /// The vision tower's: half of the frequencies follow the row, half the column.
    ///
    /// # Shapes
    /// * positions: row and column of S patches
    /// * output: `[1, S, head_dim]`
    pub(super) fn vision(
        positions: &[[usize; 2]],
        head_dim: usize,
        device: &Device,
        dtype: DType,
    ) -> Self {
        let frequencies = frequencies(10_000.0, head_dim / 2);
        let angles = positions
            .iter()
            .flatten()
            .flat_map(|place| frequencies.iter().map(move |f| *place as f32 * f));
        Self::from_angles(angles, [1, positions.len(), head_dim / 2], device, dtype)
    }

    /// The language model's: sections of the frequencies follow the temporal, height and width positions.
    ///
    /// # Shapes
    /// * positions: `rows * length` triples, row after row
    /// * output: `[rows, length, head_dim]`
    pub(super) fn text(
        positions: &[[usize; 3]],
        rows: usize,
        rope: &TextRope,
        device: &Device,
        dtype: DType,
    ) -> Self {
        let angles = positions.iter().flat_map(|position| {
            let axes = rope.axes.iter().zip(&rope.frequencies);
            axes.map(|(axis, frequency)| position[*axis] as f32 * frequency)
        });
        let length = positions.len() / rows.max(1);
        Self::from_angles(angles, [rows, length, rope.axes.len()], device, dtype)
    }
}

/// Frequencies of the language model and the axis that each of them follows.
#[derive(Clone, Debug)]
pub(super) struct TextRope {
    frequencies: Vec<f32>,
    axes: Vec<usize>,
}

impl TextRope {
    pub(super) fn new(theta: f64, mrope_section: &[usize]) -> Self {
        let axes: Vec<usize> = mrope_section
            .iter()
            .enumerate()
            .flat_map(|(section, count)| std::iter::repeat_n(section % 3, *count))
            .collect();
        Self {
            frequencies: frequencies(theta as f32, 2 * axes.len()),
            axes,
        }
    }
}

/// `theta^(-2i / dim)` for i below `dim / 2`, in f32 as the reference has them.
fn frequencies(theta: f32, dim: usize) -> Vec<f32> {
    (0..dim / 2)
        .map(|index| 1.0 / theta.powf((2 * index) as f32 / dim as f32))
        .collect()
}
