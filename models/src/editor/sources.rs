use image::RgbImage;

use super::{ImageSize, SizeRule, SourceSize, fit};

/// What an edit is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The source images as the editor sees them, at least one.
    pub images: Vec<RgbImage>,
    /// The size of the edit, which is the rule's for the last of them, as in the reference pipelines.
    pub size: ImageSize,
}

impl From<RgbImage> for Sources {
    /// A single one of the edit's size.
    fn from(image: RgbImage) -> Self {
        Self {
            size: ImageSize::of(&image),
            images: vec![image],
        }
    }
}

impl Sources {
    /// The images as a rule has them. A single one is what is edited: the largest part in its middle that has the
    /// proportions of the rule's size for it, resized to that size. Of several, each keeps its own proportions, with as
    /// many pixels, since they show several things and cropping would cut some off.
    ///
    /// # Panics
    /// If there is no image.
    pub fn sized(images: &[RgbImage], rule: SizeRule) -> Self {
        let last = images.last().expect("at least one source image");
        let size = rule.size(ImageSize::of(last));
        let several = match rule {
            SizeRule::Fixed(size) => SizeRule::Area(size.height * size.width),
            rule => rule,
        };
        let images = match images {
            [image] => vec![fit(image, size)],
            images => {
                let own = |image: &RgbImage| fit(image, several.size(ImageSize::of(image)));
                images.iter().map(own).collect()
            }
        };
        Self { images, size }
    }

    /// How the editor is to take them: they have their sizes.
    pub fn source_size(&self) -> SourceSize {
        SourceSize::usual(self.images.len())
    }

    /// The one that the edit has its shape from.
    pub fn last(&self) -> &RgbImage {
        self.images.last().expect("there is at least one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_source_is_cut_to_the_size_of_the_edit() {
        let wide = RgbImage::new(30, 20);
        let fixed = SizeRule::Fixed(ImageSize::square(16));
        let sources = Sources::sized(std::slice::from_ref(&wide), fixed);
        assert_eq!(sources.last().dimensions(), (16, 16));
        assert_eq!(sources, Sources::from(sources.last().clone()));
        assert_eq!(sources.source_size(), SourceSize::Result);
    }

    #[test]
    fn several_sources_keep_their_aspects_and_the_last_gives_the_size() {
        let images = [RgbImage::new(40, 80), RgbImage::new(30, 20)];
        let sizes = |sources: &Sources| -> Vec<(u32, u32)> {
            sources.images.iter().map(RgbImage::dimensions).collect()
        };
        let fixed = Sources::sized(&images, SizeRule::Fixed(ImageSize::square(64)));
        assert_eq!(sizes(&fixed), [(32, 80), (64, 48)]);
        assert_eq!(
            (fixed.size, fixed.source_size()),
            (ImageSize::square(64), SourceSize::Own)
        );
        let aspect = Sources::sized(&images, SizeRule::Area(64 * 64));
        assert_eq!(sizes(&aspect)[1], (64, 48));
        assert_eq!(aspect.size, ImageSize::of(aspect.last()));
    }
}
