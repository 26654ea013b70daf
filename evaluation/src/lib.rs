//! What an adapter gains over its base, measured on pairs that no run has trained on.
//!
//! In reading order: [`pairs`] are images with instructions, [`PairEditor`] edits them, [`Evaluator`] each before and after, from the same
//! noise, and has the judge score both, which gives an [`Outcome`]; [`HeldOut`] sums them up, with intervals from
//! [`bootstrap`], and [`contact_sheet()`] shows them, drawn as any [`sheet`] of pictures with text is;
//! [`blind()`] hides which edit is which, for people to compare.
//!
//! Where a pair's target is known, its [`Oracle`] gives a [`Verdict`] on the edits besides. Nothing else may use that: runs
//! learn from judges alone.

mod blind;
pub mod bootstrap;
mod contact_sheet;
mod evaluator;
mod outcome;
mod pair_editor;
pub mod pairs;
pub mod sheet;
mod summary;
mod verdict;

pub use blind::{Hidden, Side, blind, blind_sheet};
pub use contact_sheet::{HEADINGS, contact_sheet};
pub use evaluator::{EvaluationError, Evaluator};
pub use outcome::{Outcome, Scored};
pub use pair_editor::PairEditor;
pub use pairs::{Oracle, Pair};
pub use summary::{Comparison, HeldOut, Parts};
pub use verdict::{ORACLE_MAX, Verdict};
