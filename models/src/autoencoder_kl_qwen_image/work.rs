use super::{AutoencoderKlQwenImage, AutoencoderKlQwenImageConfig};
use crate::weights::Pretrained;
use crate::work::{Work, halved, index_in};

impl AutoencoderKlQwenImageConfig {
    /// The encoding of an image of so many pixels.
    pub(crate) fn encoding_work(&self, pixels: u64) -> Work {
        self.work(pixels, &["encoder.", "quant_conv."])
    }

    /// The decoding of an image of so many pixels.
    pub(crate) fn decoding_work(&self, pixels: u64) -> Work {
        self.work(pixels, &["decoder.", "post_quant_conv."])
    }

    fn work(&self, pixels: u64, parts: &[&str]) -> Work {
        let is_used = |name: &str| {
            let passed_by = name.contains("time_conv") || name.ends_with("gamma");
            parts.iter().any(|part| name.starts_with(part)) && !passed_by
        };
        let table = AutoencoderKlQwenImage::table(self);
        let used = table.shapes().iter().filter(|(name, _)| is_used(name));
        let multiply_adds = |(name, shape): (&String, &Vec<usize>)| match shape[..] {
            // Of a kernel's frames, a still image meets the last.
            [to, from, _, height, width] | [to, from, height, width] => {
                halved(pixels, self.level(name)) * (to * from * height * width) as u64
            }
            _ => 0,
        };
        let lowest = halved(pixels, self.lowest());
        let channels = self.levels().last().copied().unwrap_or(0);
        Work::from(used.map(multiply_adds).sum::<u64>()) + Work::attention(lowest, lowest, channels)
    }

    fn lowest(&self) -> u32 {
        self.temperal_downsample.len() as u32
    }

    /// How often the resolution is halved where a layer's output is.
    fn level(&self, name: &str) -> u32 {
        let resampled = u32::from(name.contains(".resample."));
        if let Some(index) = index_in(name, "down_blocks") {
            // One list has the layers of all levels: residual blocks, then a halving.
            return index / (self.num_res_blocks as u32 + 1) + resampled;
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
