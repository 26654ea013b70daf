//! The score that an edit deserves, known from its target. Only evaluation may use it.
//!
//! Three parts are graded, each in 0..1: what had to change, the background that had to stay, and the objects that had
//! to stay. The score is 5 times the worst of them ([`Verdict::score`]), because an edit that does what was asked and
//! ruins the rest is a bad edit. Of an object, colour counts, and the outline: place, size and shape, as one would see
//! them. Small objects count as much as large ones.

use std::collections::BTreeMap;

use image::{Rgb, RgbImage};
use retouch_evaluation::Verdict;

use crate::edit::{Case, Edit};
use crate::outline::{Fit, Outline};
use crate::palette::bytes;
use crate::scene::{Cell, IMAGE_SIZE, Object, Scene};

/// How far a pixel may be from the target in its worst channel, as a part of the full range.
pub const TOLERANCE: f32 = 0.15;

/// Where neighbours in the target differ by more than this, as a part of the full range, there is an edge. How an edge
/// is smoothed is nobody's business, so its pixels are not counted.
const EDGE_MIN: f32 = 0.05;

/// Pixels that have to count before an area is graded.
const PIXELS_MIN: usize = 12;

/// What an object with another shape or size than the wanted one may still get, as a part of the whole.
const MISTAKEN: f64 = 0.4;

/// An object that stands out from what lies behind it by less, as a part of the full range, has no outline to speak of.
const CONTRAST_MIN: f32 = 0.2;

/// How right pixels become a grade: none up to `none`, the whole from `whole` on, and linear between.
#[derive(Clone, Copy)]
struct Scale {
    none: f64,
    whole: f64,
}

impl Scale {
    /// An object of which half is missing, or has another colour, is as good as gone.
    const OBJECT: Self = Self {
        none: 0.5,
        whole: 0.95,
    };

    /// The overlap of outlines; objects are some fifteen pixels wide, and a pixel more or less at every edge is a
    /// fifth of them.
    const OUTLINE: Self = Self {
        none: 0.4,
        whole: 0.85,
    };

    /// A quarter of the picture is large: a stray object covers no more than a fifth of it.
    const BACKGROUND: Self = Self {
        none: 0.7,
        whole: 0.97,
    };

    fn grade(self, right: f64) -> f64 {
        ((right - self.none) / (self.whole - self.none)).clamp(0.0, 1.0)
    }

    /// The grade of some pixels, where they are enough to count.
    fn of(self, pixels: &[usize], right: &[bool]) -> Option<f64> {
        let count = pixels.iter().filter(|&&pixel| right[pixel]).count();
        (pixels.len() >= PIXELS_MIN).then(|| self.grade(count as f64 / pixels.len() as f64))
    }
}

/// Pixels that are graded together, by their index in the picture.
struct Area {
    pixels: Vec<usize>,
    scale: Scale,
    part: Part,
}

/// What an area says about an edit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Whether the change of this number among those asked for was made.
    Changed(usize),
    /// Whether an object was kept.
    Kept,
    /// Whether the background was kept.
    Background,
}

/// Scores edits of one case.
pub struct Oracle {
    target: RgbImage,
    edits: usize,
    areas: Vec<Area>,
    outlines: Vec<(Outline, Part)>,
}

impl Oracle {
    /// The oracle of a case.
    pub fn new(case: &Case) -> Self {
        let scenes = Scenes::of(case);
        let (before, after) = (&case.source.objects, &scenes.target.objects);
        let mut areas = scenes.background();
        areas.extend(after.iter().map(|object| scenes.inside(object)));
        areas.extend(
            before
                .iter()
                .filter_map(|object| scenes.left_behind(object)),
        );
        let outlines = after.iter().filter_map(|object| scenes.outline(object));
        Self {
            edits: case.edits.len(),
            outlines: outlines.collect(),
            target: scenes.picture,
            areas,
        }
    }

    /// How good `edit` is, part by part.
    ///
    /// # Panics
    /// If the edit is not as large as the target.
    pub fn verdict(&self, edit: &RgbImage) -> Verdict {
        let right = self.right(edit);
        let areas = self.areas.iter();
        let areas =
            areas.filter_map(|area| Some((area.part, area.scale.of(&area.pixels, &right)?)));
        let outlines = self.outlines.iter();
        let outlines = outlines.map(|(outline, part)| (*part, outline.fit(edit).grade()));
        let grades: Vec<(Part, f64)> = areas.chain(outlines).collect();
        let worst = |part: Part| {
            let grades = grades.iter().filter(|(of, _)| *of == part);
            grades.map(|(_, grade)| *grade).reduce(f64::min)
        };
        let changes = (0..self.edits).map(|edit| worst(Part::Changed(edit)).unwrap_or(1.0));
        Verdict {
            changed: changes.sum::<f64>() / self.edits as f64,
            kept: worst(Part::Kept),
            background: worst(Part::Background),
        }
    }

    /// The score of `edit`, 0..=5.
    ///
    /// # Panics
    /// If the edit is not as large as the target.
    pub fn score(&self, edit: &RgbImage) -> f64 {
        self.verdict(edit).score()
    }

    /// How good each square of `side` pixels is, 0..1, row by row; `None` where hardly any pixel counts.
    ///
    /// # Panics
    /// If the edit is not as large as the target, or does not divide into such squares.
    pub fn grades(&self, edit: &RgbImage, side: u32) -> Vec<Option<f64>> {
        let width = self.target.width();
        assert!(
            width.is_multiple_of(side),
            "{side} does not divide the image"
        );
        let right = self.right(edit);
        let columns = width / side;
        let mut squares = vec![None; (columns * (self.target.height() / side)) as usize];
        for area in &self.areas {
            let mut inside: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for &pixel in &area.pixels {
                let (x, y) = (pixel as u32 % width, pixel as u32 / width);
                inside
                    .entry(y / side * columns + x / side)
                    .or_default()
                    .push(pixel);
            }
            for (square, pixels) in inside {
                lower(
                    &mut squares[square as usize],
                    area.scale.of(&pixels, &right),
                );
            }
        }
        for (outline, _) in &self.outlines {
            for ((x, y), overlap) in outline.overlaps(edit, side, PIXELS_MIN as u32) {
                let square = y / side * columns + x / side;
                lower(
                    &mut squares[square as usize],
                    Some(Scale::OUTLINE.grade(overlap)),
                );
            }
        }
        squares
    }

    /// Which pixels are as wanted.
    fn right(&self, edit: &RgbImage) -> Vec<bool> {
        assert_eq!(
            edit.dimensions(),
            self.target.dimensions(),
            "edit and target differ in size"
        );
        let pixels = edit.pixels().zip(self.target.pixels());
        pixels
            .map(|(ours, wanted)| distance(ours, wanted) < TOLERANCE)
            .collect()
    }
}

fn lower(known: &mut Option<f64>, grade: Option<f64>) {
    *known = known.iter().copied().chain(grade).reduce(f64::min);
}

impl Fit {
    fn grade(self) -> f64 {
        let grade = Scale::OUTLINE.grade(self.overlap);
        if self.mistaken {
            grade.min(MISTAKEN)
        } else {
            grade
        }
    }
}

/// Source and target of a case, and the target's picture.
struct Scenes<'a> {
    case: &'a Case,
    target: Scene,
    picture: RgbImage,
}

impl<'a> Scenes<'a> {
    fn of(case: &'a Case) -> Self {
        let target = case.target_scene();
        let picture = target.render();
        Self {
            case,
            target,
            picture,
        }
    }

    /// The background's quarters.
    fn background(&self) -> Vec<Area> {
        let source = &self.case.source;
        let stays =
            (source.background, source.style) == (self.target.background, self.target.style);
        let part = match stays {
            true => Part::Background,
            false => self.changed_at(None),
        };
        let quarter = |cell: Cell| Area {
            pixels: self
                .pixels(|x, y| Cell::at(x, y) == cell && self.target.object_at(x, y).is_none()),
            scale: Scale::BACKGROUND,
            part,
        };
        Cell::ALL.map(quarter).into()
    }

    /// The pixels of an object of the target.
    fn inside(&self, object: &Object) -> Area {
        Area {
            pixels: self.pixels(|x, y| self.target.object_at(x, y) == Some(object)),
            scale: Scale::OBJECT,
            part: self.part_of(object),
        }
    }

    /// The outline of an object of the target, where it can be seen.
    fn outline(&self, object: &Object) -> Option<(Outline, Part)> {
        let colors = [Some(object), None].map(|seen| Rgb(bytes(self.target.painted(seen))));
        let visible = distance(&colors[0], &colors[1]) >= CONTRAST_MIN;
        visible.then(|| (Outline::new(*object, colors), self.part_of(object)))
    }

    fn part_of(&self, object: &Object) -> Part {
        let source = &self.case.source;
        let stays = source.objects.contains(object) && source.style == self.target.style;
        if stays {
            Part::Kept
        } else {
            self.changed_at(Some(object.cell))
        }
    }

    /// Where an object of the source was and nothing is now.
    fn left_behind(&self, object: &Object) -> Option<Area> {
        let empty = |x, y| self.target.object_at(x, y).is_none();
        let pixels = self.pixels(|x, y| object.covers(x, y) && empty(x, y));
        (!pixels.is_empty()).then(|| Area {
            pixels,
            scale: Scale::OBJECT,
            part: self.changed_at(Some(object.cell)),
        })
    }

    /// The change that concerns a cell, or the picture as a whole.
    fn changed_at(&self, cell: Option<Cell>) -> Part {
        let concerns = |edit: &Edit| match *edit {
            Edit::Add { object } => Some(object.cell) == cell,
            Edit::Background { .. } => cell.is_none(),
            Edit::Style { .. } | Edit::Extract { .. } => true,
            Edit::Remove { index }
            | Edit::Replace { index, .. }
            | Edit::Recolor { index, .. }
            | Edit::Resize { index } => Some(self.case.source.objects[index].cell) == cell,
        };
        let edit = self.case.edits.iter().position(concerns);
        Part::Changed(edit.expect("nothing changes that was not asked for"))
    }

    /// The pixels whose centre satisfies `condition` and that lie on no edge of the target.
    fn pixels(&self, condition: impl Fn(f32, f32) -> bool) -> Vec<usize> {
        let pixels = (0..IMAGE_SIZE).flat_map(|y| (0..IMAGE_SIZE).map(move |x| (x, y)));
        pixels
            .filter(|&(x, y)| {
                condition(x as f32 + 0.5, y as f32 + 0.5) && !on_edge(&self.picture, x, y)
            })
            .map(|(x, y)| (y * IMAGE_SIZE + x) as usize)
            .collect()
    }
}

/// Whether some neighbour of a pixel, or the pixel itself, is of another colour than the rest.
fn on_edge(image: &RgbImage, x: u32, y: u32) -> bool {
    let center = image.get_pixel(x, y);
    let rows = y.saturating_sub(1)..=(y + 1).min(image.height() - 1);
    rows.flat_map(|row| {
        let columns = x.saturating_sub(1)..=(x + 1).min(image.width() - 1);
        columns.map(move |column| (column, row))
    })
    .any(|(column, row)| distance(image.get_pixel(column, row), center) > EDGE_MIN)
}

/// The largest difference of a channel, as a part of the full range.
pub(crate) fn distance(a: &Rgb<u8>, b: &Rgb<u8>) -> f32 {
    let worst =
        a.0.iter()
            .zip(b.0)
            .map(|(x, y)| x.abs_diff(y))
            .max()
            .unwrap_or(0);
    f32::from(worst) / 255.0
}

#[cfg(test)]
mod tests;
