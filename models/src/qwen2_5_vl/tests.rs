use super::*;
use crate::golden::Case;
use crate::weights::{Pretrained, read_config};

fn grids(case: &Case) -> Vec<Grid> {
    let sizes = case.integers("in.image_grid_thw");
    let grid = |thw: &[i64]| Grid {
        frames: thw[0] as usize,
        height: thw[1] as usize,
        width: thw[2] as usize,
    };
    sizes.chunks_exact(3).map(grid).collect()
}

fn vision_config(case: &Case) -> VisionConfig {
    let config: serde_json::Value = read_config(&case.path("config.json")).unwrap();
    let config = config.get("vision_config").unwrap_or(&config).clone();
    serde_json::from_value(config).unwrap()
}

#[test]
fn the_vision_tower_equals_the_reference() {
    for case in Case::all("qwen2_5_vl_vision") {
        let weights = case.weights();
        let tower =
            VisionTower::from_weights(&vision_config(&case), &weights, &Device::flex(), DType::F32)
                .unwrap();
        let embeds = tower.forward(case.tensor("in.pixel_values"), &grids(&case));
        case.check("out.image_embeds", embeds, 1e-4);
    }
}

fn tokens(case: &Case) -> TokenRows {
    TokenRows {
        ids: case
            .integers("in.input_ids")
            .iter()
            .map(|id| *id as u32)
            .collect(),
        attention_mask: case
            .integers("in.attention_mask")
            .iter()
            .map(|real| *real == 1)
            .collect(),
        batch: case.shape("in.input_ids")[0],
    }
}

fn model(case: &Case) -> Qwen2_5Vl {
    let config = read_config(&case.path("config.json")).unwrap();
    Qwen2_5Vl::from_weights(&config, &case.weights(), &Device::flex(), DType::F32).unwrap()
}

#[test]
fn positions_equal_the_reference() {
    for case in Case::all("qwen2_5_vl") {
        let tokens = tokens(&case);
        let found = tokens.rope_index(&grids(&case), model(&case).image_tokens());
        let expected = case.integers("out.position_ids");
        let places = tokens.ids.len();
        for place in (0..places).filter(|place| tokens.attention_mask[*place]) {
            let expected = [0, 1, 2].map(|axis| expected[axis * places + place] as usize);
            assert_eq!(found[place], expected, "token {place}");
        }
    }
}

#[test]
fn logits_equal_the_reference() {
    for case in Case::all("qwen2_5_vl") {
        let pixels = case
            .has("in.pixel_values")
            .then(|| case.tensor("in.pixel_values"));
        let logits = model(&case).forward(&tokens(&case), pixels, &grids(&case));
        case.check("out.logits", logits, 1e-4);
    }
}
