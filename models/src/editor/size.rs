use std::fmt;

use image::RgbImage;

/// Height and width of an image in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// What the source image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceSize {
    /// The result's size, after cropping to its aspect; what training uses.
    Result,
    /// Its own, cut to whole tokens.
    Own,
    /// What the base model prefers: for Kontext, the nearest in aspect of the sizes that it was trained on; for
    /// Qwen-Image-Edit, about a megapixel of its own aspect.
    Preferred,
}

impl SourceSize {
    /// For so many sources, where nobody says: pictures of several things have several aspects, and cropping them to one
    /// would lose what matters.
    pub fn usual(sources: usize) -> Self {
        match sources {
            1 => Self::Result,
            _ => Self::Own,
        }
    }
}

/// How the size of edited images follows from that of their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeRule {
    /// One size for all: the middle of the source is cut out.
    Fixed(ImageSize),
    /// The source's aspect, with about this many pixels.
    Area(usize),
    /// The nearest in aspect of the sizes that Kontext was trained on.
    Preferred,
}

/// Sides of images whose size follows from their source are multiples of this, which is a token of every
/// published editor.
const SIDE_UNIT: usize = 16;

impl SizeRule {
    /// The size of what is made of an image of size `source`.
    pub fn size(self, source: ImageSize) -> ImageSize {
        match self {
            Self::Fixed(size) => size,
            Self::Area(area) => {
                let size = output_size(source, area, SIDE_UNIT);
                // The longest strips would have no tokens across.
                ImageSize {
                    height: size.height.max(SIDE_UNIT),
                    width: size.width.max(SIDE_UNIT),
                }
            }
            Self::Preferred => preferred_size(source, 1),
        }
    }
}

/// (width, height) of the sizes that Kontext was trained on, about a megapixel each.
const PREFERRED: [(usize, usize); 17] = [
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
];

impl ImageSize {
    /// Of the sizes that Kontext was trained on, that with the most pixels.
    pub fn largest_preferred() -> Self {
        let largest = PREFERRED
            .into_iter()
            .max_by_key(|(width, height)| width * height);
        let (width, height) = largest.expect("there are preferred sizes");
        Self { height, width }
    }

    /// Height and width alike.
    pub fn square(side: usize) -> Self {
        Self {
            height: side,
            width: side,
        }
    }

    /// The size of an image.
    pub fn of(image: &RgbImage) -> Self {
        Self {
            height: image.height() as usize,
            width: image.width() as usize,
        }
    }

    /// The largest multiple of `unit` in both directions that is not larger.
    pub(super) fn floor_to(self, unit: usize) -> Self {
        Self {
            height: self.height / unit * unit,
            width: self.width / unit * unit,
        }
    }

    pub(super) fn is_multiple_of(self, unit: usize) -> bool {
        self.floor_to(unit) == self && self.height * self.width > 0
    }

    fn aspect(self) -> f64 {
        self.width as f64 / self.height as f64
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.height, self.width)
    }
}

/// The size that Kontext makes of one that is asked for: the aspect kept, the area about
/// `area_max` pixels, cut to multiples of `unit`.
pub fn output_size(asked: ImageSize, area_max: usize, unit: usize) -> ImageSize {
    let (area, aspect) = (area_max as f64, asked.aspect());
    let side = |square: f64| square.sqrt().round_ties_even() as usize;
    let size = ImageSize {
        height: side(area / aspect),
        width: side(area * aspect),
    };
    size.floor_to(unit)
}

/// The preferred size whose aspect is nearest to that of `image`, cut to whole tokens.
pub(super) fn preferred_size(image: ImageSize, unit: usize) -> ImageSize {
    let aspect = image.floor_to(unit).aspect();
    let distance =
        |&(width, height): &(usize, usize)| (aspect - width as f64 / height as f64).abs();
    let nearest = PREFERRED
        .into_iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let (width, height) = nearest.expect("there are preferred sizes");
    ImageSize { height, width }.floor_to(unit)
}

/// Sides of [`area_size`] are multiples of this.
const AREA_UNIT: usize = 32;

/// The size that Qwen-Image-Edit makes of a source image: the aspect kept, the area about `area` pixels, both sides
/// rounded to multiples of 32.
pub(super) fn area_size(own: ImageSize, area: usize) -> ImageSize {
    let width = (area as f64 * own.aspect()).sqrt();
    let height = width / own.aspect();
    let side = |side: f64| {
        let units = (side / AREA_UNIT as f64).round_ties_even() as usize;
        units.max(1) * AREA_UNIT
    };
    ImageSize {
        height: side(height),
        width: side(width),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_keep_the_aspect_in_multiples_of_32() {
        let size = |height, width, area| area_size(ImageSize { height, width }, area).to_string();
        assert_eq!(size(500, 500, 1024 * 1024), "1024 x 1024");
        assert_eq!(size(1080, 1920, 384 * 384), "288 x 512");
        // Half a unit goes to the even number of units.
        assert_eq!(size(80, 80, 80 * 80), "64 x 64");
        assert_eq!(size(1, 1000, 32 * 32), "32 x 1024");
    }

    #[test]
    fn output_keeps_the_aspect_and_the_area() {
        let asked = ImageSize {
            height: 70,
            width: 100,
        };
        let size = output_size(asked, 64 * 112, 16);
        assert_eq!(
            size,
            ImageSize {
                height: 64,
                width: 96
            }
        );
        assert_eq!(
            output_size(ImageSize::square(1024), 1024 * 1024, 16),
            ImageSize::square(1024)
        );
    }

    #[test]
    fn sizes_follow_the_source_where_they_should() {
        let source = ImageSize {
            height: 1080,
            width: 1920,
        };
        let fixed = ImageSize::square(512);
        assert_eq!(SizeRule::Fixed(fixed).size(source), fixed);
        let size = |height, width| ImageSize { height, width };
        // 16 : 9 at 512 x 512 pixels, cut to whole tokens.
        assert_eq!(SizeRule::Area(512 * 512).size(source), size(384, 672));
        assert_eq!(SizeRule::Area(512 * 512).size(size(300, 300)), fixed);
        assert_eq!(SizeRule::Area(64 * 64).size(size(10, 4000)), size(16, 1280));
        assert_eq!(SizeRule::Preferred.size(source), size(752, 1392));
    }

    #[test]
    fn the_preferred_size_is_nearest_in_aspect() {
        let size = |height, width| preferred_size(ImageSize { height, width }, 16);
        assert_eq!(size(500, 500), ImageSize::square(1024));
        assert_eq!(
            size(100, 900),
            ImageSize {
                height: 672,
                width: 1568
            }
        );
        assert_eq!(
            size(1080, 1920),
            ImageSize {
                height: 752,
                width: 1392
            }
        );
    }
}
