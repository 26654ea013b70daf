//! A group's sheet: the source and every candidate with what the judges said of it.

use std::borrow::Cow;

use anyhow::Context;
use image::RgbImage;
use retouch_evaluation::sheet::{Cell, Row, Sheet};
use retouch_proto::{
    saved_group::{GroupPictures, SavedCandidate, SavedGroup},
    task::TermScore,
};

const COLUMNS: usize = 4;

/// Draws it from encoded pictures.
///
/// # Errors
/// If a picture can't be read.
pub(crate) fn group_sheet<B: AsRef<[u8]>>(
    group: &SavedGroup,
    pictures: &GroupPictures<B>,
) -> anyhow::Result<RgbImage> {
    let sources = pictures.sources.iter();
    let sources = sources.map(|png| decode(png).context("the source image can't be read"));
    let sources: Vec<RgbImage> = sources.collect::<Result<_, _>>()?;
    let candidates = pictures.candidates.iter().enumerate().map(|(sample, png)| {
        decode(png).with_context(|| format!("the picture of candidate {sample} can't be read"))
    });
    let candidates: Vec<RgbImage> = candidates.collect::<Result<_, _>>()?;
    let source_cells = sources.iter().map(|source| Cell {
        picture: Some(Cow::Borrowed(source)),
        lines: vec!["source".to_owned()],
    });
    let described = group.candidates.iter().zip(&candidates).enumerate();
    let described = described.map(|(sample, (candidate, picture))| Cell {
        picture: Some(Cow::Borrowed(picture)),
        lines: lines(sample, candidate),
    });
    let mut cells = source_cells.chain(described).peekable();
    let mut rows = Vec::new();
    while cells.peek().is_some() {
        rows.push(Row {
            cells: cells.by_ref().take(COLUMNS).collect(),
            caption: Vec::new(),
        });
    }
    let mut title = vec![format!("group {}: {}", group.group, group.prompt)];
    title.extend(Some(group.requirement.clone()).filter(|text| !text.is_empty()));
    let sheet = Sheet {
        title,
        rows,
        ..Sheet::default()
    };
    Ok(sheet.draw())
}

fn decode(png: &impl AsRef<[u8]>) -> image::ImageResult<RgbImage> {
    Ok(image::load_from_memory(png.as_ref())?.into_rgb8())
}

fn lines(sample: usize, candidate: &SavedCandidate) -> Vec<String> {
    let advantage = candidate.advantage;
    let advantage = advantage.map_or_else(String::new, |a| format!(", advantage {a:+.2}"));
    let reward = format!("{sample}: reward {:.3}{advantage}", candidate.reward);
    let terms = candidate.terms.iter().flat_map(judged);
    std::iter::once(reward).chain(terms).collect()
}

fn judged(term: &TermScore) -> [String; 2] {
    let (name, value, entropy) = (&term.name, term.value, term.entropy);
    // Without the zero before the point, so that six of them fit under a picture.
    let digit = |p: &f64| format!("{p:.2}").trim_start_matches('0').to_owned();
    let digits: Vec<String> = term.probabilities.iter().map(digit).collect();
    [
        format!("{name} {value:.3}, entropy {entropy:.2}"),
        format!("p0-5 {}", digits.join(" ")),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb};
    use retouch_proto::{GroupId, Iteration, saved_group::candidate_file};

    use super::*;

    fn png(colour: [u8; 3]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let picture = RgbImage::from_pixel(8, 8, Rgb(colour));
        picture
            .write_to(&mut bytes, ImageFormat::Png)
            .expect("a PNG");
        bytes.into_inner()
    }

    fn candidate(sample: usize) -> SavedCandidate {
        SavedCandidate {
            picture: candidate_file(sample),
            reward: 0.5,
            advantage: (sample == 0).then_some(-0.25),
            terms: vec![TermScore {
                name: "edit".into(),
                value: 0.5,
                probabilities: [0.0, 0.1, 0.2, 0.3, 0.4, 1.0],
                entropy: 1.25,
            }],
        }
    }

    #[test]
    fn every_candidate_has_reward_advantage_and_digits() {
        let expected = [
            "0: reward 0.500, advantage -0.25",
            "edit 0.500, entropy 1.25",
            "p0-5 .00 .10 .20 .30 .40 1.00",
        ];
        assert_eq!(lines(0, &candidate(0)), expected);
        assert_eq!(lines(1, &candidate(1))[0], "1: reward 0.500");
    }

    #[test]
    fn the_sheet_has_the_source_and_every_candidate() {
        let iteration = Iteration(3);
        let group = SavedGroup {
            group: GroupId {
                iteration,
                index: 7,
            },
            prompt: "make it red".into(),
            requirement: String::new(),
            candidates: (0..5).map(candidate).collect(),
        };
        let colours = [1, 2, 3, 4, 5].map(|shade| [250, 40 * shade, 0]);
        let mut pictures = GroupPictures {
            sources: vec![png([0, 0, 250])],
            candidates: colours.map(png).into(),
        };
        let sheet = group_sheet(&group, &pictures).expect("a sheet");
        for colour in colours.into_iter().chain([[0, 0, 250]]) {
            assert!(sheet.pixels().any(|pixel| pixel.0 == colour), "{colour:?}");
        }
        pictures.candidates[4] = b"no picture".to_vec();
        let error = group_sheet(&group, &pictures).unwrap_err().to_string();
        assert!(error.contains("candidate 4"), "{error}");
    }
}
