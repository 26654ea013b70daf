//! Scenes and how they are drawn.

use image::{Rgb as Pixel, RgbImage};
use serde::{Deserialize, Serialize};

use crate::palette::{Background, Color, Rgb, luma};

/// Width and height of every image, in pixels.
pub const IMAGE_SIZE: u32 = 64;

/// Width and height of a [`Cell`], in pixels.
pub(crate) const CELL_SIZE: u32 = IMAGE_SIZE / 2;

/// Sub-samples along each side of a pixel, for smooth edges.
const SUBSAMPLES: u32 = 3;

/// The brightness that [`Style::Dark`] leaves.
const DARKNESS: f32 = 0.4;

/// The form of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// A disc.
    Circle,
    /// An upright square.
    Square,
    /// A triangle that points up.
    Triangle,
    /// An upright cross.
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 4] = [Self::Circle, Self::Square, Self::Triangle, Self::Cross];

    /// The word that instructions use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Cross => "cross",
        }
    }

    /// Whether a shape of this radius covers the offset (`dx`, `dy`) from its centre, in pixels.
    fn covers(self, dx: f32, dy: f32, radius: f32) -> bool {
        let (x, y) = (dx.abs(), dy.abs());
        match self {
            Self::Circle => x.hypot(y) <= radius,
            Self::Square => x.max(y) <= 0.9 * radius,
            Self::Triangle => y <= radius && 2.0 * x <= dy + radius,
            Self::Cross => x.max(y) <= radius && x.min(y) <= 0.42 * radius,
        }
    }
}

/// How big an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// Radius 8.
    Small,
    /// Radius 13.
    Large,
}

impl Size {
    /// Every size.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// The word that instructions use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    /// The radius in pixels.
    pub fn radius(self) -> f32 {
        match self {
            Self::Small => 8.0,
            Self::Large => 13.0,
        }
    }

    /// The other size.
    pub fn other(self) -> Self {
        match self {
            Self::Small => Self::Large,
            Self::Large => Self::Small,
        }
    }
}

/// One of the four quarters of an image; it holds one object at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// Top left.
    TopLeft,
    /// Top right.
    TopRight,
    /// Bottom left.
    BottomLeft,
    /// Bottom right.
    BottomRight,
}

impl Cell {
    /// Every cell.
    pub const ALL: [Self; 4] = [
        Self::TopLeft,
        Self::TopRight,
        Self::BottomLeft,
        Self::BottomRight,
    ];

    /// The words that instructions use.
    pub fn words(self) -> &'static str {
        match self {
            Self::TopLeft => "top left",
            Self::TopRight => "top right",
            Self::BottomLeft => "bottom left",
            Self::BottomRight => "bottom right",
        }
    }

    /// The cell of a point, in pixels.
    pub(crate) fn at(x: f32, y: f32) -> Self {
        let half = CELL_SIZE as f32;
        match (x < half, y < half) {
            (true, true) => Self::TopLeft,
            (false, true) => Self::TopRight,
            (true, false) => Self::BottomLeft,
            (false, false) => Self::BottomRight,
        }
    }

    /// Its top left pixel, x then y.
    pub(crate) fn corner(self) -> (u32, u32) {
        match self {
            Self::TopLeft => (0, 0),
            Self::TopRight => (CELL_SIZE, 0),
            Self::BottomLeft => (0, CELL_SIZE),
            Self::BottomRight => (CELL_SIZE, CELL_SIZE),
        }
    }

    /// The centre, x then y, in pixels.
    pub fn center(self) -> (f32, f32) {
        match self {
            Self::TopLeft => (16.0, 16.0),
            Self::TopRight => (48.0, 16.0),
            Self::BottomLeft => (16.0, 48.0),
            Self::BottomRight => (48.0, 48.0),
        }
    }
}

/// A shape in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Object {
    /// Its form.
    pub shape: Shape,
    /// Its paint.
    pub color: Color,
    /// How big it is.
    pub size: Size,
    /// The quarter that holds it.
    pub cell: Cell,
    /// How far its centre is from the cell's, x then y, in pixels.
    pub offset: (i8, i8),
}

impl Object {
    /// What an instruction calls it, such as "red circle".
    pub fn name(&self) -> String {
        format!("{} {}", self.color.word(), self.shape.word())
    }

    /// Whether it covers a point, in pixels.
    pub(crate) fn covers(&self, x: f32, y: f32) -> bool {
        let (cx, cy) = self.cell.center();
        let (dx, dy) = (
            x - cx - f32::from(self.offset.0),
            y - cy - f32::from(self.offset.1),
        );
        self.shape.covers(dx, dy, self.size.radius())
    }
}

/// How a scene is painted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// As it is.
    #[default]
    Plain,
    /// Every colour turned into its complement.
    Inverted,
    /// Brightness only.
    Grayscale,
    /// A part of the brightness.
    Dark,
}

impl Style {
    /// Every style but [`Style::Plain`].
    pub const CHANGES: [Self; 3] = [Self::Inverted, Self::Grayscale, Self::Dark];

    fn paint(self, color: Rgb) -> Rgb {
        match self {
            Self::Plain => color,
            Self::Inverted => color.map(|channel| 1.0 - channel),
            Self::Grayscale => [luma(color); 3],
            Self::Dark => color.map(|channel| DARKNESS * channel),
        }
    }
}

/// A background and the objects on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scene {
    /// What lies behind the objects.
    pub background: Background,
    /// The objects, no two in one cell, no two of one colour.
    pub objects: Vec<Object>,
    /// How it is painted.
    #[serde(default)]
    pub style: Style,
}

impl Scene {
    /// Draws the scene at [`IMAGE_SIZE`], edges smoothed by averaging sub-samples.
    pub fn render(&self) -> RgbImage {
        RgbImage::from_fn(IMAGE_SIZE, IMAGE_SIZE, |x, y| Pixel(self.pixel(x, y)))
    }

    /// The cells that hold no object.
    pub fn free_cells(&self) -> Vec<Cell> {
        let taken = |cell: &Cell| self.objects.iter().any(|object| object.cell == *cell);
        Cell::ALL.into_iter().filter(|cell| !taken(cell)).collect()
    }

    /// The colours that no object has.
    pub fn free_colors(&self) -> Vec<Color> {
        let taken = |color: &Color| self.objects.iter().any(|object| object.color == *color);
        Color::ALL
            .into_iter()
            .filter(|color| !taken(color))
            .collect()
    }

    fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let mut sum = [0.0; 3];
        for sub in 0..SUBSAMPLES * SUBSAMPLES {
            let color = self.color_at(
                x as f32 + subsample_offset(sub % SUBSAMPLES),
                y as f32 + subsample_offset(sub / SUBSAMPLES),
            );
            sum.iter_mut()
                .zip(color)
                .for_each(|(total, channel)| *total += channel);
        }
        sum.map(|total| (255.0 * total / (SUBSAMPLES * SUBSAMPLES) as f32).round() as u8)
    }

    /// The object that is seen at a point.
    pub(crate) fn object_at(&self, x: f32, y: f32) -> Option<&Object> {
        self.objects.iter().rev().find(|object| object.covers(x, y))
    }

    fn color_at(&self, x: f32, y: f32) -> Rgb {
        self.painted(self.object_at(x, y))
    }

    /// How an object, or the background, is painted.
    pub(crate) fn painted(&self, object: Option<&Object>) -> Rgb {
        self.style
            .paint(object.map_or(self.background.rgb(), |object| object.color.rgb()))
    }
}

fn subsample_offset(index: u32) -> f32 {
    (index as f32 + 0.5) / SUBSAMPLES as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::palette::bytes;

    fn object(shape: Shape, size: Size, offset: (i8, i8)) -> Object {
        Object {
            shape,
            color: Color::Red,
            size,
            cell: Cell::TopLeft,
            offset,
        }
    }

    fn scene(objects: Vec<Object>, style: Style) -> Scene {
        Scene {
            background: Background::Black,
            objects,
            style,
        }
    }

    #[test]
    fn objects_stay_inside_their_cells() {
        for shape in Shape::ALL {
            for offset in [(-2, -2), (2, 2)] {
                let image = scene(vec![object(shape, Size::Large, offset)], Style::Plain).render();
                let background = bytes(Background::Black.rgb());
                let outside = |&(x, y, _): &(u32, u32, &Pixel<u8>)| x >= 32 || y >= 32;
                assert!(
                    image
                        .enumerate_pixels()
                        .filter(outside)
                        .all(|(.., p)| p.0 == background)
                );
                assert_eq!(
                    image.get_pixel(16, 16).0,
                    bytes(Color::Red.rgb()),
                    "{shape:?}"
                );
            }
        }
    }

    #[test]
    fn styles_repaint_what_they_say() {
        let at_center = |style| {
            let image = scene(vec![object(Shape::Circle, Size::Large, (0, 0))], style).render();
            image.get_pixel(16, 16).0
        };
        let red = Color::Red.rgb();
        assert_eq!(at_center(Style::Plain), bytes(red));
        assert_eq!(
            at_center(Style::Inverted),
            bytes(red.map(|channel| 1.0 - channel))
        );
        assert_eq!(at_center(Style::Grayscale), bytes([luma(red); 3]));
        assert_eq!(
            at_center(Style::Dark),
            bytes(red.map(|channel| 0.4 * channel))
        );
    }

    #[test]
    fn sizes_differ_in_covered_area() {
        let covered = |size| {
            let image = scene(vec![object(Shape::Cross, size, (0, 0))], Style::Plain).render();
            image
                .pixels()
                .filter(|pixel| pixel.0 == bytes(Color::Red.rgb()))
                .count()
        };
        assert!(covered(Size::Small) > 80);
        assert!(covered(Size::Large) > 2 * covered(Size::Small));
    }
}
