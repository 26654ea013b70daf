use image::imageops;
use retouch_dataset::Split;
use retouch_evaluation::ORACLE_MAX;

use super::*;
use crate::edit::TaskKind;
use crate::generate;
use crate::palette::{Background, Color};
use crate::scene::{Shape, Size, Style};

fn cases() -> impl Iterator<Item = Case> {
    (0..160).map(|index| generate::case(11, Split::Train, index))
}

fn score(case: &Case, edit: &RgbImage) -> f64 {
    Oracle::new(case).score(edit)
}

fn object(shape: Shape, color: Color, size: Size, cell: Cell) -> Object {
    Object {
        shape,
        color,
        size,
        cell,
        offset: (0, 0),
    }
}

fn red_circle() -> Object {
    object(Shape::Circle, Color::Red, Size::Small, Cell::TopLeft)
}

fn green_cross() -> Object {
    object(Shape::Cross, Color::Green, Size::Small, Cell::TopRight)
}

/// A red circle, a large blue square and a yellow triangle on gray.
fn asked(edits: &[Edit]) -> Case {
    let source = Scene {
        background: Background::Gray,
        objects: vec![
            red_circle(),
            object(Shape::Square, Color::Blue, Size::Large, Cell::BottomRight),
            object(
                Shape::Triangle,
                Color::Yellow,
                Size::Small,
                Cell::BottomLeft,
            ),
        ],
        style: Style::Plain,
    };
    Case {
        kind: TaskKind::Hybrid,
        source,
        edits: edits.to_vec(),
    }
}

fn recoloring() -> Case {
    let color = Color::Cyan;
    asked(&[Edit::Recolor { index: 0, color }])
}

/// The score of the target with something changed.
fn spoilt(case: &Case, spoil: impl Fn(&mut Scene)) -> f64 {
    let mut scene = case.target_scene();
    spoil(&mut scene);
    score(case, &scene.render())
}

#[test]
fn targets_are_perfect_and_sources_worthless() {
    for case in cases() {
        let oracle = Oracle::new(&case);
        let prompt = case.prompt();
        assert_eq!(oracle.score(&oracle.target), ORACLE_MAX, "{prompt}");
        let untouched = oracle.score(&case.source_image());
        assert!(untouched < 1.0, "{prompt}: {untouched}");
    }
}

#[test]
fn all_white_is_worthless() {
    let white = RgbImage::from_pixel(IMAGE_SIZE, IMAGE_SIZE, Rgb([255; 3]));
    let empty = |case: &Case| case.target_scene().objects.is_empty();
    for case in cases().filter(|case| !empty(case)) {
        let score = score(&case, &white);
        assert!(score < 0.5, "{}: {score}", case.prompt());
    }
}

#[test]
fn a_neighbour_that_is_gone_costs_all() {
    let gone = spoilt(&recoloring(), |scene| scene.objects.truncate(2));
    assert!(gone < 0.5, "{gone}");
    let removal = asked(&[Edit::Remove { index: 1 }]);
    let gone = spoilt(&removal, |scene| scene.objects.truncate(1));
    assert!(gone < 0.5, "{gone}");
}

#[test]
fn a_colour_that_bled_into_a_neighbour_costs_all() {
    let bled = spoilt(&recoloring(), |scene| scene.objects[2].color = Color::Cyan);
    assert!(bled < 0.5, "{bled}");
}

#[test]
fn a_neighbour_that_is_half_covered_is_as_good_as_gone() {
    let case = recoloring();
    let mut covered = case.target_image();
    for (x, y, pixel) in covered.enumerate_pixels_mut() {
        if x < 16 && y >= 32 {
            *pixel = Rgb([10, 10, 200]);
        }
    }
    let score = score(&case, &covered);
    assert!(score < 1.0, "{score}");
}

#[test]
fn a_neighbour_that_moved_costs_by_how_far() {
    let moved = |by| spoilt(&recoloring(), |scene| scene.objects[2].offset = (by, 0));
    let (little, more, far) = (moved(1), moved(3), moved(6));
    assert!(little > 4.5, "{little}");
    assert!((1.0..3.0).contains(&more), "{more}");
    assert!(far < 0.5, "{far}");
}

#[test]
fn blobs_are_not_shapes() {
    let case = recoloring();
    let blurred = |sigma| score(&case, &imageops::blur(&case.target_image(), sigma));
    assert!(blurred(1.0) > 4.5, "{}", blurred(1.0));
    assert!(blurred(4.0) < 1.0, "{}", blurred(4.0));
    let circle = spoilt(&recoloring(), |scene| {
        scene.objects[2].shape = Shape::Circle
    });
    assert!(circle < 2.0, "{circle}");
}

#[test]
fn the_wrong_quadrant_is_no_addition() {
    let object = green_cross();
    let mut case = asked(&[Edit::Add { object }]);
    case.source.objects.truncate(2);
    let wrong = spoilt(&case, |scene| scene.objects[2].cell = Cell::BottomLeft);
    assert!(wrong < 1.0, "{wrong}");
}

#[test]
fn the_wrong_colour_is_no_edit() {
    let wrong = spoilt(&recoloring(), |scene| scene.objects[0].color = Color::Green);
    assert!(wrong < 0.5, "{wrong}");
}

#[test]
fn the_wrong_shape_or_size_is_less_than_half_an_edit() {
    let (color, index) = (Color::Green, 0);
    for shape in Shape::ALL {
        let case = asked(&[Edit::Replace {
            index,
            color,
            shape,
        }]);
        for wrong in Shape::ALL.into_iter().filter(|wrong| *wrong != shape) {
            let score = spoilt(&case, |scene| scene.objects[0].shape = wrong);
            assert!(score <= 2.0, "{wrong:?} for {shape:?}: {score}");
        }
        let large = spoilt(&case, |scene| scene.objects[0].size = Size::Large);
        assert!(large < 2.0, "{shape:?}: {large}");
    }
}

#[test]
fn a_stray_object_costs_more_than_half() {
    let stray = spoilt(&recoloring(), |scene| scene.objects.push(green_cross()));
    assert!((1.0..3.0).contains(&stray), "{stray}");
}

#[test]
fn another_background_costs_all() {
    let white = spoilt(&recoloring(), |scene| scene.background = Background::White);
    assert!(white < 0.5, "{white}");
}

#[test]
fn one_of_two_edits_is_half_the_score() {
    let color = Color::Cyan;
    let case = asked(&[Edit::Recolor { index: 0, color }, Edit::Remove { index: 2 }]);
    let half = score(&case, &case.edits[0].apply(&case.source).render());
    assert_eq!(half, 0.5 * ORACLE_MAX);
}

#[test]
fn a_style_without_its_objects_is_worthless() {
    let style = Style::Inverted;
    let wiped = spoilt(&asked(&[Edit::Style { style }]), |scene| {
        scene.objects.clear()
    });
    assert!(wiped < 0.5, "{wiped}");
}

#[test]
fn an_extraction_that_leaves_another_object_is_worthless() {
    let background = Background::White;
    let index = 0;
    let case = asked(&[Edit::Extract { index, background }]);
    let left = spoilt(&case, |scene| scene.objects.push(case.source.objects[1]));
    assert!(left < 0.5, "{left}");
}

#[test]
fn the_parts_say_what_went_wrong() {
    let case = recoloring();
    let verdict = |scene: &Scene| Oracle::new(&case).verdict(&scene.render());
    let untouched = verdict(&case.source);
    assert_eq!(untouched.changed, 0.0);
    assert_eq!(
        (untouched.kept, untouched.background),
        (Some(1.0), Some(1.0))
    );
    let mut gone = case.target_scene();
    gone.objects.pop();
    let gone = verdict(&gone);
    assert_eq!((gone.changed, gone.kept), (1.0, Some(0.0)));
    let background = Background::Black;
    let painted = asked(&[Edit::Background { background }]);
    let verdict = Oracle::new(&painted).verdict(&painted.target_image());
    assert_eq!((verdict.kept, verdict.background), (Some(1.0), None));
}

#[test]
fn small_noise_is_forgiven_and_large_noise_is_not() {
    let case = generate::case(5, Split::Train, 4);
    let shifted = |by: u8| {
        let mut image = case.target_image();
        let shift = |channel: u8| match channel > 127 {
            true => channel - by,
            false => channel + by,
        };
        image
            .pixels_mut()
            .for_each(|pixel| pixel.0 = pixel.0.map(shift));
        image
    };
    assert_eq!(score(&case, &shifted(30)), ORACLE_MAX);
    assert_eq!(score(&case, &shifted(45)), 0.0);
}

#[test]
fn grades_say_where_an_edit_is_wrong() {
    let background = Background::White;
    let case = asked(&[Edit::Background { background }]);
    let oracle = Oracle::new(&case);
    let mut half = case.target_image();
    for (_, y, pixel) in half.enumerate_pixels_mut() {
        if y < 32 {
            *pixel = Rgb([255, 0, 255]);
        }
    }
    let grades = oracle.grades(&half, 16);
    assert!(grades.iter().all(Option::is_some));
    for (square, grade) in grades.into_iter().enumerate() {
        let right = if square < 8 { 0.0 } else { 1.0 };
        assert_eq!(grade, Some(right), "square {square}");
    }
}
