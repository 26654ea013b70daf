//! Qwen2.5-VL: vision tower, whole model, image processor, the judge's conversation.

use anyhow::{Context, ensure};
use burn::tensor::{Device, TensorData};
use image::RgbImage;
use retouch_models::image_processor::{ImageProcessor, ImageProcessorConfig};
use retouch_models::judge::{JudgeProcessor, JudgeRequest};
use retouch_models::qwen2_5_vl::{
    Grid, Qwen2_5Vl, Qwen2_5VlConfig, TokenRows, VisionConfig, VisionTower,
};
use retouch_models::weights::{Pretrained, PretrainedConfig, Weights, read_config};

use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn vision(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let weights = Weights::from_file(&case.path("weights.safetensors"))?;
    let tower = VisionTower::from_weights(&vision_config(case)?, &weights, device, case.dtype)?;
    let embeds = tower.forward(case.input("pixel_values", device)?, &grids(case)?);
    Ok(Outputs::default().float("out.image_embeds", embeds))
}

/// The tower's own config.json, or that of a whole model.
fn vision_config(case: &Case) -> anyhow::Result<VisionConfig> {
    let config: serde_json::Value = read_config(&case.path("config.json"))?;
    let config = config.get("vision_config").unwrap_or(&config).clone();
    Ok(serde_json::from_value(config)?)
}

fn grids(case: &Case) -> anyhow::Result<Vec<Grid>> {
    let sizes: Vec<usize> = case.integers("image_grid_thw")?;
    let grid = |thw: &[usize]| Grid {
        frames: thw[0],
        height: thw[1],
        width: thw[2],
    };
    Ok(sizes.chunks_exact(3).map(grid).collect())
}

pub(crate) fn model(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let model = Qwen2_5Vl::load_as(case.model_folder()?.path(), device, case.dtype)?;
    let (tokens, grids) = (
        tokens(case)?,
        if case.has_input("image_grid_thw") {
            grids(case)?
        } else {
            vec![]
        },
    );
    let pixels = case
        .has_input("pixel_values")
        .then(|| case.input("pixel_values", device));
    let positions = tokens.rope_index(&grids, model.image_tokens());
    Ok(Outputs::default()
        .float(
            "out.logits",
            model.forward(&tokens, pixels.transpose()?, &grids),
        )
        .data("out.position_ids", position_ids(case, &tokens, &positions)?))
}

fn tokens(case: &Case) -> anyhow::Result<TokenRows> {
    let [batch, _] = case.dims("input_ids")?;
    Ok(TokenRows {
        ids: case.integers("input_ids")?,
        attention_mask: case
            .values("attention_mask")?
            .iter()
            .map(|real| *real != 0.0)
            .collect(),
        batch,
    })
}

/// `[3, B, T]`. Padding takes the expected values: nothing depends on them, and the reference's versions differ.
fn position_ids(
    case: &Case,
    tokens: &TokenRows,
    found: &[[usize; 3]],
) -> anyhow::Result<TensorData> {
    let expected = case.data("out.position_ids")?;
    let count = found.len();
    let mut values: Vec<i64> = expected.iter().collect();
    ensure!(
        values.len() == 3 * count,
        "out.position_ids is not [3, B, T]"
    );
    for (place, position) in found
        .iter()
        .enumerate()
        .filter(|(place, _)| tokens.attention_mask[*place])
    {
        for axis in 0..3 {
            values[axis * count + place] = position[axis] as i64;
        }
    }
    Ok(TensorData::new(
        values,
        expected.shape().as_slice().to_vec(),
    ))
}

pub(crate) fn image_processor(case: &Case) -> anyhow::Result<Outputs> {
    let config: ImageProcessorConfig = read_config(&case.path("config.json"))?;
    let processor = ImageProcessor::new(config);
    let patches = processor.patches(&image(case, "image")?)?;
    let shape = [patches.grid.patches(), processor.patch_features()];
    let grid = [patches.grid.frames, patches.grid.height, patches.grid.width];
    Ok(Outputs::default()
        .data("out.pixel_values", TensorData::new(patches.values, shape))
        .data(
            "out.image_grid_thw",
            TensorData::new(grid.map(|side| side as i64).to_vec(), [1, 3]),
        ))
}

/// What the judge's default template feeds to the model.
pub(crate) fn judge_chat(case: &Case) -> anyhow::Result<Outputs> {
    let config = Qwen2_5VlConfig::load(case.folder())?;
    let processor = JudgeProcessor::load(case.folder(), &config)?;
    let (source, edited) = (image(case, "source")?, image(case, "edited")?);
    let inputs = processor.prepare(&[JudgeRequest {
        sources: &[source],
        edits: &[edited],
        prompt: case.text("prompt")?,
        requirement: case.text("requirement")?,
        template: None,
    }])?;
    let ids: Vec<i64> = inputs.token_ids(0).into_iter().map(i64::from).collect();
    let shape = [ids.len()];
    Ok(Outputs::default().data("out.ids", TensorData::new(ids, shape)))
}

/// Input `name`, `[H, W, 3]` u8.
pub(crate) fn image(case: &Case, name: &str) -> anyhow::Result<RgbImage> {
    let [height, width, _] = case.dims(name)?;
    let pixels = case.integers(name)?;
    RgbImage::from_raw(width as u32, height as u32, pixels)
        .with_context(|| format!("in.{name} is no RGB image"))
}
