//! `preprocessor_config.json` of Qwen2.5-VL.

use serde::{Deserialize, Serialize};

use crate::weights::{Spelled, Spellings};

/// How images become patches.
///
/// Files give the pixel limits as `min_pixels` and `max_pixels` (published) or within `size` (transformers 5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct ImageProcessorConfig {
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Frames in a patch.
    pub temporal_patch_size: usize,
    /// Side of the square of patches that becomes one token.
    pub merge_size: usize,
    /// Images with fewer pixels are enlarged.
    pub min_pixels: usize,
    /// Images with more pixels are shrunk.
    pub max_pixels: usize,
    /// Mean of each channel, of values in 0..1.
    pub image_mean: [f32; 3],
    /// Standard deviation of each channel.
    pub image_std: [f32; 3],
}

/// The file's fields.
#[derive(Default, Serialize, Deserialize)]
struct Fields {
    image_processor_type: Option<String>,
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    #[serde(skip_serializing)]
    size: Option<Spelled<PixelLimits>>,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    #[serde(skip_serializing)]
    do_resize: Option<bool>,
    #[serde(skip_serializing)]
    do_rescale: Option<bool>,
    #[serde(skip_serializing)]
    do_normalize: Option<bool>,
    #[serde(skip_serializing)]
    rescale_factor: Option<f64>,
    #[serde(skip_serializing)]
    resample: Option<u32>,
}

/// Pixel counts, under the names that newer files give them.
#[derive(Clone, Copy, Deserialize)]
struct PixelLimits {
    shortest_edge: usize,
    longest_edge: usize,
}

impl Spellings for PixelLimits {
    const SPELLINGS: &'static [[&'static str; 2]] = &[
        ["shortest_edge", "min_pixels"],
        ["longest_edge", "max_pixels"],
    ];
}

/// The limits where a file says nothing.
const DEFAULT_LIMITS: PixelLimits = PixelLimits {
    shortest_edge: 56 * 56,
    longest_edge: 28 * 28 * 1280,
};

/// PIL's number for bicubic resampling.
const BICUBIC: u32 = 3;

impl Fields {
    fn check(&self) -> Result<(), String> {
        let switches = [
            ("do_resize", self.do_resize),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ];
        if let Some((name, _)) = switches
            .into_iter()
            .find(|(_, switch)| *switch == Some(false))
        {
            return Err(format!("{name} = false is not supported; supported: true"));
        }
        if let Some(resample) = self.resample.filter(|resample| *resample != BICUBIC) {
            return Err(format!(
                "resample = {resample} is not supported; supported: {BICUBIC} (bicubic)"
            ));
        }
        let factor = self.rescale_factor.unwrap_or(1.0 / 255.0);
        if (factor * 255.0 - 1.0).abs() > 1e-6 {
            return Err(format!(
                "rescale_factor = {factor} is not supported; supported: 1 / 255"
            ));
        }
        let sizes = [self.patch_size, self.temporal_patch_size, self.merge_size];
        if sizes.contains(&0) {
            return Err(
                "patch_size, temporal_patch_size and merge_size must be at least 1".to_owned(),
            );
        }
        Ok(())
    }
}

impl TryFrom<Fields> for ImageProcessorConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        fields.check()?;
        let size = fields.size.map_or(DEFAULT_LIMITS, |size| size.0);
        let config = Self {
            patch_size: fields.patch_size,
            temporal_patch_size: fields.temporal_patch_size,
            merge_size: fields.merge_size,
            // No spelling of `size`'s limits but an override of them, as in the reference.
            min_pixels: fields.min_pixels.unwrap_or(size.shortest_edge),
            max_pixels: fields.max_pixels.unwrap_or(size.longest_edge),
            image_mean: fields.image_mean,
            image_std: fields.image_std,
        };
        match (config.min_pixels, config.max_pixels) {
            (min, max) if min <= max => Ok(config),
            (min, max) => Err(format!("min_pixels = {min} is above max_pixels = {max}")),
        }
    }
}

impl From<ImageProcessorConfig> for Fields {
    fn from(config: ImageProcessorConfig) -> Self {
        Self {
            image_processor_type: Some("Qwen2VLImageProcessor".to_owned()),
            patch_size: config.patch_size,
            temporal_patch_size: config.temporal_patch_size,
            merge_size: config.merge_size,
            min_pixels: Some(config.min_pixels),
            max_pixels: Some(config.max_pixels),
            image_mean: config.image_mean,
            image_std: config.image_std,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(more: Value) -> Result<ImageProcessorConfig, String> {
        let mut value = json!({
            "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        });
        let fields = value.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn both_spellings_of_the_limits_are_read_and_the_published_wins() {
        let published = read(json!({ "min_pixels": 100, "max_pixels": 200 })).unwrap();
        let newer = read(json!({ "size": { "shortest_edge": 100, "longest_edge": 200 } })).unwrap();
        assert_eq!(published, newer);
        let both =
            json!({ "min_pixels": 50, "size": { "shortest_edge": 100, "longest_edge": 200 } });
        assert_eq!(read(both).unwrap().min_pixels, 50);
        assert_eq!(read(json!({})).unwrap().max_pixels, 28 * 28 * 1280);
    }

    #[test]
    fn limits_may_be_there_in_both_spellings_if_they_agree() {
        let size = |shortest_edge: usize, max_pixels: usize| {
            json!({ "size": {
                "shortest_edge": shortest_edge, "longest_edge": 200, "min_pixels": 100, "max_pixels": max_pixels,
            } })
        };
        let both = read(size(100, 200)).unwrap();
        assert_eq!((both.min_pixels, both.max_pixels), (100, 200));
        let error = read(size(50, 200)).unwrap_err();
        assert!(
            error.contains("shortest_edge = 50 and min_pixels = 100"),
            "{error}"
        );
        let error = read(size(100, 300)).unwrap_err();
        assert!(
            error.contains("longest_edge = 200 and max_pixels = 300"),
            "{error}"
        );
    }

    #[test]
    fn a_config_survives_being_written() {
        let config = read(json!({ "min_pixels": 100, "max_pixels": 200 })).unwrap();
        let written = serde_json::to_value(&config).unwrap();
        assert_eq!(
            serde_json::from_value::<ImageProcessorConfig>(written).unwrap(),
            config
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = |more: Value| read(more).unwrap_err();
        assert!(error(json!({ "do_resize": false })).contains("do_resize"));
        assert!(error(json!({ "resample": 2 })).contains("resample = 2"));
        assert!(error(json!({ "rescale_factor": 1.0 })).contains("rescale_factor = 1"));
        assert!(error(json!({ "min_pixels": 9, "max_pixels": 8 })).contains("above"));
    }
}
