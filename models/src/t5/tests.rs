use burn::tensor::{DType, Device};

use super::*;
use crate::golden::Case;
use crate::weights::{Pretrained, read_config};

#[test]
fn the_encoder_equals_the_reference() {
    for case in Case::all("t5_encoder") {
        let config = read_config(&case.path("config.json")).unwrap();
        let device = Device::flex();
        let t5 = T5Encoder::from_weights(&config, &case.weights(), &device, DType::F32).unwrap();
        let mask = case
            .has("in.attention_mask")
            .then(|| case.int_tensor("in.attention_mask"));
        let hidden = t5.forward(case.int_tensor("in.input_ids"), mask);
        case.check("out.last_hidden_state", hidden, 1e-4);
    }
}

#[test]
fn saved_models_load_back() {
    let folder = tempfile::tempdir().unwrap();
    let case = &Case::all("t5_encoder")[0];
    let config = read_config(&case.path("config.json")).unwrap();
    let device = Device::flex();
    let t5 = T5Encoder::from_weights(&config, &case.weights(), &device, DType::F32).unwrap();
    t5.save(folder.path()).unwrap();
    let loaded = T5Encoder::load(folder.path(), &device).unwrap();
    assert_eq!(loaded.config(), t5.config());
    let hidden = |model: &T5Encoder| {
        model
            .forward(case.int_tensor("in.input_ids"), None)
            .into_data()
    };
    assert_eq!(hidden(&loaded), hidden(&t5));
}
