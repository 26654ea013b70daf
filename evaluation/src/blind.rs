//! Edits before and after for people to compare, who must not know which is which.

use image::RgbImage;
use rand::RngExt;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

use crate::{
    contact_sheet::draw,
    outcome::{Outcome, Scored},
    sheet::Row,
};

/// One of the two edits of a pair, by where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// On the left.
    A,
    /// On the right.
    B,
}

/// What a compared pair hides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hidden {
    /// Its number on the sheet, from 1.
    pub number: usize,
    /// The held-out pair, counted from 0.
    pub pair: usize,
    /// The instruction.
    pub prompt: String,
    /// Where the adapter's edit stands; the base's is on the other side.
    pub after: Side,
    /// What the judge says before and after, 0..1.
    pub judge: [f64; 2],
    /// What the oracle says before and after, 0..5, where targets are known.
    pub oracle: Option<[f64; 2]>,
}

/// Draws `count` of the outcomes (all, where there are fewer) and the sides of their edits; `seed` decides.
pub fn blind(outcomes: &[Outcome], count: usize, seed: u64) -> Vec<Hidden> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let chosen = index::sample(&mut rng, outcomes.len(), count.min(outcomes.len()));
    let mut hide = |(number, pair): (usize, usize)| {
        let Outcome {
            pair: held_out,
            before,
            after,
        } = &outcomes[pair];
        let oracle = |scored: &Scored| scored.oracle.map(|verdict| verdict.score());
        Hidden {
            number: number + 1,
            pair,
            prompt: held_out.prompt.clone(),
            after: if rng.random_bool(0.5) {
                Side::A
            } else {
                Side::B
            },
            judge: [before.judge, after.judge],
            oracle: oracle(before).zip(oracle(after)).map(<[f64; 2]>::from),
        }
    };
    chosen.into_iter().enumerate().map(&mut hide).collect()
}

/// The sheet that is shown to people: source, A, B and, where it is known, what was wanted, without scores.
pub fn blind_sheet(outcomes: &[Outcome], hidden: &[Hidden], abreast: u32) -> RgbImage {
    let rows = hidden
        .iter()
        .map(|hidden| row(&outcomes[hidden.pair], hidden));
    let title = vec!["which edit is better, A or B?".to_owned()];
    draw(title, ["source", "A", "B", "wanted"], rows, abreast)
}

fn row<'a>(outcome: &'a Outcome, hidden: &Hidden) -> Row<'a> {
    let mut cells = outcome.cells();
    cells.iter_mut().for_each(|cell| cell.lines.clear());
    if hidden.after == Side::A {
        cells.swap(1, 2);
    }
    Row {
        cells,
        caption: vec![format!("{}. {}", hidden.number, outcome.pair.prompt)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::tests::outcome;
    use crate::sheet::Cell;

    fn outcomes() -> Vec<Outcome> {
        (0..40).map(|_| outcome("add", 0.2, 0.4, true)).collect()
    }

    #[test]
    fn the_seed_decides_which_pairs_are_shown_and_where() {
        let outcomes = outcomes();
        let drawn = blind(&outcomes, 24, 3);
        assert_eq!(drawn, blind(&outcomes, 24, 3));
        assert_ne!(drawn, blind(&outcomes, 24, 4));
        assert_eq!(blind(&outcomes[..5], 24, 3).len(), 5);
        let mut pairs: Vec<usize> = drawn.iter().map(|hidden| hidden.pair).collect();
        pairs.sort_unstable();
        pairs.dedup();
        assert_eq!(pairs.len(), 24);
        let left = drawn
            .iter()
            .filter(|hidden| hidden.after == Side::A)
            .count();
        assert!((4..=20).contains(&left), "{left} of 24 on the left");
    }

    #[test]
    fn the_sheet_has_each_edit_on_its_side() {
        let mut outcomes = outcomes();
        let picture = |grey| RgbImage::from_pixel(64, 64, image::Rgb([grey; 3]));
        outcomes[0].before.image = picture(10);
        outcomes[0].after.image = picture(20);
        for (after, greys) in [(Side::A, [20, 10]), (Side::B, [10, 20])] {
            let mut hidden = blind(&outcomes[..1], 1, 0);
            hidden[0].after = after;
            let row = row(&outcomes[0], &hidden[0]);
            let grey =
                |cell: &Cell<'_>| cell.picture.as_ref().expect("a picture").get_pixel(0, 0).0[0];
            assert_eq!([grey(&row.cells[1]), grey(&row.cells[2])], greys);
        }
    }
}
