//! The arithmetic that each role does for one piece of its work, counted and not measured.
//!
//! Counted are matrix products, convolutions and attention, a multiply-add as two operations; norms, activations and
//! samplers are a small part beside them. Of memory traffic, only reading the weights is counted, which is the same
//! however many samples share it.

use std::fmt;

use serde::Serialize;

/// What an effort is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A sampled image.
    Image,
    /// A judged edit.
    Edit,
    /// A sample at a timestep, to be trained on.
    TrainingPair,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Image => "image",
            Self::Edit => "edit",
            Self::TrainingPair => "(sample, timestep) pair",
        })
    }
}

/// The arithmetic of one unit of work.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Effort {
    /// What it is for.
    pub unit: Unit,
    /// The parts, one after the other.
    pub lines: Vec<EffortLine>,
    /// Floating-point operations of all.
    pub flops: u64,
    /// Bytes of weights that are read from the device's memory.
    pub bytes: u64,
}

/// One part of an effort.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EffortLine {
    /// What it is for.
    pub what: String,
    /// How it comes about.
    pub arithmetic: String,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes of weights that are read, the part of one unit.
    pub bytes: u64,
}

impl Effort {
    pub(super) fn new(unit: Unit, lines: Vec<EffortLine>) -> Self {
        Self {
            unit,
            flops: lines.iter().map(|line| line.flops).sum(),
            bytes: lines.iter().map(|line| line.bytes).sum(),
            lines,
        }
    }
}
