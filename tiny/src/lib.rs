//! The toy world on which the whole of Retouch is shown to learn.
//!
//! A [`Scene`] is a plain background with a few coloured shapes. An instruction is one of the
//! eight task kinds of the paper that a small image can carry; what it asks for is known exactly,
//! so an edit can be scored against its target ([`oracle`]). Nothing but evaluation may use that
//! score: the runs themselves learn from the judge alone.
//!
//! In reading order: [`palette`] and [`scene`] draw, [`edit`] says what can be asked for,
//! [`generate`] makes cases from a seed, [`dataset`] writes them in the Edit-R1 format,
//! [`oracle`] scores, and [`mistakes`] makes plausible wrong edits, for the base to make and for the judge to learn
//! from. [`tokenizer`] has the world's words, [`editor`] and [`judge`] make the models, and [`train`] teaches them;
//! [`qwen_editor`] is an editor of another architecture, which is never trained.

pub mod dataset;
pub mod edit;
pub mod editor;
pub mod generate;
pub mod judge;
pub mod mistakes;
pub mod oracle;
mod outline;
pub mod palette;
pub mod qwen_editor;
pub mod scene;
pub mod tokenizer;
pub mod train;

pub use dataset::{Dataset, Targets};
pub use edit::{Case, Edit, TaskKind};
pub use palette::{Background, Color};
pub use scene::{Cell, Object, Scene, Shape, Size, Style};
