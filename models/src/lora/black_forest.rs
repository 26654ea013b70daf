//! FLUX's layers as Black Forest Labs' code and XLabs' adapters name them, and as diffusers does.
//!
//! The original fuses layers that read the same input. The adapter of a fused layer is exactly one for each of its parts:
//! they share A, and each has its own rows of B.

use std::ops::Range;

/// Queries, keys and values.
const QKV: usize = 3;

/// A layer of the original's blocks, and the layers of diffusers' that it is made of.
type Row = (&'static str, &'static [&'static str]);

const DOUBLE: [Row; 14] = [
    ("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    (
        "txt_attn.qkv",
        &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    ),
    ("img_attn.proj", &["attn.to_out.0"]),
    ("txt_attn.proj", &["attn.to_add_out"]),
    ("img_mlp.0", &["ff.net.0.proj"]),
    ("img_mlp.2", &["ff.net.2"]),
    ("txt_mlp.0", &["ff_context.net.0.proj"]),
    ("txt_mlp.2", &["ff_context.net.2"]),
    ("img_mod.lin", &["norm1.linear"]),
    ("txt_mod.lin", &["norm1_context.linear"]),
    (
        "processor.qkv_lora1",
        &["attn.to_q", "attn.to_k", "attn.to_v"],
    ),
    (
        "processor.qkv_lora2",
        &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    ),
    ("processor.proj_lora1", &["attn.to_out.0"]),
    ("processor.proj_lora2", &["attn.to_add_out"]),
];

const SINGLE: [Row; 5] = [
    (
        "linear1",
        &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    ),
    ("linear2", &["proj_out"]),
    ("modulation.lin", &["norm.linear"]),
    (
        "processor.qkv_lora",
        &["attn.to_q", "attn.to_k", "attn.to_v"],
    ),
    ("processor.proj_lora", &["proj_out"]),
];

/// The original's name of a list of blocks, diffusers' name, and the layers of a block.
const BLOCKS: [(&str, &str, &[Row]); 2] = [
    ("double_blocks", "transformer_blocks", &DOUBLE),
    ("single_blocks", "single_transformer_blocks", &SINGLE),
];

/// Diffusers' names of the layers that an original layer is made of, in their order; `None` if it is no such layer.
/// `separator` stands between the parts of its name.
pub(super) fn layers(name: &str, separator: char) -> Option<Vec<String>> {
    BLOCKS.iter().find_map(|(original, blocks, rows)| {
        let spelled = |name: &str| name.replace('.', &separator.to_string());
        let rest = name.strip_prefix(original)?.strip_prefix(separator)?;
        let (block, layer) = rest.split_once(separator)?;
        let block: usize = block.parse().ok()?;
        let (_, parts) = rows.iter().find(|(row, _)| spelled(row) == layer)?;
        let parts = parts.iter().map(|part| format!("{blocks}.{block}.{part}"));
        Some(parts.collect())
    })
}

/// The rows of B that belong to each of `parts` layers; `None` if B has no such rows. Queries, keys and values are as
/// wide as their input, and what follows them has the rest.
pub(super) fn rows(
    parts: usize,
    in_features: usize,
    out_features: usize,
) -> Option<Vec<Range<usize>>> {
    let ends = (1..parts)
        .map(|part| part * in_features)
        .chain([out_features]);
    let starts = (0..parts).map(|part| part * in_features);
    let rows: Vec<Range<usize>> = starts.zip(ends).map(|(start, end)| start..end).collect();
    let is_qkv_alone = parts == QKV;
    let whole = !is_qkv_alone || out_features == QKV * in_features;
    (whole && rows.iter().all(|rows| !rows.is_empty())).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_layer_is_several_in_order() {
        let qkv = ["to_q", "to_k", "to_v"].map(|part| format!("transformer_blocks.18.attn.{part}"));
        assert_eq!(layers("double_blocks.18.img_attn.qkv", '.').unwrap(), qkv);
        assert_eq!(layers("double_blocks_18_img_attn_qkv", '_').unwrap(), qkv);
        assert_eq!(
            layers("double_blocks.18.processor.qkv_lora1", '.').unwrap(),
            qkv
        );
        let linear1 = layers("single_blocks_3_linear1", '_').unwrap();
        assert_eq!(
            linear1.last().unwrap(),
            "single_transformer_blocks.3.proj_mlp"
        );
        for name in [
            "double_blocks.x.img_attn.qkv",
            "double_blocks.0.img_attn",
            "transformer_blocks.0.attn.to_q",
            "img_in",
        ] {
            assert_eq!(layers(name, '.'), None, "{name}");
        }
    }

    #[test]
    fn rows_are_shared_out_whole() {
        assert_eq!(rows(1, 4, 9).unwrap()[0], 0..9);
        assert_eq!(rows(3, 4, 12).unwrap(), [0..4, 4..8, 8..12]);
        assert_eq!(rows(4, 4, 28).unwrap(), [0..4, 4..8, 8..12, 12..28]);
        assert_eq!(rows(3, 4, 13), None);
        assert_eq!(rows(4, 4, 12), None);
        assert_eq!(rows(4, 4, 11), None);
    }
}
