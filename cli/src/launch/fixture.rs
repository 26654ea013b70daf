//! Cards, and a run on them, for tests of what fits where.

use retouch_models::device::cards::Card;
use retouch_proto::{
    RunConfig,
    config::{Preset, preset},
};

pub(super) fn card(index: u8, total_bytes: u64) -> Card {
    Card {
        index,
        name: "a card".to_owned(),
        total_bytes,
        compute_capability: [9, 0],
        uuid: String::new(),
    }
}

/// The small models, with one learner.
pub(super) fn small_run() -> RunConfig {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/tiny");
    let mut config = preset(Preset::Tiny);
    config.model.path = format!("{assets}/editor");
    config.reward.terms[0].path = format!("{assets}/judge");
    config.learner.ranks = 1;
    config
}
