//! From images to the patches that Qwen2.5-VL reads: transformers' `Qwen2VLImageProcessor`.

mod config;
mod resize;

pub use config::ImageProcessorConfig;
pub use resize::{Arithmetic, Filter, resize};

use std::path::Path;

use image::RgbImage;
use serde::Deserialize;

use crate::qwen2_5_vl::{Grid, VisionConfig};
use crate::weights::{LoadError, read_config, write_config};

/// Largest ratio of an image's sides.
const ASPECT_RATIO_MAX: f64 = 200.0;

/// Images beyond this are refused rather than shrunk: they would take gigabytes on the way.
const PIXELS_MAX: usize = 1 << 27;

/// The file's name in a model folder.
const CONFIG_FILE: &str = "preprocessor_config.json";

/// The file that transformers 5 writes for the tokenizer, image and video processors together.
const JOINT_CONFIG_FILE: &str = "processor_config.json";

#[derive(Deserialize)]
struct JointConfig {
    image_processor: ImageProcessorConfig,
}

/// Why an image can't be read by the model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ImageError {
    /// Width or height is zero.
    #[error("the image is {width} x {height} pixels, it must have some")]
    Empty {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// More pixels than are processed.
    #[error("the image is {width} x {height} pixels, at most {pixels_max} pixels are accepted")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit.
        pixels_max: usize,
    },
    /// One side is far longer than the other.
    #[error("the image is {width} x {height} pixels, the sides' ratio must be at most {ratio_max}")]
    TooNarrow {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit.
        ratio_max: f64,
    },
}

/// An image cut into patches.
#[derive(Clone, Debug, PartialEq)]
pub struct Patches {
    /// `[grid.patches(), channels * frames * patch * patch]`, row-major; patches in blocks of `merge_size` squared.
    pub values: Vec<f32>,
    /// How many patches there are.
    pub grid: Grid,
}

/// A field in which a processor's configuration and that of the model it cuts patches for do not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The field's name.
    pub field: &'static str,
    /// In the processor's configuration.
    pub found: usize,
    /// In the model's.
    pub expected: usize,
}

/// Resizes, normalises and cuts images.
#[derive(Clone, Debug)]
pub struct ImageProcessor {
    config: ImageProcessorConfig,
}

impl ImageProcessor {
    /// A processor of this configuration.
    pub fn new(config: ImageProcessorConfig) -> Self {
        Self { config }
    }

    /// Reads `preprocessor_config.json` of a model folder, or the `processor_config.json` of transformers 5.
    ///
    /// # Errors
    /// If the file can't be read or lacks a field.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let joint = folder.join(JOINT_CONFIG_FILE);
        let path = folder.join(CONFIG_FILE);
        if path.is_file() || !joint.is_file() {
            return read_config(&path).map(Self::new);
        }
        let JointConfig { image_processor } = read_config(&joint)?;
        Ok(Self::new(image_processor))
    }

    /// Writes `preprocessor_config.json` into a model folder.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        write_config(&folder.join(CONFIG_FILE), &self.config)
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &ImageProcessorConfig {
        &self.config
    }

    /// Whether its patches are what the vision tower takes.
    ///
    /// # Errors
    /// The first field that says otherwise.
    pub fn check(&self, vision: &VisionConfig) -> Result<(), Contradiction> {
        let config = &self.config;
        let fields = [
            ("patch_size", config.patch_size, vision.patch_size),
            ("merge_size", config.merge_size, vision.spatial_merge_size),
            (
                "temporal_patch_size",
                config.temporal_patch_size,
                vision.temporal_patch_size,
            ),
        ];
        match fields
            .into_iter()
            .find(|(_, found, expected)| found != expected)
        {
            None => Ok(()),
            Some((field, found, expected)) => Err(Contradiction {
                field,
                found,
                expected,
            }),
        }
    }

    /// Numbers in a flattened patch.
    pub fn patch_features(&self) -> usize {
        3 * self.config.temporal_patch_size * self.config.patch_size * self.config.patch_size
    }

    /// The patches of one image.
    ///
    /// # Errors
    /// If the image has no pixels, too many, or one side is over 200 times the other.
    pub fn patches(&self, image: &RgbImage) -> Result<Patches, ImageError> {
        check_size(image)?;
        let target = self.target_size(image.height() as usize, image.width() as usize);
        if target == [image.height() as usize, image.width() as usize] {
            return Ok(self.cut(image));
        }
        let resized = resize(image, target, Filter::Bicubic, Arithmetic::Torchvision);
        Ok(self.cut(&resized))
    }

    /// `smart_resize`: height and width nearest to the given that are whole tokens, within the pixel limits.
    pub fn target_size(&self, height: usize, width: usize) -> [usize; 2] {
        let factor = (self.config.patch_size * self.config.merge_size) as f64;
        let (height, width) = (height as f64, width as f64);
        let limits = [self.config.min_pixels, self.config.max_pixels];
        let [pixels_min, pixels_max] = limits.map(|limit| limit as f64);
        // Halves go to the even neighbour, as Python rounds.
        let nearest = |side: f64| (side / factor).round_ties_even() * factor;
        let pixels = nearest(height) * nearest(width);
        let sides = if pixels > pixels_max {
            let shrink = (height * width / pixels_max).sqrt();
            [height, width].map(|side| ((side / shrink / factor).floor() * factor).max(factor))
        } else if pixels < pixels_min {
            let grow = (pixels_min / (height * width)).sqrt();
            [height, width].map(|side| (side * grow / factor).ceil() * factor)
        } else {
            [height, width].map(nearest)
        };
        sides.map(|side| side as usize)
    }

    /// Patches of an image whose sides are whole tokens.
    fn cut(&self, image: &RgbImage) -> Patches {
        let (patch, merge) = (self.config.patch_size, self.config.merge_size);
        let grid = Grid {
            frames: 1,
            height: image.height() as usize / patch,
            width: image.width() as usize / patch,
        };
        let levels = self.levels();
        let mut values = Vec::with_capacity(grid.patches() * self.patch_features());
        for top in (0..grid.height).step_by(merge) {
            for left in (0..grid.width).step_by(merge) {
                for inner in 0..merge * merge {
                    let corner = [
                        (top + inner / merge) * patch,
                        (left + inner % merge) * patch,
                    ];
                    self.push_patch(image, corner, &levels, &mut values);
                }
            }
        }
        Patches { values, grid }
    }

    fn push_patch(
        &self,
        image: &RgbImage,
        [top, left]: [usize; 2],
        levels: &[[f32; 256]; 3],
        values: &mut Vec<f32>,
    ) {
        let patch = self.config.patch_size;
        let stride = image.width() as usize * 3;
        for (channel, levels) in levels.iter().enumerate() {
            let first = values.len();
            for row in top..top + patch {
                let samples = &image.as_raw()[row * stride + left * 3 + channel..];
                let samples = samples.iter().step_by(3).take(patch);
                values.extend(samples.map(|sample| levels[usize::from(*sample)]));
            }
            let frame = first..values.len();
            for _ in 1..self.config.temporal_patch_size {
                values.extend_from_within(frame.clone());
            }
        }
    }

    /// The normalised value of each sample of each channel, with the rescaling folded in as the reference does.
    fn levels(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            let mean = self.config.image_mean[channel] * 255.0;
            let std = self.config.image_std[channel] * 255.0;
            std::array::from_fn(|sample| (sample as f32 - mean) / std)
        })
    }
}

fn check_size(image: &RgbImage) -> Result<(), ImageError> {
    let (width, height) = image.dimensions();
    if width == 0 || height == 0 {
        return Err(ImageError::Empty { width, height });
    }
    if width as usize * height as usize > PIXELS_MAX {
        return Err(ImageError::TooLarge {
            width,
            height,
            pixels_max: PIXELS_MAX,
        });
    }
    if f64::from(width.max(height)) / f64::from(width.min(height)) > ASPECT_RATIO_MAX {
        return Err(ImageError::TooNarrow {
            width,
            height,
            ratio_max: ASPECT_RATIO_MAX,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
