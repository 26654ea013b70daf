use burn::tensor::{DType, Device};

use super::*;
use crate::golden::Case;
use crate::weights::{Pretrained, read_config};

#[test]
fn the_text_encoder_equals_the_reference() {
    for case in Case::all("clip_text") {
        let config = read_config(&case.path("config.json")).unwrap();
        let device = Device::flex();
        let clip = ClipText::from_weights(&config, &case.weights(), &device, DType::F32).unwrap();
        let output = clip.forward(case.int_tensor("in.input_ids"));
        case.check("out.last_hidden_state", output.last_hidden_state, 1e-4);
        case.check("out.pooler_output", output.pooler_output, 1e-4);
    }
}

#[test]
fn saved_models_load_back() {
    let folder = tempfile::tempdir().unwrap();
    let case = &Case::all("clip_text")[0];
    let config = read_config(&case.path("config.json")).unwrap();
    let device = Device::flex();
    let clip = ClipText::from_weights(&config, &case.weights(), &device, DType::F32).unwrap();
    clip.save(folder.path()).unwrap();
    let loaded = ClipText::load(folder.path(), &device).unwrap();
    assert_eq!(loaded.config(), clip.config());
    let pooled = |model: &ClipText| {
        model
            .forward(case.int_tensor("in.input_ids"))
            .pooler_output
            .into_data()
    };
    assert_eq!(pooled(&loaded), pooled(&clip));
}
