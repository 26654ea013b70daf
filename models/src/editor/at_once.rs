//! How much an editor computes at once.

use super::ImageSize;

/// Most pixels that are decoded at once; more images go one batch after another.
const DECODED_PIXELS_MAX: usize = 1 << 20;

/// Most tokens of all samples that the transformer is given at once where nothing else bounds them. A GPU gains nothing
/// from more; a group of 12 at a megapixel has three times as many.
const TOKENS_MAX: usize = 1 << 15;

/// How many samples of so many tokens the transformer is given at once while it only predicts; at least one.
pub(crate) fn samples_at_once(tokens: usize) -> usize {
    (TOKENS_MAX / tokens.max(1)).max(1)
}

/// How many images of a size are decoded at once; at least one.
pub(crate) fn images_at_once(size: ImageSize) -> usize {
    (DECODED_PIXELS_MAX / (size.height * size.width).max(1)).max(1)
}

/// Indices of equal shapes, together as many as `max` says for the shape; batches begin in the order of their first.
pub fn batches_of_one_shape<S: PartialEq>(
    shapes: &[S],
    max: impl Fn(&S) -> usize,
) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for (index, shape) in shapes.iter().enumerate() {
        let max = max(shape);
        let open = batches
            .iter_mut()
            .find(|batch| shapes[batch[0]] == *shape && batch.len() < max);
        match open {
            Some(batch) => batch.push(index),
            None => batches.push(vec![index]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_images_are_sampled_fewer_at_once() {
        assert_eq!(samples_at_once(2176), 15);
        assert_eq!(samples_at_once(8704), 3);
        assert_eq!(samples_at_once(100_000), 1);
    }

    #[test]
    fn batches_are_of_one_shape_and_hold_every_pair_once() {
        let sizes = [8, 8, 16, 8, 16, 8, 8].map(ImageSize::square);
        let max = |size: &ImageSize| if size.height == 8 { 3 } else { 1 };
        assert_eq!(
            batches_of_one_shape(&sizes, max),
            [vec![0, 1, 3], vec![2], vec![4], vec![5, 6]]
        );
        let alone: Vec<Vec<usize>> = (0..7).map(|index| vec![index]).collect();
        assert_eq!(batches_of_one_shape(&sizes, |_| 1), alone);
    }
}
