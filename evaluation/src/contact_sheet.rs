//! The contact sheet: held-out pairs as rows of source | before | after, several rows side by side.

use image::{Rgb, RgbImage, imageops};

use crate::outcome::Outcome;

const GAP: u32 = 4;
const GROUP_GAP: u32 = 16;
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
/// Small images are enlarged by whole factors until they are at least this wide, so that a person sees something.
const THUMBNAIL_WIDTH_MIN: u32 = 128;

/// Lays out source, before and after of each outcome in `columns` columns; all images are scaled to the first source's
/// cell.
pub fn contact_sheet(outcomes: &[Outcome], columns: u32) -> RgbImage {
    let Some(first) = outcomes.first() else {
        return RgbImage::from_pixel(1, 1, BACKGROUND);
    };
    let (width, height) = first.pair.sources.last().dimensions();
    let factor = THUMBNAIL_WIDTH_MIN.div_ceil(width).max(1);
    let (width, height) = (width * factor, height * factor);
    let group_width = 3 * width + 2 * GAP;
    let lines = (outcomes.len() as u32).div_ceil(columns);
    let mut sheet = RgbImage::from_pixel(
        columns * group_width + (columns + 1) * GROUP_GAP,
        lines * (height + GAP) + GROUP_GAP,
        BACKGROUND,
    );
    for (index, outcome) in outcomes.iter().enumerate() {
        let index = index as u32;
        let left = GROUP_GAP + index % columns * (group_width + GROUP_GAP);
        let top = GROUP_GAP / 2 + index / columns * (height + GAP);
        let Outcome {
            pair,
            before,
            after,
        } = outcome;
        let pictures = [pair.sources.last(), &before.image, &after.image];
        for (place, picture) in pictures.into_iter().enumerate() {
            let scaled = imageops::resize(picture, width, height, imageops::FilterType::Nearest);
            let x = left + place as u32 * (width + GAP);
            imageops::replace(&mut sheet, &scaled, i64::from(x), i64::from(top));
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::tests::outcome;

    #[test]
    fn rows_fill_the_columns_left_to_right() {
        let row = || {
            let mut row = outcome("add", 0.2, 0.4, false);
            let picture = |color| RgbImage::from_pixel(64, 64, Rgb(color));
            row.pair.sources = picture([255, 0, 0]).into();
            row.before.image = picture([0, 255, 0]);
            row.after.image = picture([0, 0, 255]);
            row
        };
        let sheet = contact_sheet(&[row(), row(), row()], 2);
        assert_eq!(sheet.dimensions(), (2 * (3 * 128 + 8) + 48, 2 * 132 + 16));
        assert_eq!(*sheet.get_pixel(GROUP_GAP, GROUP_GAP), Rgb([255, 0, 0]));
        assert_eq!(
            *sheet.get_pixel(GROUP_GAP + 132, GROUP_GAP),
            Rgb([0, 255, 0])
        );
        assert_eq!(
            *sheet.get_pixel(2 * GROUP_GAP + 392 + 264, GROUP_GAP),
            Rgb([0, 0, 255])
        );
    }
}
