//! Training of the tiny judge: one digit for source, edit, instruction and requirement, learned
//! from edits of known worth.

use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use image::RgbImage;
use rand::RngExt;
use rand::seq::SliceRandom;
use retouch_dataset::Split;
use retouch_evaluation::ORACLE_MAX;
use retouch_models::editor::{Editor, Parts};
use retouch_models::init::Init;
use retouch_models::judge::{Judge, JudgeInputs, JudgeProcessor, JudgeRequest};
use retouch_models::ops;
use retouch_models::qwen2_5_vl::Qwen2_5Vl;
use retouch_models::weights::Pretrained;

use super::agreement::{self, JudgeReport};
use super::candidates::{self, Candidates, Sampling};
use super::files::{copy_folder, halve_weights, rename};
use super::fit::{Fit, Recipe};
use super::{Progress, TrainError, Watch, tell, vae};
use crate::generate::{self, Stream};
use crate::judge;
use crate::mistakes;

/// A round of training: a warm-up and a cosine decay over lessons of its own. It begins with what
/// the round before left and ends with a folder, from which an interrupted training goes on.
struct Round {
    steps: u64,
    /// Cases with edits of each level of the editor.
    of_levels: u32,
    /// Cases with edits of the base.
    of_base: u32,
    /// Cases with made-up edits.
    made_up: u32,
}

const ROUNDS: [Round; 2] = [
    Round {
        steps: 4_000,
        of_levels: 384,
        of_base: 0,
        made_up: 3_072,
    },
    Round {
        steps: 7_000,
        of_levels: 256,
        of_base: 1_536,
        made_up: 4_096,
    },
];

impl Round {
    fn recipe(&self) -> Recipe {
        Recipe {
            steps: self.steps,
            warmup_steps: 100,
            learning_rate: 1e-3,
            beta2: 0.98,
            weight_decay: 0.01,
        }
    }
}

/// Answers: the digits 0 to 5.
const DIGITS: usize = 6;

/// Cases of one update, of one part of it, and edits of each.
const CASES: usize = 12;
const PART: usize = 3;
const EDITS: usize = 4;

/// Edits of each case that there are to draw from.
const LESSON_EDITS: usize = 6;

/// Weight of the loss at the image's tokens, where the judge learns to say how right that part of
/// the edit is. It is not asked for that later, but finds what it has to compare by it.
const LOCAL_WEIGHT: f64 = 1.0;

/// Weight of the squared error of the sketches: what an image token's part of the target looks
/// like, which the judge has to know before it can compare.
const SKETCH_WEIGHT: f64 = 4.0;

/// Squares along each side of an image token that a sketch has a colour for.
const SKETCH_SIDE: u32 = 4;

/// Numbers of a sketch.
const SKETCH: usize = (SKETCH_SIDE * SKETCH_SIDE * 3) as usize;

/// The editors whose edits a judge learns to judge. They share an autoencoder.
pub(super) struct Editors {
    /// The one that is measured, and will be trained by this judge.
    pub(super) base: PathBuf,
    /// Worse and better ones.
    pub(super) levels: Vec<PathBuf>,
}

/// Trains a judge on edits of the given editors, and on made-up ones.
///
/// # Errors
/// See [`TrainError`].
pub(super) fn train(
    folder: &Path,
    editors: &Editors,
    seed: u64,
    watch: Watch<'_>,
) -> Result<JudgeReport, TrainError> {
    for index in 0..ROUNDS.len() {
        if !after_round(folder, index).exists() {
            run_round(folder, index, editors, seed, watch)?;
        }
    }
    let judge = judge::load(&last_round(folder), &Device::flex())?;
    agreement::measure(&judge, &editors.base)
}

/// Copies the judge to where it is published.
pub(super) fn publish(folder: &Path, to: &Path) -> Result<(), TrainError> {
    copy_folder(&last_round(folder), to)
}

fn after_round(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("round-{}", index + 1))
}

fn last_round(folder: &Path) -> PathBuf {
    after_round(folder, ROUNDS.len() - 1)
}

fn run_round(
    folder: &Path,
    index: usize,
    editors: &Editors,
    seed: u64,
    watch: Watch<'_>,
) -> Result<(), TrainError> {
    let round = &ROUNDS[index];
    let lessons = lessons(index, editors, watch)?;
    let Judge { model, processor } = match index {
        0 => judge::new(seed, &Device::flex())?,
        _ => judge::load(&after_round(folder, index - 1), &Device::flex())?,
    };
    let before: u64 = ROUNDS[..index].iter().map(|round| round.steps).sum();
    let all = ROUNDS.iter().map(|round| round.steps).sum();
    let mut fit = Fit::new(Pupil::new(model, seed), round.recipe());
    while fit.step() < round.steps {
        let parts = draw(&lessons, seed, before + fit.step());
        let loss = fit.update(parts, |pupil, part| loss(pupil, &processor, &part));
        let progress = Progress {
            stage: "judge",
            step: before + fit.step(),
            steps: all,
            loss,
        };
        tell(watch, progress)?;
    }
    let judge = Judge {
        model: fit.averaged().model,
        processor,
    };
    let copy = folder.join("copy");
    judge::save(&judge, &copy)?;
    halve_weights(&copy)?;
    rename(&copy, &after_round(folder, index))
}

/// What the judge learns from in a round.
fn lessons(
    index: usize,
    editors: &Editors,
    watch: Watch<'_>,
) -> Result<Vec<Candidates>, TrainError> {
    let round = &ROUNDS[index];
    let sampling = |seed, cases| Sampling {
        split: Split::Train,
        seed: 1_000 * index as u64 + seed,
        first: 0,
        cases,
        edits: LESSON_EDITS,
    };
    let levels = editors.levels.iter().map(|level| (level, round.of_levels));
    let all: Vec<_> = levels.chain([(&editors.base, round.of_base)]).collect();
    let steps = all.len() as u64;
    let mut lessons = Vec::new();
    for (step, (folder, cases)) in (0..).zip(all) {
        let editor = Editor::load(folder, &Device::flex(), Parts::All)?;
        lessons.extend(candidates::sample(&editor, sampling(100 + step, cases))?);
        let progress = Progress {
            stage: "judge's lessons",
            step: step + 1,
            steps,
            loss: 0.0,
        };
        tell(watch, progress)?;
    }
    lessons.extend(candidates::make_up(
        &vae::of_editor(&editors.base)?,
        sampling(200, round.made_up),
        mistakes::candidate,
    ));
    Ok(lessons)
}

/// One lesson in this many asks for the change alone.
const CHANGE_ALONE_EVERY: u32 = 6;

/// What a lesson asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Question {
    /// How good the edit is.
    Whole,
    /// Whether the change is there, whatever became of the rest.
    ChangeAlone,
}

/// A case with some of its edits.
struct Lesson<'a> {
    of: &'a Candidates,
    edits: Vec<usize>,
    question: Question,
}

/// The parts of an update's batch.
fn draw(lessons: &[Candidates], seed: u64, step: u64) -> Vec<Vec<Lesson<'_>>> {
    let mut rng = generate::rng(seed, Stream::Lessons, step as u32);
    let mut lesson = || {
        let of = &lessons[rng.random_range(0..lessons.len())];
        let mut edits: Vec<usize> = (0..of.images.len()).collect();
        edits.shuffle(&mut rng);
        edits.truncate(EDITS);
        let question = match rng.random_ratio(1, CHANGE_ALONE_EVERY) {
            true => Question::ChangeAlone,
            false => Question::Whole,
        };
        Lesson {
            of,
            edits,
            question,
        }
    };
    (0..CASES / PART)
        .map(|_| (0..PART).map(|_| lesson()).collect())
        .collect()
}

/// The judge and what it needs in training only.
#[derive(Module, Debug)]
struct Pupil {
    model: Qwen2_5Vl,
    /// From an image token's hidden state to a sketch: `[SKETCH, hidden]`
    sketch: Param<Tensor<2>>,
}

impl Pupil {
    fn new(model: Qwen2_5Vl, seed: u64) -> Self {
        let hidden = model.config().text.hidden_size;
        let init = Init::new(seed, &Device::flex());
        Self {
            model,
            sketch: init.normal([SKETCH, hidden], 0.02),
        }
    }
}

/// Mean cross-entropy of the answers, and weighted that of the image's tokens and the squared
/// error of their sketches. `[1]`
fn loss(pupil: &Pupil, processor: &JudgeProcessor, part: &[Lesson<'_>]) -> Tensor<1> {
    let inputs = prepare(processor, part);
    let logits = inputs.token_logits(&pupil.model, processor.digit_ids());
    let answers = log_softmax(logits.answer, 1);
    let [rows, places, digits] = logits.edited.dims();
    let hidden = logits.edited_hidden;
    let features = hidden.dims()[2];
    let hidden = hidden.reshape([rows * places, features]);
    let error = ops::linear(hidden, pupil.sketch.val(), None) - sketches(part);
    let local = log_softmax(logits.edited.reshape([rows * places, digits]), 1);
    let of_answers = part.iter().flat_map(|lesson| lesson.scores().map(Some));
    let of_places = part.iter().flat_map(|lesson| lesson.local_scores());
    cross_entropy(answers, of_answers.collect())
        + cross_entropy(local, of_places.collect()) * LOCAL_WEIGHT
        + (error.clone() * error).mean() * SKETCH_WEIGHT
}

/// The targets' sketches for each token of each edit: `[rows * places, SKETCH]`
fn sketches(part: &[Lesson<'_>]) -> Tensor<2> {
    let of_lesson = |lesson: &Lesson<'_>| sketch(&lesson.of.target).repeat(lesson.edits.len());
    let values: Vec<f32> = part.iter().flat_map(of_lesson).collect();
    let rows = values.len() / SKETCH;
    Tensor::from_inner(Tensor::from_data(
        TensorData::new(values, [rows, SKETCH]),
        &Device::flex(),
    ))
}

/// Mean colours, in -1..1, of the squares of each image token, token by token from the top left.
fn sketch(image: &RgbImage) -> Vec<f32> {
    let (side, tokens) = (
        judge::TOKEN_SIZE / SKETCH_SIDE,
        image.width() / judge::TOKEN_SIZE,
    );
    let mean = |left: u32, top: u32, channel: usize| {
        let sum: u32 = (0..side * side)
            .map(|i| image.get_pixel(left + i % side, top + i / side).0[channel])
            .map(u32::from)
            .sum();
        sum as f32 / (side * side) as f32 / 127.5 - 1.0
    };
    let squares = SKETCH_SIDE * SKETCH_SIDE;
    let mut values = Vec::with_capacity((tokens * tokens) as usize * SKETCH);
    for token in 0..tokens * tokens {
        let (left, top) = (
            token % tokens * judge::TOKEN_SIZE,
            token / tokens * judge::TOKEN_SIZE,
        );
        for square in 0..squares {
            let (x, y) = (square % SKETCH_SIDE * side, square / SKETCH_SIDE * side);
            values.extend((0..3).map(|channel| mean(left + x, top + y, channel)));
        }
    }
    values
}

impl Lesson<'_> {
    fn scores(&self) -> impl Iterator<Item = f64> {
        let verdicts = self.edits.iter().map(|&edit| self.of.verdicts[edit]);
        verdicts.map(|verdict| match self.question {
            Question::Whole => verdict.score(),
            Question::ChangeAlone => ORACLE_MAX * verdict.changed,
        })
    }

    /// How right each image token's part of the edits is, 0..5.
    fn local_scores(&self) -> Vec<Option<f64>> {
        let grades = self.edits.iter().flat_map(|&edit| &self.of.grades[edit]);
        grades.map(|grade| Some(ORACLE_MAX * (*grade)?)).collect()
    }
}

fn prepare(processor: &JudgeProcessor, part: &[Lesson<'_>]) -> JudgeInputs {
    let lenient = judge::lenient_template();
    let pictures: Vec<_> = part
        .iter()
        .map(|lesson| {
            let edits: Vec<_> = lesson
                .edits
                .iter()
                .map(|&edit| lesson.of.images[edit].clone())
                .collect();
            (lesson.of.case.prompt(), edits)
        })
        .collect();
    let requests: Vec<JudgeRequest<'_>> = part
        .iter()
        .zip(&pictures)
        .map(|(lesson, (prompt, edits))| JudgeRequest {
            sources: std::slice::from_ref(&lesson.of.source),
            edits,
            prompt,
            requirement: lesson.of.case.requirement(),
            template: (lesson.question == Question::ChangeAlone).then_some(&lenient),
        })
        .collect();
    processor
        .prepare(&requests)
        .expect("the world's words and pictures fit the judge")
}

/// Mean over the rows that have a score, which is split between its two neighbouring digits.
///
/// # Shapes
/// * log_p: `[rows, 6]`
/// * output: `[1]`
fn cross_entropy(log_p: Tensor<2>, scores: Vec<Option<f64>>) -> Tensor<1> {
    let rows = scores.len();
    let known = scores.iter().flatten().count().max(1);
    let weights: Vec<f32> = scores.into_iter().flat_map(two_digits).collect();
    let weights = TensorData::new(weights, [rows, DIGITS]);
    let weights = Tensor::<2>::from_data(weights, &log_p.device());
    (log_p * weights).sum() * (-1.0 / known as f64)
}

fn two_digits(score: Option<f64>) -> [f32; DIGITS] {
    let mut weights = [0.0; DIGITS];
    if let Some(score) = score {
        let lower = (score.floor() as usize).min(DIGITS - 2);
        weights[lower + 1] = (score - lower as f64) as f32;
        weights[lower] = 1.0 - weights[lower + 1];
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_lies_between_two_digits() {
        assert_eq!(two_digits(Some(5.0)), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(two_digits(Some(1.25)), [0.0, 0.75, 0.25, 0.0, 0.0, 0.0]);
        assert_eq!(two_digits(None), [0.0; 6]);
    }

    #[test]
    fn a_sketch_goes_through_the_tokens_from_the_top_left() {
        let image = RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([if x < 16 && y < 4 { 255 } else { 0 }, 0, 0])
        });
        let sketch = sketch(&image);
        assert_eq!(sketch.len(), 16 * SKETCH);
        let red = |square: usize| sketch[3 * square];
        assert!((0..4).all(|square| red(square) == 1.0));
        assert!((4..256).all(|square| red(square) == -1.0));
    }
}
