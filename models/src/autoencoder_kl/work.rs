use super::{AutoencoderKl, AutoencoderKlConfig};
use crate::weights::Pretrained;
use crate::work::{Work, halved, index_in};

impl AutoencoderKlConfig {
    /// The encoding of an image of so many pixels.
    pub(crate) fn encoding_work(&self, pixels: u64) -> Work {
        self.work(pixels, &["encoder.", "quant_conv."])
    }

    /// The decoding of an image of so many pixels.
    pub(crate) fn decoding_work(&self, pixels: u64) -> Work {
        self.work(pixels, &["decoder.", "post_quant_conv."])
    }

    fn work(&self, pixels: u64, parts: &[&str]) -> Work {
        let places = |name: &str| match parts.iter().any(|part| name.starts_with(part)) {
            true => halved(pixels, self.level(name)),
            false => 0,
        };
        let lowest = halved(pixels, self.lowest());
        let attention = Work::attention(lowest, lowest, self.lowest_channels());
        let weights = AutoencoderKl::table(self).multiply_adds(places);
        Work::from(weights) + attention * u64::from(self.mid_block_add_attention)
    }

    fn lowest(&self) -> u32 {
        self.block_out_channels.len() as u32 - 1
    }

    /// How often the resolution is halved where a layer's output is.
    fn level(&self, name: &str) -> u32 {
        let resampled = u32::from(name.contains("samplers."));
        if let Some(index) = index_in(name, "down_blocks") {
            return index + resampled;
        }
        if let Some(index) = index_in(name, "up_blocks") {
            return self.lowest() - index - resampled;
        }
        match name {
            "encoder.conv_in.weight" | "decoder.conv_out.weight" => 0,
            _ => self.lowest(),
        }
    }
}
