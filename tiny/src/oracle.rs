//! The score that an edit deserves, known from its target. Only evaluation may use it.

use image::{Rgb, RgbImage};
use retouch_evaluation::ORACLE_MAX;

use crate::edit::Case;

/// How far a pixel may be from the target in its worst channel, as a part of the full range.
pub const TOLERANCE: f32 = 0.15;

/// Where source and target differ by less than this, as a part of the full range, a pixel had to
/// stay; where they differ by more than [`TOLERANCE`], it had to change.
const CHANGE_MIN: f32 = 0.05;

/// Scores edits of one case.
///
/// The score is the smaller of two accuracies, times 5: over the pixels that had to change, and
/// over those that had to stay. Pixels on an edge of the target are not counted, since how an
/// edge is smoothed is nobody's business, and neither are those that hardly had to change.
pub struct Oracle {
    target: RgbImage,
    /// Per pixel: whether it had to change; `None` where it does not count.
    changed: Vec<Option<bool>>,
}

impl Oracle {
    /// The oracle of a case.
    pub fn new(case: &Case) -> Self {
        Self::between(&case.source_image(), case.target_image())
    }

    fn between(source: &RgbImage, target: RgbImage) -> Self {
        let changed = |(x, y, pixel): (u32, u32, &Rgb<u8>)| {
            let difference = distance(source.get_pixel(x, y), pixel);
            let hardly = (CHANGE_MIN..=TOLERANCE).contains(&difference);
            (!hardly && !on_edge(&target, x, y)).then_some(difference > TOLERANCE)
        };
        let changed = target.enumerate_pixels().map(changed).collect();
        Self { target, changed }
    }

    /// The score of `edit`, 0..=5.
    ///
    /// # Panics
    /// If the edit is not as large as the target.
    pub fn score(&self, edit: &RgbImage) -> f64 {
        assert_eq!(
            edit.dimensions(),
            self.target.dimensions(),
            "edit and target differ in size"
        );
        ORACLE_MAX * self.accuracy(edit, true).min(self.accuracy(edit, false))
    }

    /// The part of the counted pixels that is right in each square of `side` pixels, row by row;
    /// `None` where hardly any pixel counts.
    ///
    /// # Panics
    /// If the edit is not as large as the target, or does not divide into such squares.
    pub fn accuracies(&self, edit: &RgbImage, side: u32) -> Vec<Option<f64>> {
        let (width, height) = self.target.dimensions();
        assert_eq!(
            edit.dimensions(),
            (width, height),
            "edit and target differ in size"
        );
        assert!(
            width % side == 0 && height % side == 0,
            "{side} does not divide the image"
        );
        let columns = width / side;
        let mut squares = vec![(0_u32, 0_u32); (columns * (height / side)) as usize];
        let pixels = edit.enumerate_pixels().zip(self.target.pixels());
        for (((x, y, ours), wanted), counts) in pixels.zip(&self.changed) {
            let (right, all) = &mut squares[(y / side * columns + x / side) as usize];
            *all += u32::from(counts.is_some());
            *right += u32::from(counts.is_some() && distance(ours, wanted) < TOLERANCE);
        }
        let accuracy = |(right, all): (u32, u32)| {
            (8 * all > side * side).then(|| f64::from(right) / f64::from(all))
        };
        squares.into_iter().map(accuracy).collect()
    }

    /// The part of the pixels that had to change (or to stay) that is right; 1 if there are none.
    fn accuracy(&self, edit: &RgbImage, changed: bool) -> f64 {
        let (mut right, mut all) = (0_u32, 0_u32);
        let pixels = edit.pixels().zip(self.target.pixels());
        for ((ours, wanted), region) in pixels.zip(&self.changed) {
            if *region == Some(changed) {
                all += 1;
                right += u32::from(distance(ours, wanted) < TOLERANCE);
            }
        }
        if all == 0 {
            1.0
        } else {
            f64::from(right) / f64::from(all)
        }
    }
}

/// The oracle's score of one edit of a case, 0..=5.
pub fn score(case: &Case, edit: &RgbImage) -> f64 {
    Oracle::new(case).score(edit)
}

/// Whether some neighbour of a pixel, or the pixel itself, is of another colour than the rest.
fn on_edge(image: &RgbImage, x: u32, y: u32) -> bool {
    let center = image.get_pixel(x, y);
    let rows = y.saturating_sub(1)..=(y + 1).min(image.height() - 1);
    rows.flat_map(|row| {
        let columns = x.saturating_sub(1)..=(x + 1).min(image.width() - 1);
        columns.map(move |column| (column, row))
    })
    .any(|(column, row)| distance(image.get_pixel(column, row), center) > CHANGE_MIN)
}

/// The largest difference of a channel, as a part of the full range.
fn distance(a: &Rgb<u8>, b: &Rgb<u8>) -> f32 {
    let worst =
        a.0.iter()
            .zip(b.0)
            .map(|(x, y)| x.abs_diff(y))
            .max()
            .unwrap_or(0);
    f32::from(worst) / 255.0
}

#[cfg(test)]
mod tests {
    use retouch_dataset::Split;

    use super::*;
    use crate::edit::{Edit, TaskKind};
    use crate::generate;
    use crate::palette::{Background, Color};

    fn cases() -> impl Iterator<Item = Case> {
        (0..160).map(|index| generate::case(11, Split::Train, index))
    }

    #[test]
    fn targets_are_perfect_and_sources_worthless() {
        for case in cases() {
            let oracle = Oracle::new(&case);
            assert_eq!(
                oracle.score(&oracle.target),
                ORACLE_MAX,
                "{}",
                case.prompt()
            );
            assert!(
                oracle.score(&case.source_image()) < 1.0,
                "{}",
                case.prompt()
            );
        }
    }

    #[test]
    fn small_noise_is_forgiven_and_large_noise_is_not() {
        let case = generate::case(5, Split::Train, 4);
        let shifted = |by: u8| {
            let mut image = case.target_image();
            image.pixels_mut().for_each(|pixel| {
                pixel.0 = pixel.0.map(|channel| {
                    if channel > 127 {
                        channel - by
                    } else {
                        channel + by
                    }
                });
            });
            image
        };
        assert_eq!(score(&case, &shifted(30)), ORACLE_MAX);
        assert_eq!(score(&case, &shifted(45)), 0.0);
    }

    #[test]
    fn half_an_edit_gets_about_half_the_score() {
        let case = cases()
            .find(|case| case.kind == TaskKind::Background)
            .expect("such a case");
        let mut half = case.target_image();
        let source = case.source_image();
        for (x, y, pixel) in half.enumerate_pixels_mut() {
            if y < source.height() / 2 {
                *pixel = *source.get_pixel(x, y);
            }
        }
        let score = score(&case, &half);
        assert!((1.5..3.5).contains(&score), "{score}");
    }

    #[test]
    fn accuracies_say_where_an_edit_is_wrong() {
        let case = cases()
            .find(|case| case.kind == TaskKind::Background)
            .expect("such a case");
        let oracle = Oracle::new(&case);
        let mut half = case.target_image();
        for (_, y, pixel) in half.enumerate_pixels_mut() {
            if y < 32 {
                *pixel = Rgb([255, 0, 255]);
            }
        }
        for (square, accuracy) in oracle.accuracies(&half, 16).into_iter().enumerate() {
            let right = if square < 8 { 0.0 } else { 1.0 };
            assert!(
                accuracy.is_none_or(|accuracy| accuracy == right),
                "square {square}"
            );
        }
    }

    #[test]
    fn damage_elsewhere_costs_although_the_edit_is_right() {
        let recolors = |case: &Case| matches!(case.edits[..], [Edit::Recolor { .. }]);
        let case = cases().find(recolors).expect("such a case");
        let background = match case.source.background {
            Background::Black => Background::White,
            _ => Background::Black,
        };
        let damaged = Edit::Background { background }.apply(&case.target_scene());
        assert!(score(&case, &damaged.render()) < 2.0);
    }

    #[test]
    fn the_wrong_colour_is_no_edit() {
        let mut case = cases()
            .find(|case| matches!(case.edits[..], [Edit::Recolor { .. }]))
            .expect("such a case");
        let [Edit::Recolor { index, color }] = case.edits[..] else {
            unreachable!()
        };
        let wrong = Color::ALL
            .into_iter()
            .find(|other| *other != color && *other != case.source.objects[index].color);
        let oracle = Oracle::new(&case);
        case.edits = vec![Edit::Recolor {
            index,
            color: wrong.expect("six colours"),
        }];
        assert!(oracle.score(&case.target_image()) < 0.5);
    }
}
