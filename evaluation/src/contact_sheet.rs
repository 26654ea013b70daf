//! The contact sheet: held-out pairs as rows of source, before, after and, where it is known, what was wanted.

use image::RgbImage;

use crate::{
    outcome::Outcome,
    sheet::{Cell, Row, Sheet},
};

/// What stands over the columns; the last is absent if no pair's target is known.
pub const HEADINGS: [&str; 4] = ["source", "before", "after", "wanted"];

/// Lays out each outcome's pictures with its scores, its instruction and its task under `title`, in `abreast` columns.
pub fn contact_sheet<'a>(
    title: Vec<String>,
    outcomes: impl IntoIterator<Item = &'a Outcome>,
    abreast: u32,
) -> RgbImage {
    draw(title, HEADINGS, outcomes.into_iter().map(row), abreast)
}

fn row(outcome: &Outcome) -> Row<'_> {
    let pair = &outcome.pair;
    let task = Some(&pair.task).filter(|task| !task.is_empty() && **task != pair.prompt);
    Row {
        cells: outcome.cells(),
        caption: std::iter::once(&pair.prompt).chain(task).cloned().collect(),
    }
}

/// Draws rows of an outcome's cells, with as many of the headings as the longest row has cells.
pub(crate) fn draw<'a>(
    title: Vec<String>,
    headings: [&str; 4],
    rows: impl Iterator<Item = Row<'a>>,
    abreast: u32,
) -> RgbImage {
    let mut rows: Vec<Row<'_>> = rows.collect();
    let columns = rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    for row in &mut rows {
        row.cells.resize_with(columns, Cell::default);
    }
    let sheet = Sheet {
        title,
        headings: headings[..columns]
            .iter()
            .map(|&heading| heading.to_owned())
            .collect(),
        rows,
        abreast,
    };
    sheet.draw()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::outcome::tests::outcome;

    const RED: [u8; 3] = [255, 0, 0];
    const GREEN: [u8; 3] = [0, 255, 0];
    const BLUE: [u8; 3] = [0, 0, 255];
    const YELLOW: [u8; 3] = [255, 255, 0];

    fn coloured(wanted: Option<[u8; 3]>) -> Outcome {
        let mut row = outcome("add", 0.2, 0.4, false);
        let picture = |color| RgbImage::from_pixel(64, 64, Rgb(color));
        row.pair.sources = picture(RED).into();
        row.before.image = picture(GREEN);
        row.after.image = picture(BLUE);
        row.pair.target = wanted.map(picture);
        row
    }

    /// The colours of the pictures, each at its first pixel, row by row.
    fn colours(sheet: &RgbImage) -> Vec<[u8; 3]> {
        let mut found = Vec::new();
        for pixel in sheet.pixels() {
            if [RED, GREEN, BLUE, YELLOW].contains(&pixel.0) && !found.contains(&pixel.0) {
                found.push(pixel.0);
            }
        }
        found
    }

    #[test]
    fn a_row_has_source_before_after_and_what_was_wanted() {
        let sheet = |wanted| contact_sheet(Vec::new(), &[coloured(wanted)], 1);
        assert_eq!(colours(&sheet(None)), [RED, GREEN, BLUE]);
        assert_eq!(colours(&sheet(Some(YELLOW))), [RED, GREEN, BLUE, YELLOW]);
        assert!(sheet(None).width() < sheet(Some(YELLOW)).width());
    }

    #[test]
    fn scores_instruction_and_task_are_under_the_pictures() {
        let row = row(&coloured(None)).caption;
        assert_eq!(row, ["remove it", "add"]);
        let scores = |oracle| {
            super::row(&outcome("add", 0.2, 0.4, oracle))
                .cells
                .pop()
                .map(|cell| cell.lines)
        };
        assert_eq!(scores(false).unwrap(), ["judge 0.400 of 1"]);
        assert_eq!(
            scores(true).unwrap(),
            ["oracle 2.00 of 5", "judge 0.400 of 1"]
        );
    }
}
