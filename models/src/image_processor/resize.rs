//! Resizing 8-bit images with the very arithmetic of the Python libraries, bit for bit.
//!
//! Both Pillow and torchvision filter one axis after the other, rounding to 8 bits in between, with weights in fixed
//! point; they differ in the number of fractional bits and in which axis comes first.

use image::RgbImage;

const CHANNELS: usize = 3;

/// A separable interpolation kernel, widened when the image shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Piecewise cubic with a = -1/2, two pixels to each side.
    Bicubic,
    /// Windowed sinc, three pixels to each side.
    Lanczos,
}

/// Whose rounding to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// `PIL.Image.resize` (version 12 and later, which may filter the vertical axis first).
    Pillow,
    /// `torchvision.transforms.v2.functional.resize(antialias=True)` of a `uint8` tensor.
    Torchvision,
}

/// Resizes `image` to `height` x `width` pixels.
pub fn resize(
    image: &RgbImage,
    [height, width]: [usize; 2],
    filter: Filter,
    arithmetic: Arithmetic,
) -> RgbImage {
    let (old_width, old_height) = (image.width() as usize, image.height() as usize);
    let mut plane = Plane {
        height: old_height,
        width: old_width,
        samples: image.as_raw().clone(),
    };
    let vertical_first =
        arithmetic == Arithmetic::Pillow && shrinks_rows_more(plane.size(), [height, width]);
    let order = match vertical_first {
        true => [Axis::Vertical, Axis::Horizontal],
        false => [Axis::Horizontal, Axis::Vertical],
    };
    for axis in order {
        let target = match axis {
            Axis::Horizontal => width,
            Axis::Vertical => height,
        };
        plane = plane.resized(axis, target, filter, arithmetic);
    }
    RgbImage::from_raw(width as u32, height as u32, plane.samples)
        .expect("the passes end at the wanted size")
}

/// Pillow's test for filtering columns before rows, found by comparison with it.
fn shrinks_rows_more([old_height, old_width]: [usize; 2], [height, width]: [usize; 2]) -> bool {
    let rows_saved = old_height as i64 - height as i64;
    let columns_saved = old_width as i64 - width as i64;
    rows_saved > 0 && rows_saved > 2 * columns_saved
}

#[derive(Clone, Copy)]
enum Axis {
    Horizontal,
    Vertical,
}

/// An image as interleaved RGB samples.
struct Plane {
    height: usize,
    width: usize,
    samples: Vec<u8>,
}

impl Plane {
    fn size(&self) -> [usize; 2] {
        [self.height, self.width]
    }

    fn resized(self, axis: Axis, target: usize, filter: Filter, arithmetic: Arithmetic) -> Self {
        let length = match axis {
            Axis::Horizontal => self.width,
            Axis::Vertical => self.height,
        };
        if length == target {
            return self;
        }
        let taps = Taps::new(length, target, filter, arithmetic);
        match axis {
            Axis::Horizontal => self.filter_rows(&taps),
            Axis::Vertical => self.filter_columns(&taps),
        }
    }

    fn filter_rows(self, taps: &Taps) -> Self {
        let width = taps.windows.len();
        let mut samples = Vec::with_capacity(self.height * width * CHANNELS);
        for row in self.samples.chunks_exact(self.width * CHANNELS) {
            for window in &taps.windows {
                let pixels = &row[window.start * CHANNELS..];
                for channel in 0..CHANNELS {
                    let values = pixels[channel..].iter().step_by(CHANNELS);
                    samples.push(taps.weighted(window, values));
                }
            }
        }
        Self {
            width,
            samples,
            ..self
        }
    }

    fn filter_columns(self, taps: &Taps) -> Self {
        let stride = self.width * CHANNELS;
        let mut samples = Vec::with_capacity(taps.windows.len() * stride);
        for window in &taps.windows {
            let rows = &self.samples[window.start * stride..];
            for column in 0..stride {
                let values = rows[column..].iter().step_by(stride);
                samples.push(taps.weighted(window, values));
            }
        }
        Self {
            height: taps.windows.len(),
            samples,
            ..self
        }
    }
}

/// The source samples that one output sample is made of.
struct Window {
    start: usize,
    weights: Vec<i64>,
}

/// The fixed-point weights of one axis.
struct Taps {
    windows: Vec<Window>,
    fraction_bits: u32,
}

impl Taps {
    fn new(length: usize, target: usize, filter: Filter, arithmetic: Arithmetic) -> Self {
        let windows: Vec<(usize, Vec<f64>)> = (0..target)
            .map(|index| real_weights(length, target, index, filter))
            .collect();
        let fraction_bits = match arithmetic {
            Arithmetic::Pillow => PILLOW_BITS,
            Arithmetic::Torchvision => torchvision_bits(&windows),
        };
        let windows = windows
            .into_iter()
            .map(|(start, weights)| Window {
                start,
                weights: weights
                    .iter()
                    .map(|weight| fixed_point(*weight, fraction_bits))
                    .collect(),
            })
            .collect();
        Self {
            windows,
            fraction_bits,
        }
    }

    fn weighted<'a>(&self, window: &Window, values: impl Iterator<Item = &'a u8>) -> u8 {
        let half = 1 << (self.fraction_bits - 1);
        let sum = window
            .weights
            .iter()
            .zip(values)
            .fold(half, |sum, (weight, value)| {
                sum + weight * i64::from(*value)
            });
        (sum >> self.fraction_bits).clamp(0, 255) as u8
    }
}

/// 32-bit sums of 8-bit samples, with two bits to spare for overshoot.
const PILLOW_BITS: u32 = 32 - 8 - 2;

/// The most fractional bits for which the largest weight still fits 16 bits with its sign.
fn torchvision_bits(windows: &[(usize, Vec<f64>)]) -> u32 {
    let largest = windows
        .iter()
        .flat_map(|(_, weights)| weights)
        .fold(0.0_f64, |largest, weight| largest.max(*weight));
    (0..PILLOW_BITS)
        .find(|bits| fixed_point(largest, bits + 1) >= 1 << 15)
        .unwrap_or(PILLOW_BITS)
}

fn fixed_point(weight: f64, bits: u32) -> i64 {
    let scaled = weight * f64::from(1_u32 << bits);
    (scaled + 0.5_f64.copysign(weight)) as i64
}

/// The first source sample and the weights, summing to one, of the output sample `index`.
fn real_weights(length: usize, target: usize, index: usize, filter: Filter) -> (usize, Vec<f64>) {
    let scale = length as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let center = (index as f64 + 0.5) * scale;
    let start = ((center - support + 0.5) as i64).max(0) as usize;
    let end = ((center + support + 0.5) as usize).min(length);
    let mut weights: Vec<f64> = (start..end)
        .map(|sample| filter.value((sample as f64 - center + 0.5) / stretch))
        .collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    (start, weights)
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn value(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos if x.abs() < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}
