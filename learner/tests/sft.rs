//! Supervised fine-tuning of a tiny editor, from a dataset folder to a saved editor.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use common::pipeline;
use image::{Rgb, RgbImage};
use retouch_dataset::Split;
use retouch_learner::adamw::AdamWConfig;
use retouch_learner::sft::{
    self, LearningRate, SftError, SftOptions, SftOutcome, SftProgress, Start, TextEncoders, Trained,
};
use retouch_models::editor::{Editor, Parts};
use retouch_models::lora::{LoraConfig, load_adapter};

/// Six rows: a picture of one colour becomes the picture of another.
fn dataset(folder: &Path) {
    let picture = |name: &str, color: [u8; 3]| {
        RgbImage::from_pixel(32, 32, Rgb(color))
            .save(folder.join(name))
            .unwrap();
    };
    picture("red.png", [200, 20, 20]);
    picture("blue.png", [20, 20, 200]);
    let row = "{\"prompt\":\"make it blue\",\"image\":\"red.png\",\"requirement\":\"blue\",\"target\":\"blue.png\"}\n";
    fs::write(folder.join(Split::Train.file_name()), row.repeat(6)).unwrap();
    fs::write(folder.join(Split::Test.file_name()), row.repeat(3)).unwrap();
}

fn full(start: Start, text_encoders: TextEncoders) -> Trained {
    Trained::Full {
        start,
        text_encoders,
    }
}

fn lora() -> Trained {
    let target_modules = ["to_q", "to_k", "to_v", "to_out.0"]
        .map(String::from)
        .into();
    Trained::Lora(LoraConfig {
        rank: 4,
        alpha: 8.0,
        target_modules,
    })
}

fn options(folder: &Path, output: &str, trained: Trained) -> SftOptions {
    let base = SftOptions::new(pipeline(), folder.to_owned(), folder.join(output), trained);
    SftOptions {
        height: 32,
        width: 32,
        max_sequence_length: 8,
        steps: 4,
        batch_size: 4,
        micro_batch_size: 2,
        adamw: AdamWConfig {
            learning_rate: 1e-2,
            ..base.adamw
        },
        learning_rate: LearningRate {
            warmup_steps: 2,
            ..LearningRate::default()
        },
        ema_decay_max: 0.5,
        seed: 3,
        validation_rows: 3,
        validate_every: 2,
        checkpoint_every: 3,
        ..base
    }
}

fn run(options: &SftOptions) -> SftOutcome {
    sft::train(options, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// All weights of a saved editor.
fn weights(folder: &Path) -> Vec<Vec<u8>> {
    let files = [
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    files
        .map(|file| fs::read(folder.join(file)).unwrap())
        .into()
}

fn log(options: &SftOptions) -> Vec<sft::log::Entry> {
    let text = fs::read_to_string(options.output.join(sft::log::FILE)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn thread_count_and_interruption_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let trained = full(Start::Random, TextEncoders::Trained);
    let with_threads = |threads: usize, output: &str| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| weights(&run(&options(folder.path(), output, trained.clone())).folder))
    };
    let straight = with_threads(1, "one");
    assert!(with_threads(2, "two") == straight);

    let resumed = options(folder.path(), "resumed", trained);
    let mut steps = 0;
    let mut interrupt = |progress| {
        steps += usize::from(matches!(progress, SftProgress::Step { .. }));
        if steps == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let error = sft::train(&resumed, &mut interrupt).unwrap_err();
    assert!(matches!(error, SftError::Stopped(2)), "{error}");
    assert!(weights(&run(&resumed).folder) == straight);
    let steps: Vec<u64> = log(&resumed).iter().map(|entry| entry.step).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn full_training_learns_one_edit_and_leaves_frozen_parts_alone() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let mut options = options(
        folder.path(),
        "out",
        full(Start::Weights, TextEncoders::Frozen),
    );
    options.steps = 60;
    options.validate_every = 60;
    let outcome = run(&options);
    let log = log(&options);
    let mean =
        |part: &[sft::log::Entry]| part.iter().map(|e| e.loss).sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&log[..10]), mean(&log[50..]));
    assert!(last < 0.7 * first, "{first} -> {last}");
    assert_eq!(outcome.validation_loss, log[59].validation_loss);

    let base = Editor::load(&pipeline(), &Device::flex(), Parts::All).unwrap();
    base.save(&folder.path().join("base")).unwrap();
    let (before, after) = (
        weights(&folder.path().join("base")),
        weights(&outcome.folder),
    );
    assert!(before[0] != after[0]);
    assert!(before[1..] == after[1..]);
}

#[test]
fn an_adapter_is_saved_as_peft_and_diffusers_take_it() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let outcome = run(&options(folder.path(), "out", lora()));
    let files = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "pytorch_lora_weights.safetensors",
    ];
    assert!(files.iter().all(|file| outcome.folder.join(file).is_file()));
    let base = Editor::load(&pipeline(), &Device::flex(), Parts::Transformer).unwrap();
    let adapter = load_adapter(&outcome.folder, base.projections(), &Device::flex()).unwrap();
    assert_eq!(adapter.flat_len(), outcome.parameters);
    assert!(adapter.to_flat().iter().all(|value| value.is_finite()));
}

/// A training on the other base model's golden pipeline.
fn qwen_options(folder: &Path, output: &str, trained: Trained) -> SftOptions {
    let cases = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tools/parity/cases"
    ));
    SftOptions {
        base: cases.join("qwen_image_edit_pipeline__sequential_positions/pipeline"),
        ..options(folder, output, trained)
    }
}

#[test]
fn another_base_model_is_trained_alike() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let mut options = qwen_options(folder.path(), "lora", lora());
    options.steps = 40;
    let outcome = run(&options);
    let base = Editor::load(&options.base, &Device::flex(), Parts::Transformer).unwrap();
    let adapter = load_adapter(&outcome.folder, base.projections(), &Device::flex()).unwrap();
    assert_eq!(adapter.flat_len(), outcome.parameters);
    let entries = log(&options);
    let mean = |part: &[sft::log::Entry]| part.iter().map(|e| e.loss).sum::<f64>();
    let (first, last) = (mean(&entries[..10]), mean(&entries[30..]));
    assert!(last < first, "{first} -> {last}");

    let scratch = full(Start::Random, TextEncoders::Frozen);
    let outcome = run(&qwen_options(folder.path(), "full", scratch));
    Editor::load(&outcome.folder, &Device::flex(), Parts::All).unwrap();

    let text = full(Start::Weights, TextEncoders::Trained);
    let options = qwen_options(folder.path(), "text", text);
    let error = sft::train(&options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    let expected = "text_encoders is trained with a QwenImageEditPlusPipeline, expected frozen";
    assert!(error.to_string().starts_with(expected), "{error}");
}

/// Rows of one source and of two, of several sizes, in the micro batches that their sizes allow.
#[test]
fn rows_of_several_sources_are_trained_on_with_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let tall = |color: [u8; 3]| {
        let picture = RgbImage::from_pixel(32, 64, Rgb(color));
        picture.save(folder.path().join("tall.png")).unwrap();
    };
    let row = |image: &str| {
        format!("{{\"prompt\":\"make it blue\",\"image\":{image},\"target\":\"blue.png\"}}\n")
    };
    let rows = [
        row("\"red.png\""),
        row("[\"tall.png\",\"red.png\"]"),
        row("[\"red.png\",\"tall.png\"]"),
        row("[\"blue.png\",\"red.png\"]"),
    ];
    for split in [Split::Train, Split::Test] {
        let rows = rows.concat().repeat(2);
        fs::write(folder.path().join(split.file_name()), rows).unwrap();
    }
    let trained = |output: &str, micro_batch_size: usize| {
        let mut options = qwen_options(folder.path(), output, lora());
        options.batch_size = 8;
        options.micro_batch_size = micro_batch_size;
        options.validation_rows = 8;
        run(&options);
        let steps = log(&options).into_iter();
        steps
            .flat_map(|step| [Some(step.loss), step.validation_loss])
            .flatten()
            .collect::<Vec<f64>>()
    };
    tall([20, 200, 20]);
    let alone = trained("alone", 1);
    let together = trained("together", 8);
    assert_eq!(alone.len(), together.len());
    for (alone, together) in alone.iter().zip(&together) {
        assert!((alone / together - 1.0).abs() < 1e-4, "{alone} {together}");
    }
    // The first update is of the same rows, noises and parameters.
    tall([200, 200, 200]);
    assert_ne!(trained("another picture", 8)[0], together[0]);

    let error = sft::train(&options(folder.path(), "flux", lora()), &mut |_| {
        ControlFlow::Continue(())
    });
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("jsonl:2: image names 2 files, the base model takes 1"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    dataset(folder.path());
    let fails = |change: fn(&mut SftOptions)| {
        let mut options = options(folder.path(), "wrong", lora());
        change(&mut options);
        sft::train(&options, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        fails(|o| o.batch_size = 0),
        "batch_size is 0, expected at least 1"
    );
    assert!(fails(|o| o.height = 33).contains("33"));
    assert!(fails(|o| o.base = PathBuf::from("/nowhere")).contains("/nowhere"));
    assert!(fails(|o| o.adamw.learning_rate = f64::NAN).contains("learning_rate is NaN"));
    fs::write(folder.path().join("red.png"), "not a picture").unwrap();
    assert!(fails(|_| ()).contains("red.png"));
}
