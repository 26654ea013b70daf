use burn::tensor::{Device, Tensor};

use crate::dit::{JointRotary, RotaryTable};

const THETA: f64 = 10_000.0;

/// Cosines and sines of every token's rotation, text tokens first (`FluxPosEmbed`).
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Of text and image tokens together.
    pub(super) all: RotaryTable,
    /// Of the text tokens.
    pub(super) txt: RotaryTable,
    /// Of the image tokens.
    pub(super) img: RotaryTable,
}

impl Rotary {
    /// Tables for tokens at the given positions, computed in f64.
    ///
    /// # Shapes
    /// * txt_ids: `[T, axes]`, img_ids: `[S, axes]`
    pub fn new(
        axes_dims: &[usize],
        txt_ids: Tensor<2>,
        img_ids: Tensor<2>,
        device: &Device,
    ) -> Self {
        let [[txt, axes], [img, _]] = [txt_ids.dims(), img_ids.dims()];
        assert_eq!(
            axes,
            axes_dims.len(),
            "one column of ids per axis of axes_dims_rope"
        );
        let ids: Vec<f32> = [txt_ids, img_ids]
            .into_iter()
            .flat_map(|ids| ids.into_data().iter().collect::<Vec<_>>())
            .collect();
        let angles: Vec<f64> = ids
            .chunks(axes)
            .flat_map(|id| angles(axes_dims, id))
            .collect();
        let table = |of: fn(f64) -> f64| angles.iter().map(|angle| of(*angle) as f32).collect();
        let all = RotaryTable::new(table(f64::cos), table(f64::sin), txt + img, device);
        Self {
            txt: all.range(&(0..txt)),
            img: all.range(&(txt..txt + img)),
            all,
        }
    }

    /// The tables of the double-stream blocks.
    pub(super) fn joint(&self) -> JointRotary<'_> {
        JointRotary {
            txt: &self.txt,
            img: &self.img,
        }
    }
}

/// The angle of each pair of dimensions of one token: its position times theta^(-2i / dim).
fn angles(axes_dims: &[usize], id: &[f32]) -> impl Iterator<Item = f64> {
    let axes = axes_dims.iter().zip(id);
    axes.flat_map(|(&dim, &position)| {
        let frequency = move |i: usize| THETA.powf(-2.0 * i as f64 / dim as f64);
        (0..dim / 2).map(move |i| f64::from(position) * frequency(i))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_axis_rotates_its_own_pairs() {
        let device = Device::flex();
        let txt = Tensor::zeros([1, 3], &device);
        let img = Tensor::from_floats([[1.0, 0.0, 2.0]], &device);
        let rotary = Rotary::new(&[2, 2, 4], txt, img, &device);
        let sin: Vec<f32> = rotary.img.sin.into_data().iter().collect();
        let expected = [1f64, 0.0, 2.0, 0.02].map(|angle| angle.sin() as f32);
        assert_eq!(sin, expected);
        assert_eq!(
            rotary.txt.cos.into_data().iter::<f32>().collect::<Vec<_>>(),
            [1.0; 4]
        );
        assert_eq!(rotary.all.cos.dims(), [2, 4]);
    }
}
