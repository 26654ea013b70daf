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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_images_are_sampled_fewer_at_once() {
        assert_eq!(samples_at_once(2176), 15);
        assert_eq!(samples_at_once(8704), 3);
        assert_eq!(samples_at_once(100_000), 1);
    }
}
