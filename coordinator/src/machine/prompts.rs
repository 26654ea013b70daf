//! The order in which the dataset's pairs are drawn, and the ban list.

use std::collections::{BTreeMap, HashMap};

use retouch_dataset::Row;
use retouch_proto::Iteration;
use retouch_proto::seed::{self, Purpose};

/// Draws rows without replacement, pass after pass, each pass in its own seeded order.
///
/// The position alone is the state: the same position gives the same rows (A9).
pub struct Prompts {
    seed: u64,
    /// Pairs, so that a banned pair is skipped wherever it stands in the dataset.
    pair_of_row: Vec<u32>,
    position: u64,
    order: Option<(u64, Vec<usize>)>,
    banned: BTreeMap<u32, Iteration>,
}

impl Prompts {
    /// Starts at the beginning of the first pass.
    pub fn new(seed: u64, rows: &[Row]) -> Self {
        let mut pairs = HashMap::new();
        let pair = |row: &Row| {
            let next = pairs.len() as u32;
            *pairs
                .entry((row.image.clone(), row.prompt.clone()))
                .or_insert(next)
        };
        let pair_of_row = rows.iter().map(pair).collect();
        Self {
            seed,
            pair_of_row,
            position: 0,
            order: None,
            banned: BTreeMap::new(),
        }
    }

    /// How many rows were drawn or skipped so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes to where a recorded iteration began.
    pub fn go_to(&mut self, position: u64) {
        self.position = position;
    }

    /// The next row whose pair was not banned up to iteration `banned_until`; `None` if every
    /// pair is banned.
    pub fn draw(&mut self, banned_until: Iteration) -> Option<u32> {
        let rows = self.pair_of_row.len() as u64;
        // Any row that is not banned comes up within the rest of this pass and the whole next.
        for _ in 0..2 * rows {
            let row = self.row_at(self.position / rows, self.position % rows);
            self.position += 1;
            if !self.is_banned(row, banned_until) {
                return Some(row);
            }
        }
        None
    }

    fn row_at(&mut self, pass: u64, offset: u64) -> u32 {
        if self
            .order
            .as_ref()
            .is_none_or(|(cached, _)| *cached != pass)
        {
            let seed = seed::derive(self.seed, Purpose::PromptOrder, pass as u32, 0, 0, 0);
            self.order = Some((pass, seed::permutation(seed, self.pair_of_row.len())));
        }
        let (_, order) = self.order.as_ref().expect("set above");
        order[offset as usize] as u32
    }

    fn is_banned(&self, row: u32, until: Iteration) -> bool {
        let pair = self.pair_of_row[row as usize];
        self.banned.get(&pair).is_some_and(|at| *at <= until)
    }

    /// Bans the row's pair from iteration `at` on; tells whether it was not banned before.
    pub fn ban(&mut self, row: u32, at: Iteration) -> bool {
        let pair = self.pair_of_row[row as usize];
        let new = !self.banned.contains_key(&pair);
        self.banned.entry(pair).or_insert(at);
        new
    }

    /// Takes back the bans of iterations after this one.
    pub fn unban_after(&mut self, iteration: Iteration) {
        self.banned.retain(|_, at| *at <= iteration);
    }

    /// Pairs on the ban list.
    pub fn banned(&self) -> usize {
        self.banned.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn rows(count: usize) -> Vec<Row> {
        let row = |index| Row {
            prompt: format!("prompt {index}"),
            image: "a.png".into(),
            requirement: String::new(),
            target: None,
        };
        (0..count).map(row).collect()
    }

    const NEVER: Iteration = Iteration(u32::MAX);

    fn draws(prompts: &mut Prompts, count: usize) -> Vec<u32> {
        (0..count).map(|_| prompts.draw(NEVER).unwrap()).collect()
    }

    #[test]
    fn each_pass_has_every_row_once_in_its_own_order() {
        let mut prompts = Prompts::new(1, &rows(10));
        let first = draws(&mut prompts, 10);
        let second = draws(&mut prompts, 10);
        for pass in [&first, &second] {
            assert_eq!(pass.iter().collect::<BTreeSet<_>>().len(), 10);
        }
        assert_ne!(first, second);
    }

    #[test]
    fn position_alone_gives_the_same_rows() {
        let mut prompts = Prompts::new(1, &rows(7));
        let all = draws(&mut prompts, 20);
        prompts.go_to(9);
        assert_eq!(draws(&mut prompts, 11), all[9..]);
    }

    #[test]
    fn banned_pairs_are_skipped_from_their_iteration_on() {
        let mut duplicated = rows(3);
        duplicated.push(duplicated[1].clone());
        let mut prompts = Prompts::new(1, &duplicated);
        assert!(prompts.ban(1, Iteration(5)));
        assert!(!prompts.ban(3, Iteration(6)), "the same pair");
        let drawn: BTreeSet<u32> = (0..8)
            .map(|_| prompts.draw(Iteration(5)).unwrap())
            .collect();
        assert_eq!(drawn, [0, 2].into());
        let drawn: BTreeSet<u32> = (0..8)
            .map(|_| prompts.draw(Iteration(4)).unwrap())
            .collect();
        assert_eq!(drawn, [0, 1, 2, 3].into());
        prompts.unban_after(Iteration(4));
        assert_eq!(prompts.banned(), 0);
    }

    #[test]
    fn nothing_is_drawn_when_all_is_banned() {
        let mut prompts = Prompts::new(1, &rows(2));
        prompts.ban(0, Iteration(1));
        prompts.ban(1, Iteration(1));
        assert_eq!(prompts.draw(Iteration(1)), None);
        assert!(prompts.draw(Iteration(0)).is_some());
    }
}
