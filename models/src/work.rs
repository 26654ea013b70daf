//! How much arithmetic a network does, counted on its table of tensors.

use std::iter::Sum;
use std::ops::{Add, Mul};

/// Multiply-adds, each of which is two floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// With weights: matrix products and convolutions.
    pub(crate) weights: u64,
    /// Of attention: scores, and the values that they weigh.
    pub(crate) attention: u64,
}

/// Tokens of one sample in a transformer of two streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens {
    /// Of the result and its sources.
    pub(crate) image: u64,
    /// Of the prompt.
    pub(crate) text: u64,
}

impl Tokens {
    pub(crate) fn all(self) -> u64 {
        self.image + self.text
    }
}

impl Work {
    /// Attention of `queries` to `keys`, all heads together `width` wide.
    pub(crate) fn attention(queries: u64, keys: u64, width: usize) -> Self {
        Self {
            weights: 0,
            attention: 2 * queries * keys * width as u64,
        }
    }

    /// The same of tokens of which each sees itself, those before it and `before` more.
    pub(crate) fn causal_attention(tokens: u64, before: u64, width: usize) -> Self {
        Self::attention(tokens, before, width) + Self::attention(tokens, tokens / 2, width)
    }

    /// Floating-point operations forward.
    pub(crate) fn flops(self) -> u64 {
        2 * (self.weights + self.attention)
    }

    /// Floating-point operations backward, where weights are frozen: the inputs' gradients of every product, and in
    /// attention, which keeps no scores, one product more.
    pub(crate) fn backward_flops(self) -> u64 {
        2 * self.weights + 5 * self.attention
    }
}

impl From<u64> for Work {
    /// Multiply-adds with weights.
    fn from(weights: u64) -> Self {
        Self {
            weights,
            attention: 0,
        }
    }
}

impl Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weights: self.weights + other.weights,
            attention: self.attention + other.attention,
        }
    }
}

impl Mul<u64> for Work {
    type Output = Self;

    fn mul(self, times: u64) -> Self {
        Self {
            weights: self.weights * times,
            attention: self.attention * times,
        }
    }
}

impl Sum for Work {
    fn sum<I: Iterator<Item = Self>>(works: I) -> Self {
        works.fold(Self::default(), Self::add)
    }
}

/// Pixels of an image after its sides were halved so often.
pub(crate) fn halved(pixels: u64, times: u32) -> u64 {
    pixels.checked_shr(2 * times).unwrap_or(0)
}

/// The number that follows `list` in a tensor's name, as 3 does `up_blocks` in `decoder.up_blocks.3.conv.weight`.
pub(crate) fn index_in(name: &str, list: &str) -> Option<u32> {
    let mut segments = name.split('.');
    segments.by_ref().find(|segment| *segment == list)?;
    segments.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backward_costs_a_product_more_in_attention() {
        let work = Work::attention(3, 5, 7) + Work::from(11);
        assert_eq!(work.flops(), 2 * (2 * 3 * 5 * 7 + 11));
        assert_eq!(work.backward_flops(), 5 * 2 * 3 * 5 * 7 + 2 * 11);
        assert_eq!(
            Work::causal_attention(4, 6, 1),
            Work::attention(4, 6 + 2, 1)
        );
    }

    #[test]
    fn halving_leaves_a_quarter() {
        assert_eq!(halved(64, 2), 4);
        assert_eq!(halved(64, 40), 0);
    }

    #[test]
    fn layers_are_counted_in_their_list() {
        assert_eq!(
            index_in("decoder.up_blocks.3.conv.weight", "up_blocks"),
            Some(3)
        );
        assert_eq!(index_in("decoder.conv_in.weight", "up_blocks"), None);
    }
}
