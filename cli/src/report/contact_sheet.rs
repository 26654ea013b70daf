//! The contact sheet: held-out pairs as rows of source | before | after, several rows side by side.

use image::{Rgb, RgbImage, imageops};

const GAP: u32 = 4;
const GROUP_GAP: u32 = 16;
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
/// Small images are enlarged by whole factors until they are at least this wide, so that a person sees something.
const THUMBNAIL_WIDTH_MIN: u32 = 128;

/// One held-out pair as the sheet shows it.
pub(crate) struct Triptych<'a> {
    pub(crate) source: &'a RgbImage,
    pub(crate) before: &'a RgbImage,
    pub(crate) after: &'a RgbImage,
}

/// Lays `rows` out in `columns` columns of triptychs; all images are scaled to the first source's cell.
pub(crate) fn contact_sheet(rows: &[Triptych<'_>], columns: u32) -> RgbImage {
    let Some(first) = rows.first() else {
        return RgbImage::from_pixel(1, 1, BACKGROUND);
    };
    let factor = THUMBNAIL_WIDTH_MIN.div_ceil(first.source.width()).max(1);
    let (width, height) = (
        first.source.width() * factor,
        first.source.height() * factor,
    );
    let group_width = 3 * width + 2 * GAP;
    let lines = (rows.len() as u32).div_ceil(columns);
    let mut sheet = RgbImage::from_pixel(
        columns * group_width + (columns + 1) * GROUP_GAP,
        lines * (height + GAP) + GROUP_GAP,
        BACKGROUND,
    );
    for (index, row) in rows.iter().enumerate() {
        let index = index as u32;
        let left = GROUP_GAP + index % columns * (group_width + GROUP_GAP);
        let top = GROUP_GAP / 2 + index / columns * (height + GAP);
        for (place, picture) in [row.source, row.before, row.after].into_iter().enumerate() {
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

    #[test]
    fn rows_fill_the_columns_left_to_right() {
        let [red, green, blue] =
            [[255, 0, 0], [0, 255, 0], [0, 0, 255]].map(|c| RgbImage::from_pixel(64, 64, Rgb(c)));
        let row = || Triptych {
            source: &red,
            before: &green,
            after: &blue,
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
