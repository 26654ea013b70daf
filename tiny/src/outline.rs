//! Whether the outline of a drawn object is that of the wanted one, as somebody would see it who looks at the picture.

use image::{Rgb, RgbImage};

use crate::oracle::distance;
use crate::scene::{CELL_SIZE, Cell, Object, Shape, Size};

/// How far an object may be from its place without anybody noticing, in pixels.
const SHIFT: i8 = 1;

/// How much better another shape or size has to fit for the object to be taken for it.
const FITS_BETTER: f64 = 0.03;

/// A set of pixels of a cell.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Mask([u32; CELL_SIZE as usize]);

impl Mask {
    /// The pixels of a cell, by column and row in it, that satisfy `condition`.
    fn of(condition: impl Fn(u32, u32) -> bool) -> Self {
        let row = |y: u32| (0..CELL_SIZE).fold(0, |row, x| row | u32::from(condition(x, y)) << x);
        Self(std::array::from_fn(|y| row(y as u32)))
    }

    /// Those in the square of `side` pixels whose top left is at this column and row.
    fn square(self, column: u32, row: u32, side: u32) -> Self {
        let inside = |at: u32, start: u32| (start..start + side).contains(&at);
        Self::of(|x, y| inside(x, column) && inside(y, row) && self.0[y as usize] >> x & 1 == 1)
    }

    fn count(self) -> u32 {
        self.0.iter().map(|row| row.count_ones()).sum()
    }

    fn zip(self, other: Self) -> impl Iterator<Item = (u32, u32)> {
        self.0.into_iter().zip(other.0)
    }

    /// Pixels in both, as a part of those in any of the two; 1 if there are none.
    fn overlap(self, other: Self) -> f64 {
        let (mut both, mut any) = (0, 0);
        for (a, b) in self.zip(other) {
            both += (a & b).count_ones();
            any += (a | b).count_ones();
        }
        if any == 0 {
            1.0
        } else {
            f64::from(both) / f64::from(any)
        }
    }
}

/// The outline of one object of a target.
pub(crate) struct Outline {
    cell: Cell,
    colors: [Rgb<u8>; 2],
    /// The object where it should be and a little beside.
    right: Vec<Mask>,
    /// The same with other shapes and sizes.
    wrong: Vec<Mask>,
}

/// How well a drawn object fits the wanted one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fit {
    /// Pixels of both as a part of those of any of the two, 0..=1, with the object where it fits best.
    pub(crate) overlap: f64,
    /// Whether it would be taken for another shape, or one of another size.
    pub(crate) mistaken: bool,
}

impl Outline {
    /// Of `object`, which is seen in the first of `colors` before the second.
    pub(crate) fn new(object: Object, colors: [Rgb<u8>; 2]) -> Self {
        let forms = Shape::ALL.into_iter().flat_map(|shape| {
            Size::ALL.map(|size| Object {
                shape,
                size,
                ..object
            })
        });
        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        for form in forms {
            let masks = if form == object {
                &mut right
            } else {
                &mut wrong
            };
            masks.extend(places(form));
        }
        Self {
            cell: object.cell,
            colors,
            right,
            wrong,
        }
    }

    /// How well the object in `edit` fits.
    pub(crate) fn fit(&self, edit: &RgbImage) -> Fit {
        let drawn = self.drawn(edit);
        let [right, wrong] =
            [&self.right, &self.wrong].map(|masks| best(masks, drawn).overlap(drawn));
        Fit {
            overlap: right,
            mistaken: wrong > right + FITS_BETTER,
        }
    }

    /// The overlap within each square of `side` pixels of the object's cell where at least `pixels_min` pixels are of the
    /// object or drawn so, with the square's top left pixel.
    pub(crate) fn overlaps(
        &self,
        edit: &RgbImage,
        side: u32,
        pixels_min: u32,
    ) -> Vec<((u32, u32), f64)> {
        let drawn = self.drawn(edit);
        let right = best(&self.right, drawn);
        let (left, top) = self.cell.corner();
        let starts = (0..CELL_SIZE).step_by(side as usize);
        let squares = starts
            .clone()
            .flat_map(|row| starts.clone().map(move |column| (column, row)));
        squares
            .filter_map(|(column, row)| {
                let [drawn, right] = [drawn, right].map(|mask| mask.square(column, row, side));
                let overlap = right.overlap(drawn);
                (right.count().max(drawn.count()) >= pixels_min)
                    .then_some(((left + column, top + row), overlap))
            })
            .collect()
    }

    /// The pixels of the object's cell that are nearer to its colour than to what lies behind it.
    fn drawn(&self, edit: &RgbImage) -> Mask {
        let (left, top) = self.cell.corner();
        let [object, behind] = &self.colors;
        Mask::of(|x, y| {
            let pixel = edit.get_pixel(left + x, top + y);
            distance(pixel, object) < distance(pixel, behind)
        })
    }
}

/// The mask that what was drawn fits best.
fn best(masks: &[Mask], drawn: Mask) -> Mask {
    let best = masks.iter().copied();
    best.max_by(|a, b| a.overlap(drawn).total_cmp(&b.overlap(drawn)))
        .expect("an object has a place")
}

/// The object where it should be and up to [`SHIFT`] beside.
fn places(object: Object) -> impl Iterator<Item = Mask> {
    let (left, top) = object.cell.corner();
    let shifts = (-SHIFT..=SHIFT).flat_map(|dx| (-SHIFT..=SHIFT).map(move |dy| (dx, dy)));
    shifts.map(move |(dx, dy)| {
        let (x, y) = object.offset;
        let shifted = Object {
            offset: (x + dx, y + dy),
            ..object
        };
        let center = |start: u32, at: u32| (start + at) as f32 + 0.5;
        Mask::of(|x, y| shifted.covers(center(left, x), center(top, y)))
    })
}
