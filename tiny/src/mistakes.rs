//! Edits as a half-trained editor makes them: right, wrong, half done or damaged. The judge
//! learns from them what a mistake looks like; the oracle says how bad each is.

use image::{Rgb, RgbImage};
use rand::RngExt;
use rand_chacha::ChaCha12Rng;

use crate::edit::{Case, Edit, TaskKind};
use crate::generate;
use crate::scene::{IMAGE_SIZE, Scene};

/// Side of the blocks in which an edit can be half done, in pixels: what one token of the tiny
/// editor covers.
const BLOCK: u32 = 8;

/// A random edit of the case's source, from perfect to useless.
pub fn candidate(case: &Case, rng: &mut ChaCha12Rng) -> RgbImage {
    let target = case.target_image();
    let mut image = match rng.random_range(0..8) {
        0 | 1 => target,
        2 => misunderstood(case, rng).render(),
        3 => half_understood(case, rng).render(),
        4 => overdone(case, rng).render(),
        5 => blend(
            &target,
            &misunderstood(case, rng).render(),
            rng.random_range(0.1..0.6),
        ),
        _ => patchwork(&target, &wrong_image(case, rng), rng),
    };
    if rng.random_range(0..3) == 0 {
        let other = wrong_image(case, rng);
        image = patchwork(&image, &other, rng);
    }
    if rng.random_range(0..3) == 0 {
        let strength = rng.random_range(0.05..0.35);
        stain(&mut image, strength, rng);
    }
    image
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
    use crate::oracle::Oracle;

    #[test]
    fn candidates_cover_the_whole_scale() {
        let mut histogram = [0; 6];
        for index in 0..400 {
            let case = generate::case(8, Split::Train, index);
            let image = candidate(&case, &mut generate::rng(8, 1, index));
            histogram[Oracle::new(&case).score(&image).round() as usize] += 1;
        }
        assert!(histogram.iter().all(|count| *count >= 12), "{histogram:?}");
    }

    #[test]
    fn the_generator_decides() {
        let case = generate::case(8, Split::Train, 3);
        let draw = |index| candidate(&case, &mut generate::rng(8, 1, index));
        assert_eq!(draw(5), draw(5));
        assert!((6..12).any(|index| draw(index) != draw(5)));
    }
}
