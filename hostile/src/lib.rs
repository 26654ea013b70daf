//! Bytes as a broken disk or a stranger would send them: what tests throw at parsers.

use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};

/// Inputs for each call of [`bombard`]: a second or two for a parser of a few kilobytes.
const CASES: u32 = 1_500;
/// Changes to one input.
const EDITS_MAX: usize = 4;
/// Numbers at which parsers stumble.
const NUMBERS: [u64; 8] = [
    0,
    1,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// One change.
#[derive(Clone, Debug)]
enum Edit {
    Flip(Index, u8),
    Number(Index, u64),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        match self {
            _ if len == 0 => {}
            Self::Flip(at, mask) => bytes[at.index(len)] ^= mask,
            Self::Number(at, number) => {
                let at = at.index(len);
                let end = len.min(at + 8);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            Self::Cut(at) => bytes.truncate(at.index(len)),
            Self::Insert(at, more) => {
                let at = at.index(len);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = at.index(len);
                bytes.drain(at..len.min(at + usize::from(*count)));
            }
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), 1_u8..).prop_map(|(at, mask)| Edit::Flip(at, mask)),
        2 => (at(), proptest::sample::select(NUMBERS.to_vec()))
            .prop_map(|(at, number)| Edit::Number(at, number)),
        1 => at().prop_map(Edit::Cut),
        1 => (at(), vec(any::<u8>(), 1..40)).prop_map(|(at, more)| Edit::Insert(at, more)),
        1 => (at(), 1_u8..).prop_map(|(at, count)| Edit::Remove(at, count)),
    ]
}

fn input(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let edited = vec(edit(), 1..=EDITS_MAX).prop_map(move |edits| {
        let mut bytes = valid.clone();
        edits.iter().for_each(|edit| edit.apply(&mut bytes));
        bytes
    });
    prop_oneof![1 => vec(any::<u8>(), 0..300), 6 => edited]
}

/// Gives `parse` many versions of valid bytes with a few changes, and some that are nothing at all,
/// the same at every call. It may refuse or take them.
///
/// # Panics
/// If `parse` panics for one: with the smallest such input that was found.
pub fn bombard(valid: &[u8], parse: impl Fn(&[u8])) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let result = TestRunner::new_with_rng(config, rng).run(&input(valid.to_vec()), |bytes| {
        parse(&bytes);
        Ok::<(), TestCaseError>(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashSet, panic::catch_unwind};

    use super::*;

    #[test]
    fn inputs_differ_and_many_are_nearly_valid() {
        let valid = b"retouch".repeat(20);
        let seen = RefCell::new(HashSet::new());
        bombard(&valid, |bytes| {
            let _ = seen.borrow_mut().insert(bytes.to_vec());
        });
        let seen = seen.into_inner();
        assert!(seen.len() > CASES as usize / 2, "{}", seen.len());
        let near = seen.iter().filter(|bytes| bytes.starts_with(b"retouchre"));
        assert!(near.count() > CASES as usize / 4);
    }

    #[test]
    fn a_parser_that_trusts_a_length_is_caught() {
        let parse = |bytes: &[u8]| {
            if let Some(len) = bytes.first() {
                let _ = bytes[1..][..usize::from(*len)].to_vec();
            }
        };
        assert!(catch_unwind(|| bombard(&[3, 1, 2, 3], parse)).is_err());
    }
}
