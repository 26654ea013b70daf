//! What evaluating one pair gives.

use std::borrow::Cow;

use image::RgbImage;

use crate::{
    pairs::Pair,
    sheet::Cell,
    verdict::{ORACLE_MAX, Verdict},
};

/// One edit and its scores.
pub struct Scored {
    /// The edit.
    pub image: RgbImage,
    /// The weighted reward, 0..1.
    pub judge: f64,
    /// The comparison with the known target, where there is one.
    pub oracle: Option<Verdict>,
}

impl Scored {
    /// Its scores in words, one a line.
    pub fn lines(&self) -> Vec<String> {
        let oracle = self.oracle;
        let oracle = oracle.map(|oracle| format!("oracle {:.2} of {ORACLE_MAX}", oracle.score()));
        let judge = format!("judge {:.3} of 1", self.judge);
        oracle.into_iter().chain([judge]).collect()
    }
}

/// A pair edited by the base and by the adapter, from the same initial noise.
pub struct Outcome {
    /// The pair.
    pub pair: Pair,
    /// The base's edit.
    pub before: Scored,
    /// The adapter's.
    pub after: Scored,
}

impl Outcome {
    /// Sources, before, after and, where it is known, what was wanted; each with what is said of it.
    pub fn cells(&self) -> Vec<Cell<'_>> {
        let wanted = self.pair.target.iter();
        let pictures = [
            (self.pair.shown_sources(), Vec::new()),
            (Cow::Borrowed(&self.before.image), self.before.lines()),
            (Cow::Borrowed(&self.after.image), self.after.lines()),
        ];
        let pictures = pictures
            .into_iter()
            .chain(wanted.map(|wanted| (Cow::Borrowed(wanted), Vec::new())));
        let cell = |(picture, lines)| Cell {
            picture: Some(picture),
            lines,
        };
        pictures.map(cell).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// With these rewards, and five times as much by the oracle if there is one.
    pub(crate) fn outcome(task: &str, before: f64, after: f64, oracle: bool) -> Outcome {
        let scored = |judge: f64| Scored {
            image: RgbImage::new(1, 1),
            judge,
            oracle: oracle.then_some(Verdict {
                changed: judge,
                kept: None,
                background: Some(judge.max(0.5)),
            }),
        };
        Outcome {
            pair: Pair {
                prompt: "remove it".to_owned(),
                requirement: String::new(),
                task: task.to_owned(),
                sources: RgbImage::new(1, 1).into(),
                target: None,
                oracle: None,
            },
            before: scored(before),
            after: scored(after),
        }
    }

    #[test]
    fn the_oracle_comes_first_where_there_is_one() {
        let after = |oracle| outcome("add", 0.2, 0.4, oracle).after.lines();
        assert_eq!(after(true), ["oracle 2.00 of 5", "judge 0.400 of 1"]);
        assert_eq!(after(false), ["judge 0.400 of 1"]);
    }
}
