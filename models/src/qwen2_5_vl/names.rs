//! The names of Qwen2.5-VL's tensors.

use crate::weights::{Names, Weights};

/// The names that published checkpoints and `save_pretrained` have: `visual.*`, `model.*`, `lm_head.weight`.
pub(super) const PUBLISHED: Names = Names {
    prefix: "",
    rename: &[
        ("language_model", "model"),
        ("merger.mlp.fc1", "merger.mlp.0"),
        ("merger.mlp.fc2", "merger.mlp.2"),
    ],
    ignored: &["rotary_emb.inv_freq", "rotary_pos_emb.inv_freq"],
};

/// The names of the module in newer transformers: `model.visual.*`, `model.language_model.*`, `lm_head.weight`.
const NESTED: Names = Names {
    rename: &[
        ("visual", "model.visual"),
        ("language_model", "model.language_model"),
        ("merger.mlp.fc1", "merger.mlp.0"),
        ("merger.mlp.fc2", "merger.mlp.2"),
    ],
    ..PUBLISHED
};

/// The names of the vision tower's own checkpoint.
const VISION: Names = Names {
    rename: &[
        ("merger.mlp.fc1", "merger.mlp.0"),
        ("merger.mlp.fc2", "merger.mlp.2"),
    ],
    ..PUBLISHED
};

/// The whole model's names in published files.
pub(super) fn published(tied: bool) -> Names {
    with_ties(PUBLISHED, tied)
}

/// The whole model's names in this file.
pub(super) fn of_model(weights: &Weights, tied: bool) -> Names {
    match has_prefix(weights, "model.visual.") {
        true => with_ties(NESTED, tied),
        false => published(tied),
    }
}

/// With tied embeddings, a copy in the output layer is passed over.
fn with_ties(names: Names, tied: bool) -> Names {
    if !tied {
        return names;
    }
    Names {
        ignored: &[
            "rotary_emb.inv_freq",
            "rotary_pos_emb.inv_freq",
            "lm_head.weight",
        ],
        ..names
    }
}

/// The vision tower's names in this file, which may be its own or a whole model's.
pub(super) fn of_vision(weights: &Weights) -> Names {
    let prefix = ["model.visual", "visual"]
        .into_iter()
        .find(|prefix| has_prefix(weights, &format!("{prefix}.")));
    Names {
        prefix: prefix.unwrap_or(""),
        ..VISION
    }
}

fn has_prefix(weights: &Weights, prefix: &str) -> bool {
    weights.names().any(|name| name.starts_with(prefix))
}
