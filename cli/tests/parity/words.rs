//! Tokenizers.

use burn::tensor::TensorData;
use retouch_models::tokenizer::Tokenizer;

use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn tokenizer(case: &Case) -> anyhow::Result<Outputs> {
    let tokenizer = Tokenizer::load(case.tokenizer_folder()?.path())?;
    let mut outputs = Outputs::default();
    for (index, text) in case.texts("texts")?.into_iter().enumerate() {
        let ids: Vec<i64> = tokenizer.encode(text)?.into_iter().map(i64::from).collect();
        let shape = [ids.len()];
        outputs = outputs.data(&format!("out.ids.{index}"), TensorData::new(ids, shape));
    }
    Ok(outputs)
}
