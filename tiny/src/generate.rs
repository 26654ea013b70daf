//! Cases from a seed: case `index` of a part is the same whoever asks for it, in any order.

use rand::RngExt;
use rand::SeedableRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha12Rng;
use retouch_dataset::Split;

use crate::edit::{Case, Edit, TaskKind};
use crate::palette::{Background, Color};
use crate::scene::{Cell, Object, Scene, Shape, Size, Style};

/// How far an object's centre may be from its cell's, in pixels.
const OFFSET_MAX: i8 = 2;

/// One scene in this many is held out.
const HELD_OUT_EVERY: u32 = 4;

/// The split that a scene belongs to; splits share no scene, whatever the seeds. The places of the objects
/// decide, since nothing that is learned should hang on a pixel more or less.
pub fn split_of(scene: &Scene) -> Split {
    let places = |object: &Object| i32::from(object.offset.0) + 3 * i32::from(object.offset.1);
    let sum: i32 = scene.objects.iter().map(places).sum();
    match sum.rem_euclid(HELD_OUT_EVERY as i32) {
        0 => Split::Test,
        _ => Split::Train,
    }
}

/// Case `index` of a split. Kinds take turns, so that every run of eight has each once.
pub fn case(seed: u64, split: Split, index: u32) -> Case {
    let kind = TaskKind::ALL[index as usize % TaskKind::ALL.len()];
    let stream = match split {
        Split::Train => Stream::Train,
        Split::Test => Stream::Test,
    };
    let mut rng = rng(seed, stream, index);
    loop {
        let case = case_of_kind(kind, &mut rng);
        if split_of(&case.source) == split {
            return case;
        }
    }
}

/// What random numbers are for; purposes share no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Cases to learn from.
    Train,
    /// Held-out cases.
    Test,
    /// Pictures for the autoencoder.
    Pictures,
    /// Made-up edits.
    MadeUp,
    /// The judge's lessons.
    Lessons,
    /// Noise on latents.
    LatentNoise,
    /// Wrong targets.
    WrongTargets,
}

/// The generator of random numbers that belongs to place `index` of a stream.
pub fn rng(seed: u64, stream: Stream, index: u32) -> ChaCha12Rng {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream((stream as u64) << 32 | u64::from(index));
    rng
}

/// A random case of this kind.
fn case_of_kind(kind: TaskKind, rng: &mut ChaCha12Rng) -> Case {
    let objects_min = match kind {
        TaskKind::Extract | TaskKind::Hybrid => 2,
        _ => 1,
    };
    let objects = rng.random_range(objects_min..=3);
    let source = scene(objects, rng);
    let edits = edits(kind, &source, rng);
    Case {
        kind,
        source,
        edits,
    }
}

/// A random scene with this many objects.
///
/// # Panics
/// If there are more objects than cells.
pub fn scene(objects: usize, rng: &mut ChaCha12Rng) -> Scene {
    let mut scene = Scene {
        background: pick(&Background::ALL, rng),
        objects: Vec::new(),
        style: Style::Plain,
    };
    for _ in 0..objects {
        let mut object = new_object(&scene, rng);
        object.offset = (offset(rng), offset(rng));
        scene.objects.push(object);
    }
    scene.objects.shuffle(rng);
    scene
}

/// Random changes that a task of this kind may ask for in this scene.
pub fn edits(kind: TaskKind, scene: &Scene, rng: &mut ChaCha12Rng) -> Vec<Edit> {
    let index = rng.random_range(0..scene.objects.len());
    match kind {
        TaskKind::Add => vec![Edit::Add {
            object: new_object(scene, rng),
        }],
        TaskKind::Remove => vec![Edit::Remove { index }],
        TaskKind::Replace => vec![replacement(index, scene, rng)],
        TaskKind::Adjust if rng.random_range(0..3) == 0 => vec![Edit::Resize { index }],
        TaskKind::Adjust => vec![recoloring(index, scene, rng)],
        TaskKind::Background => vec![Edit::Background {
            background: other_background(scene, rng),
        }],
        TaskKind::Style => vec![Edit::Style {
            style: pick(&Style::CHANGES, rng),
        }],
        TaskKind::Extract => {
            vec![Edit::Extract {
                index,
                background: other_background(scene, rng),
            }]
        }
        TaskKind::Hybrid => two_edits(index, scene, rng),
    }
}

fn two_edits(index: usize, scene: &Scene, rng: &mut ChaCha12Rng) -> Vec<Edit> {
    let first = match rng.random_range(0..3) {
        0 => Edit::Background {
            background: other_background(scene, rng),
        },
        1 => Edit::Add {
            object: new_object(scene, rng),
        },
        _ => {
            let other = (index + rng.random_range(1..scene.objects.len())) % scene.objects.len();
            recoloring(other, scene, rng)
        }
    };
    // A colour that the first edit brings in must not come twice.
    let between = first.apply(scene);
    let second = match rng.random_range(0..3) {
        0 => Edit::Resize { index },
        1 => recoloring(index, &between, rng),
        _ => Edit::Remove { index },
    };
    vec![first, second]
}

fn replacement(index: usize, scene: &Scene, rng: &mut ChaCha12Rng) -> Edit {
    let old = scene.objects[index].shape;
    let shapes: Vec<Shape> = Shape::ALL
        .into_iter()
        .filter(|shape| *shape != old)
        .collect();
    Edit::Replace {
        index,
        color: free_color(scene, rng),
        shape: pick(&shapes, rng),
    }
}

fn recoloring(index: usize, scene: &Scene, rng: &mut ChaCha12Rng) -> Edit {
    Edit::Recolor {
        index,
        color: free_color(scene, rng),
    }
}

fn new_object(scene: &Scene, rng: &mut ChaCha12Rng) -> Object {
    let cells: Vec<Cell> = scene.free_cells();
    Object {
        shape: pick(&Shape::ALL, rng),
        color: free_color(scene, rng),
        size: pick(&Size::ALL, rng),
        cell: pick(&cells, rng),
        offset: (0, 0),
    }
}

fn free_color(scene: &Scene, rng: &mut ChaCha12Rng) -> Color {
    pick(&scene.free_colors(), rng)
}

fn other_background(scene: &Scene, rng: &mut ChaCha12Rng) -> Background {
    let other = |background: &Background| *background != scene.background;
    let others: Vec<Background> = Background::ALL.into_iter().filter(other).collect();
    pick(&others, rng)
}

fn offset(rng: &mut ChaCha12Rng) -> i8 {
    rng.random_range(-OFFSET_MAX..=OFFSET_MAX)
}

pub(crate) fn pick<T: Copy>(choices: &[T], rng: &mut ChaCha12Rng) -> T {
    *choices.choose(rng).expect("something to choose from")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn cases() -> impl Iterator<Item = Case> {
        (0..800).map(|index| case(3, Split::Train, index))
    }

    #[test]
    fn the_same_index_gives_the_same_case() {
        assert_eq!(case(3, Split::Test, 7), case(3, Split::Test, 7));
        assert_ne!(case(3, Split::Test, 7), case(3, Split::Train, 7));
        assert_ne!(case(3, Split::Test, 7), case(4, Split::Test, 7));
    }

    #[test]
    fn objects_share_neither_cells_nor_colours() {
        for scene in cases().flat_map(|case| [case.target_scene(), case.source]) {
            let cells: HashSet<Cell> = scene.objects.iter().map(|object| object.cell).collect();
            let colors: HashSet<Color> = scene.objects.iter().map(|object| object.color).collect();
            assert_eq!(cells.len(), scene.objects.len());
            assert_eq!(colors.len(), scene.objects.len());
        }
    }

    #[test]
    fn held_out_scenes_are_a_quarter_and_never_trained_on() {
        let mut rng = rng(2, Stream::Train, 0);
        let scenes: Vec<Scene> = (0..1000).map(|_| scene(2, &mut rng)).collect();
        let held_out = scenes
            .iter()
            .filter(|scene| split_of(scene) == Split::Test)
            .count();
        assert!((200..300).contains(&held_out), "{held_out} of 1000");
        for split in [Split::Train, Split::Test] {
            let of = |index| split_of(&case(3, split, index).source);
            assert!((0..80).all(|index| of(index) == split));
        }
    }

    #[test]
    fn every_case_asks_for_a_visible_change() {
        for case in cases() {
            let (source, target) = (case.source_image(), case.target_image());
            let changed = source
                .pixels()
                .zip(target.pixels())
                .filter(|(a, b)| a != b)
                .count();
            assert!(changed > 80, "{}: {changed} pixels", case.prompt());
        }
    }

    #[test]
    fn instructions_are_short_and_kinds_balanced() {
        for (index, case) in cases().enumerate() {
            assert!(case.prompt().split(' ').count() <= 15, "{}", case.prompt());
            assert_eq!(case.kind, TaskKind::ALL[index % 8]);
        }
    }
}
