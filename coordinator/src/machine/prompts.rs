//! The order in which the dataset's pairs are drawn, and the ban list.

use std::collections::{BTreeMap, HashMap, HashSet};

use retouch_dataset::Row;
use retouch_proto::Iteration;
use retouch_proto::seed::{self, Purpose};

use super::open::OpenIterations;
use super::record::Record;

/// Draws rows without replacement, pass after pass, each pass in its own seeded order.
///
/// The position alone says what comes next: the same position gives the same rows (A9).
pub(super) struct Prompts {
    rows: Vec<Row>,
    /// Pairs, so that a banned pair is skipped wherever it stands in the dataset.
    pair_of_row: Vec<u32>,
    seed: u64,
    /// How many iterations ahead of a ban rows may be drawn.
    staleness_max: u32,
    /// Rows drawn or skipped so far.
    position: u64,
    /// The present pass and its order, since making it is a permutation of the whole dataset.
    order: Option<(u64, Vec<usize>)>,
    /// Pairs that are not drawn any more, with the iteration that banned them: a rewind lifts later bans.
    banned: BTreeMap<u32, Iteration>,
    /// Where each iteration after the checkpoint began, to draw the same rows again after a rewind.
    began: BTreeMap<Iteration, u64>,
}

impl Prompts {
    /// Starts at the beginning of the first pass.
    pub(super) fn new(seed: u64, staleness_max: u32, rows: Vec<Row>) -> Self {
        let mut pairs = HashMap::new();
        let pair = |row: &Row| {
            let next = pairs.len() as u32;
            *pairs
                .entry((row.images.clone(), row.prompt.clone()))
                .or_insert(next)
        };
        let pair_of_row = rows.iter().map(pair).collect();
        Self {
            rows,
            pair_of_row,
            seed,
            staleness_max,
            position: 0,
            order: None,
            banned: BTreeMap::new(),
            began: BTreeMap::new(),
        }
    }

    /// Takes over what the record says, and continues after everything that was drawn.
    pub(super) fn restore(&mut self, record: &Record, open: &OpenIterations) {
        self.began = record.positions.iter().copied().collect();
        for (row, at) in &record.banned {
            self.ban(*row, *at);
        }
        // Drawn once more, since how many banned rows were skipped on the way is recorded nowhere in old records.
        if let Some(last) = open.last() {
            self.position = self.began(last.iteration);
            for _ in last.groups().iter().filter(|group| group.drawn.round == 0) {
                self.draw(last.iteration);
            }
        } else if let Some(position) = self.began.get(&record.committed.iteration.next()) {
            self.position = *position;
        }
        // In old records an iteration may have drawn replacements after a newer one was opened.
        let drawn = open.groups().map(|group| group.drawn.position);
        let drawn_to = drawn.chain([record.drawn_to]).max().unwrap_or(0);
        self.position = self.position.max(drawn_to);
    }

    /// A row of the dataset.
    pub(super) fn row(&self, row: u32) -> &Row {
        &self.rows[row as usize]
    }

    /// How many rows were drawn or skipped so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Draws the first row of an iteration and notes where it began; `None` if every pair is banned.
    pub(super) fn begin(&mut self, iteration: Iteration) -> Option<(u64, u32)> {
        let position = self.position;
        let Some(row) = self.draw(iteration) else {
            // Rows that were looked at in vain are not used up.
            self.position = position;
            return None;
        };
        self.began.insert(iteration, position);
        Some((position, row))
    }

    /// The next row for an iteration; `None` if every pair is banned.
    pub(super) fn draw(&mut self, iteration: Iteration) -> Option<u32> {
        let rows = self.pair_of_row.len() as u64;
        let until = self.banned_until(iteration);
        // Any row that is not banned comes up within the rest of this pass and the whole next.
        for _ in 0..2 * rows {
            let row = self.row_at(self.position / rows, self.position % rows);
            self.position += 1;
            if !self.is_banned(row, until) {
                return Some(row);
            }
        }
        None
    }

    /// Up to `count` rows in place of those that were left out, of pairs that the iteration has not `drawn` yet.
    ///
    /// Each iteration has an order of its own for them: which iteration needs some first depends on timing, and must
    /// not shift what others draw (A9).
    pub(super) fn replacements(
        &self,
        iteration: Iteration,
        drawn: impl Iterator<Item = u32>,
        count: usize,
    ) -> Vec<u32> {
        if count == 0 {
            return Vec::new();
        }
        let until = self.banned_until(iteration);
        let pair = |row: u32| self.pair_of_row[row as usize];
        let mut taken: HashSet<u32> = drawn.map(pair).collect();
        let seed = seed::derive(self.seed, Purpose::Replacements, iteration.0, 0, 0, 0);
        let order = seed::permutation(seed, self.pair_of_row.len());
        let rows = order.into_iter().map(|row| row as u32);
        let new = rows.filter(|row| !self.is_banned(*row, until) && taken.insert(pair(*row)));
        new.take(count).collect()
    }

    /// Bans of later iterations do not count for an iteration's draws: with stale samples allowed, it may be
    /// drawn before they are known, and what is drawn must not depend on when (A9).
    fn banned_until(&self, iteration: Iteration) -> Iteration {
        Iteration(iteration.0.saturating_sub(1 + self.staleness_max))
    }

    /// An iteration is committed: the next one begins here, unless it is open already and began elsewhere.
    pub(super) fn committed(&mut self, iteration: Iteration) {
        self.began.entry(iteration.next()).or_insert(self.position);
    }

    /// A checkpoint is durable: no rewind goes back beyond it.
    pub(super) fn checkpointed(&mut self, iteration: Iteration) {
        self.began.retain(|began, _| *began > iteration);
    }

    /// Takes back everything after this iteration: its bans, and its draws, which come again.
    pub(super) fn rewind(&mut self, to: Iteration) {
        self.unban_after(to);
        self.position = self.began(to.next());
        self.began.retain(|iteration, _| *iteration <= to.next());
    }

    fn began(&self, iteration: Iteration) -> u64 {
        self.began.get(&iteration).copied().unwrap_or(0)
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

    /// Bans the row's pair from iteration `at` on; `false` if it was banned already, as sets do it.
    pub(super) fn ban(&mut self, row: u32, at: Iteration) -> bool {
        let pair = self.pair_of_row[row as usize];
        let new = !self.banned.contains_key(&pair);
        self.banned.entry(pair).or_insert(at);
        new
    }

    fn unban_after(&mut self, iteration: Iteration) {
        self.banned.retain(|_, at| *at <= iteration);
    }

    /// Pairs on the ban list.
    pub(super) fn banned(&self) -> usize {
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
            images: vec!["a.png".into()],
            requirement: String::new(),
            target: None,
        };
        (0..count).map(row).collect()
    }

    fn prompts(rows: Vec<Row>) -> Prompts {
        Prompts::new(1, 0, rows)
    }

    fn draws(prompts: &mut Prompts, count: usize, iteration: u32) -> Vec<u32> {
        let draw = |_| prompts.draw(Iteration(iteration)).unwrap();
        (0..count).map(draw).collect()
    }

    #[test]
    fn each_pass_has_every_row_once_in_its_own_order() {
        let mut prompts = prompts(rows(10));
        let first = draws(&mut prompts, 10, 1);
        let second = draws(&mut prompts, 10, 1);
        for pass in [&first, &second] {
            assert_eq!(pass.iter().collect::<BTreeSet<_>>().len(), 10);
        }
        assert_ne!(first, second);
    }

    #[test]
    fn position_alone_gives_the_same_rows() {
        let mut prompts = prompts(rows(7));
        let all = draws(&mut prompts, 20, 1);
        prompts.position = 9;
        assert_eq!(draws(&mut prompts, 11, 1), all[9..]);
    }

    #[test]
    fn banned_pairs_are_skipped_from_their_iteration_on() {
        let mut duplicated = rows(3);
        duplicated.push(duplicated[1].clone());
        let mut prompts = prompts(duplicated);
        assert!(prompts.ban(1, Iteration(5)));
        assert!(!prompts.ban(3, Iteration(6)), "the same pair");
        let drawn = |prompts: &mut Prompts, iteration| -> BTreeSet<u32> {
            draws(prompts, 8, iteration).into_iter().collect()
        };
        assert_eq!(drawn(&mut prompts, 6), [0, 2].into());
        assert_eq!(drawn(&mut prompts, 5), [0, 1, 2, 3].into());
        prompts.unban_after(Iteration(4));
        assert_eq!(prompts.banned(), 0);
    }

    #[test]
    fn replacements_are_new_pairs_in_an_order_of_the_iterations_own() {
        let mut prompts = prompts(rows(5));
        let replaced = |prompts: &Prompts, iteration, drawn: &[u32], count| {
            prompts.replacements(Iteration(iteration), drawn.iter().copied(), count)
        };
        let [first, second] = [1, 2].map(|iteration| replaced(&prompts, iteration, &[2], 9));
        for rows in [&first, &second] {
            assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), 4);
            assert!(!rows.contains(&2), "the iteration has its pair");
        }
        assert_ne!(first, second);
        // In one round or in two.
        assert_eq!(first[..2], replaced(&prompts, 1, &[2], 2));
        assert_eq!(
            first[2..],
            replaced(&prompts, 1, &[2, first[0], first[1]], 9)
        );
        prompts.ban(first[0], Iteration(1));
        let next = replaced(&prompts, 2, &[2], 9);
        assert!(!next.contains(&first[0]), "banned");
        assert_eq!(
            prompts.position(),
            0,
            "what others draw does not depend on them"
        );
    }

    #[test]
    fn nothing_is_drawn_when_all_is_banned() {
        let mut prompts = prompts(rows(2));
        prompts.ban(0, Iteration(1));
        prompts.ban(1, Iteration(1));
        assert_eq!(prompts.begin(Iteration(2)), None);
        assert_eq!(prompts.position(), 0, "nothing was used up");
        assert!(prompts.begin(Iteration(1)).is_some());
    }
}
