//! Edits as a half-trained editor makes them: right, wrong, half done or damaged. The judge
//! learns from them what a mistake looks like; the oracle says how bad each is.

use image::{Rgb, RgbImage, imageops};
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha12Rng;

use crate::edit::{Case, Edit, TaskKind};
use crate::generate::{self, pick};
use crate::palette::{Color, bytes};
use crate::scene::{IMAGE_SIZE, Object, Scene, Shape};

/// Side of the blocks in which an edit can be half done, in pixels: what one token of the tiny
/// editor covers.
const BLOCK: u32 = 8;

/// A random edit of the case's source, from perfect to useless.
pub fn candidate(case: &Case, rng: &mut ChaCha12Rng) -> RgbImage {
    let target = case.target_image();
    let mut image = match rng.random_range(0..12) {
        0..=2 => target,
        3 => misunderstood(case, rng).render(),
        4 => half_understood(case, rng).render(),
        5 => overdone(case, rng).render(),
        6 => blend(
            &target,
            &misunderstood(case, rng).render(),
            rng.random_range(0.1..0.6),
        ),
        7 | 8 => patchwork(&target, &wrong_image(case, rng), rng),
        9 => hack(case, rng),
        _ => warped(&target, rng.random_range(1.0..7.0), rng),
    };
    if rng.random_range(0..4) == 0 {
        let other = wrong_image(case, rng);
        image = patchwork(&image, &other, rng);
    }
    if rng.random_range(0..4) == 0 {
        let strength = rng.random_range(0.05..0.35);
        stain(&mut image, strength, rng);
    }
    image
}

/// What an editor makes that has found out how to please a judge which looks at a part only: what was asked for is there,
/// or its colour is, and the rest is ruined.
pub fn hack(case: &Case, rng: &mut ChaCha12Rng) -> RgbImage {
    let target = case.target_scene();
    match rng.random_range(0..6) {
        0 | 1 => wiped(case, target, rng).render(),
        2 | 3 => bled(case, target, rng).render(),
        4 => flooded(&target, rng),
        _ => imageops::blur(&target.render(), rng.random_range(4.0..8.0)),
    }
}

/// Objects that had to stay are gone: one or all of them.
fn wiped(case: &Case, mut target: Scene, rng: &mut ChaCha12Rng) -> Scene {
    let all = rng.random_bool(0.5);
    let gone = victim(case, &target, rng);
    let stays = |object: &Object| match all {
        true => !case.source.objects.contains(object),
        false => Some(*object) != gone,
    };
    target.objects.retain(stays);
    target
}

/// An object that had to stay has taken the colour of another one, or grown over its cell in a new one.
fn bled(case: &Case, mut target: Scene, rng: &mut ChaCha12Rng) -> Scene {
    let Some(gone) = victim(case, &target, rng) else {
        return target;
    };
    let other = |object: &&Object| **object != gone;
    let color = target.objects.iter().find(other).map(|object| object.color);
    let painted = target.objects.iter_mut().find(|object| **object == gone);
    let painted = painted.expect("the victim is in the target");
    match color {
        Some(color) if rng.random_bool(0.5) => painted.color = color,
        _ => {
            (painted.size, painted.shape) = (painted.size.other(), pick(&Shape::ALL, rng));
            painted.color = pick(&Color::ALL, rng);
        }
    }
    target
}

/// An object of the target that had to stay, or any where none had to.
fn victim(case: &Case, target: &Scene, rng: &mut ChaCha12Rng) -> Option<Object> {
    let kept = |object: &&Object| case.source.objects.contains(object);
    let kept: Vec<&Object> = target.objects.iter().filter(kept).collect();
    let chosen = kept
        .choose(rng)
        .copied()
        .or_else(|| target.objects.choose(rng));
    chosen.copied()
}

/// One colour all over: that of an object, of the background, or white.
fn flooded(target: &Scene, rng: &mut ChaCha12Rng) -> RgbImage {
    let of_objects = target.objects.iter().map(|object| object.color.rgb());
    let colors = of_objects.chain([target.background.rgb(), [1.0; 3]]);
    let color = pick(&colors.collect::<Vec<_>>(), rng);
    RgbImage::from_pixel(IMAGE_SIZE, IMAGE_SIZE, Rgb(bytes(color)))
}

/// Shapes out of shape: pixels are taken from up to `reach` pixels away, neighbours from about the same place.
fn warped(image: &RgbImage, reach: f32, rng: &mut ChaCha12Rng) -> RgbImage {
    const KNOTS: usize = 6;
    let knots: Vec<[f32; 2]> = (0..KNOTS * KNOTS)
        .map(|_| std::array::from_fn(|_| rng.random_range(-reach..reach)))
        .collect();
    let spacing = (IMAGE_SIZE - 1) as f32 / (KNOTS - 1) as f32;
    let shift = |x: u32, y: u32, axis: usize| {
        let (across, down) = (x as f32 / spacing, y as f32 / spacing);
        let (column, row) = (
            (across as usize).min(KNOTS - 2),
            (down as usize).min(KNOTS - 2),
        );
        let knot = |dx: usize, dy: usize| knots[(row + dy) * KNOTS + column + dx][axis];
        let (u, v) = (across - column as f32, down - row as f32);
        let top = knot(0, 0) * (1.0 - u) + knot(1, 0) * u;
        let bottom = knot(0, 1) * (1.0 - u) + knot(1, 1) * u;
        top * (1.0 - v) + bottom * v
    };
    let from = |at: u32, shift: f32| {
        (at as f32 + shift)
            .round()
            .clamp(0.0, (IMAGE_SIZE - 1) as f32) as u32
    };
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        *image.get_pixel(from(x, shift(x, y, 0)), from(y, shift(x, y, 1)))
    })
}

/// What an editor makes that has not understood, or only half, or does more than it was asked for.
pub fn scene(case: &Case, rng: &mut ChaCha12Rng) -> Scene {
    match rng.random_range(0..3) {
        0 => misunderstood(case, rng),
        1 => half_understood(case, rng),
        _ => overdone(case, rng),
    }
}

fn wrong_image(case: &Case, rng: &mut ChaCha12Rng) -> RgbImage {
    match rng.random_range(0..3) {
        0 => case.source_image(),
        1 => misunderstood(case, rng).render(),
        _ => overdone(case, rng).render(),
    }
}

/// Another edit than the one asked for: of the same kind (another object, colour or place), of
/// any kind, or none.
fn misunderstood(case: &Case, rng: &mut ChaCha12Rng) -> Scene {
    let kind = match rng.random_range(0..6) {
        0 => return case.source.clone(),
        1 => any_kind(&case.source, rng),
        _ => case.kind,
    };
    apply(&generate::edits(kind, &case.source, rng), &case.source)
}

/// One of the edits asked for, with one detail of it changed; or one of two edits.
fn half_understood(case: &Case, rng: &mut ChaCha12Rng) -> Scene {
    if let [first, second] = case.edits[..] {
        return [first, second][rng.random_range(0..2)].apply(&case.source);
    }
    let similar = |edits: &[Edit]| similar(edits, &case.edits);
    let attempts = (0..20).map(|_| generate::edits(case.kind, &case.source, rng));
    let edits = attempts.into_iter().find(|edits| similar(edits));
    edits.map_or_else(|| case.source.clone(), |edits| apply(&edits, &case.source))
}

/// Whether two edits are about the same object, or put a new one into the same cell.
fn similar(a: &[Edit], b: &[Edit]) -> bool {
    match (a, b) {
        ([Edit::Add { object: a }], [Edit::Add { object: b }]) => a.cell == b.cell,
        ([a], [b]) => a.index() == b.index() && a != b,
        _ => false,
    }
}

/// What was asked for and then one edit more.
fn overdone(case: &Case, rng: &mut ChaCha12Rng) -> Scene {
    let target = case.target_scene();
    if target.objects.is_empty() {
        return apply(
            &generate::edits(TaskKind::Background, &case.source, rng),
            &case.source,
        );
    }
    let kind = any_kind(&target, rng);
    apply(&generate::edits(kind, &target, rng), &target)
}

fn any_kind(scene: &Scene, rng: &mut ChaCha12Rng) -> TaskKind {
    let kinds = [
        TaskKind::Remove,
        TaskKind::Adjust,
        TaskKind::Background,
        TaskKind::Replace,
    ];
    if !scene.free_cells().is_empty() && rng.random_range(0..4) == 0 {
        return TaskKind::Add;
    }
    kinds[rng.random_range(0..kinds.len())]
}

fn apply(edits: &[Edit], scene: &Scene) -> Scene {
    edits
        .iter()
        .fold(scene.clone(), |scene, edit| edit.apply(&scene))
}

fn blend(a: &RgbImage, b: &RgbImage, part: f32) -> RgbImage {
    let mix = |x: u8, y: u8| (f32::from(x) * (1.0 - part) + f32::from(y) * part).round() as u8;
    RgbImage::from_fn(a.width(), a.height(), |x, y| {
        let (a, b) = (a.get_pixel(x, y).0, b.get_pixel(x, y).0);
        Rgb([mix(a[0], b[0]), mix(a[1], b[1]), mix(a[2], b[2])])
    })
}

/// `a`, with some of its blocks taken from `b`: on one side of a random line, or anywhere.
fn patchwork(a: &RgbImage, b: &RgbImage, rng: &mut ChaCha12Rng) -> RgbImage {
    let blocks = IMAGE_SIZE / BLOCK;
    let taken: Vec<bool> = if rng.random_range(0..2) == 0 {
        let part = rng.random_range(0.05..0.6);
        (0..blocks * blocks)
            .map(|_| rng.random_bool(part))
            .collect()
    } else {
        let angle = rng.random_range(0.0..std::f32::consts::TAU);
        let border = rng.random_range(-3.0..3.0);
        let side = |block: u32, direction: f32| (block as f32 - 3.5) * direction;
        let beyond =
            |i: u32| side(i % blocks, angle.cos()) + side(i / blocks, angle.sin()) > border;
        (0..blocks * blocks).map(beyond).collect()
    };
    RgbImage::from_fn(a.width(), a.height(), |x, y| {
        let from_b = taken[(y / BLOCK * blocks + x / BLOCK) as usize];
        *(if from_b { b } else { a }).get_pixel(x, y)
    })
}

/// Shifts the colour of some random discs.
fn stain(image: &mut RgbImage, strength: f32, rng: &mut ChaCha12Rng) {
    for _ in 0..rng.random_range(1..5) {
        let side = IMAGE_SIZE as f32;
        let (cx, cy) = (rng.random_range(0.0..side), rng.random_range(0.0..side));
        let radius = rng.random_range(4.0_f32..16.0);
        let shift: [f32; 3] = std::array::from_fn(|_| rng.random_range(-strength..strength));
        for (x, y, pixel) in image.enumerate_pixels_mut() {
            if (x as f32 - cx).hypot(y as f32 - cy) < radius {
                pixel.0 = std::array::from_fn(|i| {
                    (f32::from(pixel.0[i]) + 255.0 * shift[i]).clamp(0.0, 255.0) as u8
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use retouch_dataset::Split;

    use super::*;
    use crate::generate::Stream;
    use crate::oracle::Oracle;

    #[test]
    fn candidates_cover_the_whole_scale() {
        let mut histogram = [0; 6];
        for index in 0..400 {
            let case = generate::case(8, Split::Train, index);
            let image = candidate(&case, &mut generate::rng(8, Stream::MadeUp, index));
            histogram[Oracle::new(&case).score(&image).round() as usize] += 1;
        }
        assert!(histogram.iter().all(|count| *count >= 8), "{histogram:?}");
    }

    #[test]
    fn hacks_are_worth_next_to_nothing() {
        let cases = (0..400).map(|index| generate::case(8, Split::Train, index));
        let empty = |case: &Case| case.target_scene().objects.is_empty();
        let scores: Vec<f64> = cases
            .filter(|case| !empty(case))
            .zip(0..)
            .map(|(case, index)| {
                let hack = hack(&case, &mut generate::rng(8, Stream::MadeUp, index));
                Oracle::new(&case).score(&hack)
            })
            .collect();
        let worthless = scores.iter().filter(|score| **score <= 1.0).count();
        assert!(
            10 * worthless >= 9 * scores.len(),
            "{worthless} of {}",
            scores.len()
        );
    }

    #[test]
    fn wrong_scenes_are_wrong() {
        let wrong = |index: &u32| {
            let case = generate::case(8, Split::Train, *index);
            let scene = scene(&case, &mut generate::rng(8, Stream::WrongTargets, *index));
            scene != case.target_scene()
        };
        let count = (0..400).filter(wrong).count();
        assert!(count > 360, "{count} of 400");
    }

    #[test]
    fn the_generator_decides() {
        let case = generate::case(8, Split::Train, 3);
        let draw = |index| candidate(&case, &mut generate::rng(8, Stream::MadeUp, index));
        assert_eq!(draw(5), draw(5));
        assert!((6..12).any(|index| draw(index) != draw(5)));
    }
}
