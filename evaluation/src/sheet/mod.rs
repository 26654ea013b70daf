//! Sheets of pictures with text: a title, column headings, and rows of pictures, each with lines under it.
//!
//! Pictures keep their aspect: each stands in the middle of a cell that is as large as the largest of them.

mod text;

use std::borrow::Cow;

use image::{Rgb, RgbImage, imageops, imageops::FilterType};

use self::text::LINE;

const MARGIN: u32 = 16;
const GAP: u32 = 8;
/// Between rows that stand side by side.
const ABREAST_GAP: u32 = 32;
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
/// Between pictures that are shown as one.
const TOGETHER_GAP: u32 = 4;
/// Around a picture that is narrower or lower than its cell.
const MAT: Rgb<u8> = Rgb([235, 238, 242]);
const INK: Rgb<u8> = Rgb([20, 28, 45]);
const GREY: Rgb<u8> = Rgb([95, 106, 125]);
/// Small pictures are enlarged by whole factors until a side is at least this long, and text beside them has room.
const SIDE_MIN: u32 = 224;
/// Larger ones are made smaller, so that a sheet of many can be opened.
const SIDE_MAX: u32 = 384;
const TITLE_LINES_MAX: usize = 3;
const CAPTION_LINES_MAX: usize = 3;

/// What is drawn.
#[derive(Debug, Default)]
pub struct Sheet<'a> {
    /// The title: its first line is the name, the others say more.
    pub title: Vec<String>,
    /// What the columns are; may be empty.
    pub headings: Vec<String>,
    /// The rows, all of them with as many cells as there are headings, if there are any.
    pub rows: Vec<Row<'a>>,
    /// How many rows stand side by side; 0 is 1.
    pub abreast: u32,
}

/// Pictures that belong together.
#[derive(Debug, Default)]
pub struct Row<'a> {
    /// From left to right.
    pub cells: Vec<Cell<'a>>,
    /// What they have in common, such as the instruction: a paragraph each.
    pub caption: Vec<String>,
}

/// A picture, if there is one, and what is said of it.
#[derive(Debug, Default)]
pub struct Cell<'a> {
    /// The picture.
    pub picture: Option<Cow<'a, RgbImage>>,
    /// What stands under it.
    pub lines: Vec<String>,
}

/// Sizes that all rows share.
struct Layout {
    cell: (u32, u32),
    row: (u32, u32),
    /// Height of a row's lines under its pictures.
    lines: u32,
    headings: u32,
    title: Vec<String>,
}

impl Sheet<'_> {
    /// Draws it.
    pub fn draw(&self) -> RgbImage {
        let layout = self.layout();
        let (abreast, count) = (self.abreast.max(1), self.rows.len() as u32);
        let abreast = abreast.min(count.max(1));
        let top = MARGIN + layout.title.len() as u32 * LINE + GAP + layout.headings;
        let mut sheet = RgbImage::from_pixel(
            2 * MARGIN + abreast * (layout.row.0 + ABREAST_GAP) - ABREAST_GAP,
            top + count.div_ceil(abreast) * (layout.row.1 + GAP) + MARGIN,
            BACKGROUND,
        );
        for (index, line) in layout.title.iter().enumerate() {
            let colour = if index == 0 { INK } else { GREY };
            text::draw(
                &mut sheet,
                (MARGIN, MARGIN + index as u32 * LINE),
                line,
                colour,
            );
        }
        for column in 0..abreast {
            let x = MARGIN + column * (layout.row.0 + ABREAST_GAP);
            for (index, heading) in self.headings.iter().enumerate() {
                let x = x + index as u32 * (layout.cell.0 + GAP);
                text::draw(&mut sheet, (x, top - layout.headings), heading, GREY);
            }
        }
        for (index, row) in self.rows.iter().enumerate() {
            let index = index as u32;
            let x = MARGIN + index % abreast * (layout.row.0 + ABREAST_GAP);
            let y = top + index / abreast * (layout.row.1 + GAP);
            row.draw(&mut sheet, (x, y), &layout);
        }
        sheet
    }

    fn layout(&self) -> Layout {
        let cells = || self.rows.iter().flat_map(|row| &row.cells);
        let sizes = cells()
            .filter_map(|cell| cell.picture.as_deref())
            .map(scaled_size);
        let cell = sizes.fold((SIDE_MIN, 1), |(width, height), (w, h)| {
            (width.max(w), height.max(h))
        });
        let columns = self.rows.iter().map(|row| row.cells.len()).max();
        let columns = columns.unwrap_or(1).max(1) as u32;
        let width = columns * (cell.0 + GAP) - GAP;
        let lines = cells().map(|cell| cell.lines.len()).max().unwrap_or(0) as u32 * LINE;
        let captions = self.rows.iter().map(|row| row.caption_lines(width).len());
        let caption = captions.max().unwrap_or(0) as u32 * LINE;
        let whole = self.abreast.max(1).min(self.rows.len().max(1) as u32) * (width + ABREAST_GAP);
        let title = self.title.iter();
        Layout {
            cell,
            row: (width, cell.1 + lines + caption + GAP),
            lines,
            headings: u32::from(!self.headings.is_empty()) * LINE,
            title: title
                .flat_map(|line| text::wrap(line, whole - ABREAST_GAP, TITLE_LINES_MAX))
                .collect(),
        }
    }
}

impl Row<'_> {
    fn draw(&self, sheet: &mut RgbImage, (left, top): (u32, u32), layout: &Layout) {
        let (width, height) = layout.cell;
        for (index, cell) in self.cells.iter().enumerate() {
            let x = left + index as u32 * (width + GAP);
            if let Some(picture) = &cell.picture {
                let framed = letterboxed(picture, layout.cell);
                imageops::replace(sheet, &framed, i64::from(x), i64::from(top));
            }
            for (index, line) in cell.lines.iter().enumerate() {
                let line = &text::wrap(line, width, 1)[0];
                text::draw(
                    sheet,
                    (x, top + height + 2 + index as u32 * LINE),
                    line,
                    INK,
                );
            }
        }
        let below = top + height + 2 + layout.lines;
        for (index, line) in self.caption_lines(layout.row.0).iter().enumerate() {
            text::draw(sheet, (left, below + index as u32 * LINE), line, GREY);
        }
    }

    fn caption_lines(&self, width: u32) -> Vec<String> {
        let paragraphs = self.caption.iter();
        paragraphs
            .flat_map(|paragraph| text::wrap(paragraph, width, CAPTION_LINES_MAX))
            .collect()
    }
}

/// Pictures side by side in cells of one size, without text: for pages that have their own.
pub fn strip<'a>(pictures: impl IntoIterator<Item = &'a RgbImage>) -> RgbImage {
    let pictures: Vec<&RgbImage> = pictures.into_iter().collect();
    let sizes = pictures.iter().map(|picture| scaled_size(picture));
    let cell = sizes.fold((1, 1), |(width, height), (w, h)| {
        (width.max(w), height.max(h))
    });
    let count = pictures.len().max(1) as u32;
    let mut strip = RgbImage::from_pixel(count * (cell.0 + GAP) - GAP, cell.1, BACKGROUND);
    for (index, picture) in pictures.into_iter().enumerate() {
        let x = index as u32 * (cell.0 + GAP);
        imageops::replace(&mut strip, &letterboxed(picture, cell), i64::from(x), 0);
    }
    strip
}

/// Several pictures as one, in rows from left to right, each in a cell as large as the largest; one alone as it is.
///
/// # Panics
/// If there is none.
pub fn together(pictures: &[RgbImage]) -> Cow<'_, RgbImage> {
    if let [picture] = pictures {
        return Cow::Borrowed(picture);
    }
    let columns = (1..).find(|side: &usize| side.pow(2) >= pictures.len());
    let columns = columns.expect("a square number");
    let largest = |side: fn(&RgbImage) -> u32| pictures.iter().map(side).max();
    let cell = largest(RgbImage::width).zip(largest(RgbImage::height));
    let (width, height) = cell.expect("at least one picture");
    let extent = |count: usize, side: u32| count as u32 * (side + TOGETHER_GAP) - TOGETHER_GAP;
    let rows = pictures.len().div_ceil(columns);
    let (all_width, all_height) = (extent(columns, width), extent(rows, height));
    let mut whole = RgbImage::from_pixel(all_width, all_height, MAT);
    for (index, picture) in pictures.iter().enumerate() {
        let place = |number: usize, side: u32, own: u32| {
            i64::from(number as u32 * (side + TOGETHER_GAP) + (side - own) / 2)
        };
        let x = place(index % columns, width, picture.width());
        let y = place(index / columns, height, picture.height());
        imageops::replace(&mut whole, picture, x, y);
    }
    Cow::Owned(whole)
}

/// The picture in the middle of a cell, as it is or scaled, never squashed.
fn letterboxed(picture: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    let (w, h) = scaled_size(picture);
    let filter = match w >= picture.width() {
        // Whole factors: a pixel stays a square.
        true => FilterType::Nearest,
        false => FilterType::Triangle,
    };
    let scaled = imageops::resize(picture, w, h, filter);
    let mut cell = RgbImage::from_pixel(width, height, MAT);
    let (x, y) = ((width - w) / 2, (height - h) / 2);
    imageops::replace(&mut cell, &scaled, i64::from(x), i64::from(y));
    cell
}

fn scaled_size(picture: &RgbImage) -> (u32, u32) {
    let (width, height) = picture.dimensions();
    let longer = width.max(height).max(1);
    if longer > SIDE_MAX {
        let scaled = |side: u32| (side * SIDE_MAX / longer).max(1);
        return (scaled(width), scaled(height));
    }
    let factor = SIDE_MIN.div_ceil(longer).min(SIDE_MAX / longer).max(1);
    (width * factor, height * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_pixel(width, height, Rgb([200, 0, 0]))
    }

    /// Width and height of the red part.
    fn extent(image: &RgbImage) -> (u32, u32) {
        let red = |pixel: &Rgb<u8>| *pixel == Rgb([200, 0, 0]);
        let found = image.enumerate_pixels().filter(|(.., pixel)| red(pixel));
        let places: Vec<(u32, u32)> = found.map(|(x, y, _)| (x, y)).collect();
        let spread = |of: fn(&(u32, u32)) -> u32| {
            let (low, high) = (places.iter().map(of).min(), places.iter().map(of).max());
            high.unwrap() - low.unwrap() + 1
        };
        (spread(|place| place.0), spread(|place| place.1))
    }

    #[test]
    fn pictures_are_never_squashed() {
        for (size, shown) in [
            ((64, 64), (256, 256)),
            ((100, 50), (300, 150)),
            ((50, 100), (150, 300)),
            ((1024, 512), (384, 192)),
            ((512, 1024), (192, 384)),
        ] {
            let (tall, own) = (picture(64, 96), picture(size.0, size.1));
            let cell = letterboxed(&own, (400, 400));
            assert_eq!(extent(&cell), shown, "{size:?}");
            let strip = strip([&tall, &own]);
            let cell = (strip.width() - GAP) / 2;
            let right = imageops::crop_imm(&strip, cell + GAP, 0, cell, strip.height());
            assert_eq!(extent(&right.to_image()), shown, "{size:?}");
        }
    }

    #[test]
    fn several_pictures_are_one_with_each_in_its_place() {
        let black = |width, height| RgbImage::new(width, height);
        let one = [picture(10, 20)];
        assert!(matches!(together(&one), Cow::Borrowed(alone) if *alone == one[0]));
        let three = [black(10, 20), black(30, 10), picture(8, 8)];
        let whole = together(&three);
        assert_eq!(whole.dimensions(), (2 * 30 + 4, 2 * 20 + 4));
        assert_eq!(extent(&whole), (8, 8));
        // In the middle of the second row's first cell.
        assert_eq!(*whole.get_pixel(11, 24 + 6), Rgb([200, 0, 0]));
        assert_eq!(together(&three[..2]).dimensions(), (2 * 30 + 4, 20));
    }

    #[test]
    fn rows_fill_the_sheet_left_to_right_with_their_text() {
        let red = picture(64, 64);
        let row = |lines: &[&str], caption: &str| Row {
            cells: vec![Cell {
                picture: Some(Cow::Borrowed(&red)),
                lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            }],
            caption: vec![caption.to_owned()],
        };
        let sheet = |caption| Sheet {
            title: vec!["a run".to_owned()],
            headings: vec!["after".to_owned()],
            rows: vec![row(&["0.5"], caption), row(&[], ""), row(&[], "")],
            abreast: 2,
        };
        let drawn = sheet("make it red").draw();
        let row_height = 256 + LINE + LINE + GAP;
        let top = MARGIN + LINE + GAP + LINE;
        assert_eq!(
            drawn.dimensions(),
            (
                2 * MARGIN + 2 * 256 + ABREAST_GAP,
                top + 2 * (row_height + GAP) + MARGIN
            )
        );
        let red_at = |x, y| *drawn.get_pixel(x, y) == Rgb([200, 0, 0]);
        assert!(red_at(MARGIN, top) && red_at(MARGIN + 256 + ABREAST_GAP, top));
        assert!(red_at(MARGIN, top + row_height + GAP));
        // Another instruction is another picture, and it is under the first row.
        let other = sheet("make it blue").draw();
        let differing = drawn
            .enumerate_pixels()
            .filter(|(x, y, pixel)| other.get_pixel(*x, *y) != *pixel);
        let rows: Vec<u32> = differing.map(|(_, y, _)| y).collect();
        let caption = top + 256 + 2 + LINE..top + row_height;
        assert!(!rows.is_empty() && rows.iter().all(|y| caption.contains(y)));
    }

    #[test]
    fn a_long_instruction_stays_within_its_lines() {
        let red = picture(64, 64);
        let sheet = |caption: String| Sheet {
            rows: vec![Row {
                cells: vec![Cell {
                    picture: Some(Cow::Borrowed(&red)),
                    lines: Vec::new(),
                }],
                caption: vec![caption],
            }],
            ..Sheet::default()
        };
        let long = sheet("red ".repeat(1000)).draw();
        let three_lines = sheet("red ".repeat(20)).draw();
        assert_eq!(long.dimensions(), three_lines.dimensions());
    }

    #[test]
    fn a_sheet_of_nothing_is_small() {
        let (width, height) = Sheet::default().draw().dimensions();
        assert!(width < 400 && height < 100);
    }
}
