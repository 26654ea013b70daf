use burn::tensor::Device;

use super::ImageShape;
use crate::dit::{JointRotary, RotaryTable};

const THETA: f32 = 10_000.0;

/// Cosines and sines of every token's rotation (`QwenEmbedRope` with scaled positions).
#[derive(Debug, Clone)]
pub(super) struct Rotary {
    txt: RotaryTable,
    img: RotaryTable,
}

impl Rotary {
    /// Tables for text tokens at the given places of the text, and for the given images.
    pub(super) fn new(
        axes_dims: [usize; 3],
        images: &[ImageShape],
        text: &[usize],
        device: &Device,
    ) -> Self {
        let table = |positions: &[[i64; 3]]| {
            let angles: Vec<f32> = positions
                .iter()
                .flat_map(|position| angles(axes_dims, *position))
                .collect();
            let of = |function: fn(f32) -> f32| angles.iter().map(|a| function(*a)).collect();
            RotaryTable::new(of(f32::cos), of(f32::sin), positions.len(), device)
        };
        Self {
            txt: table(&text_positions(images, text)),
            img: table(&image_positions(images)),
        }
    }

    pub(super) fn joint(&self) -> JointRotary<'_> {
        JointRotary {
            txt: &self.txt,
            img: &self.img,
        }
    }
}

/// (image and frame, row, column) of every image token. Rows and columns count from the middle, so that images of
/// other sizes share their centres.
fn image_positions(images: &[ImageShape]) -> Vec<[i64; 3]> {
    let centred = |side: usize| {
        let before = (side - side / 2) as i64;
        (0..side as i64).map(move |place| place - before)
    };
    let mut positions = Vec::new();
    for (index, image) in images.iter().enumerate() {
        for frame in 0..image.frames {
            for row in centred(image.height) {
                let first = (index + frame) as i64;
                positions.extend(centred(image.width).map(|column| [first, row, column]));
            }
        }
    }
    positions
}

/// The diagonal beyond the images' rows and columns.
fn text_positions(images: &[ImageShape], text: &[usize]) -> Vec<[i64; 3]> {
    let half = |image: &ImageShape| image.height.max(image.width) / 2;
    let first = images.iter().map(half).max().unwrap_or(0);
    text.iter()
        .map(|place| [(first + place) as i64; 3])
        .collect()
}

/// The angle of each pair of dimensions of one token, in f32 step by step, as the reference.
fn angles(axes_dims: [usize; 3], position: [i64; 3]) -> impl Iterator<Item = f32> {
    let axes = axes_dims.into_iter().zip(position);
    axes.flat_map(|(dim, place)| {
        let frequency = move |i: usize| 1.0 / THETA.powf((2 * i) as f32 / dim as f32);
        (0..dim / 2).map(move |i| place as f32 * frequency(i))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(height: usize, width: usize) -> ImageShape {
        ImageShape {
            frames: 1,
            height,
            width,
        }
    }

    #[test]
    fn images_share_their_centre_and_text_follows_the_largest() {
        let images = [shape(2, 3), shape(1, 5)];
        let positions = image_positions(&images);
        assert_eq!(
            positions[..4],
            [[0, -1, -2], [0, -1, -1], [0, -1, 0], [0, 0, -2]]
        );
        assert_eq!(positions[6], [1, -1, -3]);
        assert_eq!(positions.len(), 11);
        assert_eq!(text_positions(&images, &[0, 4]), [[2; 3], [6; 3]]);
    }

    #[test]
    fn each_axis_rotates_its_own_pairs() {
        let angles: Vec<f32> = angles([2, 2, 4], [3, -2, 5]).collect();
        assert_eq!(angles, [3.0, -2.0, 5.0, 5.0 * (1.0 / 100.0)]);
    }
}
