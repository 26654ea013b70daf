//! The training itself.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use retouch_dataset::{SourcesLimit, Split, both};
use retouch_models::editor::{Editor, ImageSize, Layout, batches_of_one_shape};
use retouch_models::lora;
use retouch_models::noise;
use retouch_proto::seed::{self, Purpose};

use super::checkpoint::{SftState, Step};
use super::examples::{Batch, Encoding, Examples};
use super::log::{Entry, Log};
use super::network::{Asked, Network};
use super::rows::{Pair, read_pairs};
use super::{SftError, SftOptions, Trained};
use crate::adamw::AdamWConfig;
use crate::card::Card;
use crate::lanes::Lanes;
use crate::metrics::host;
use crate::nft;
use crate::shards::{self, part};

/// What a fine-tuning is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SftProgress {
    /// Images and prompts are being encoded.
    Encoding {
        /// Rows done.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// An update was made.
    Step {
        /// What it told.
        entry: Entry,
        /// Updates in all.
        steps: u64,
    },
}

/// What came of a fine-tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct SftOutcome {
    /// The saved editor (a diffusers folder) or adapter (a PEFT folder).
    pub folder: PathBuf,
    /// Values that were trained.
    pub parameters: usize,
    /// The last held-out loss, if it was ever measured.
    pub validation_loss: Option<f64>,
}

/// Fine-tunes an editor, going on from the output folder's checkpoint if there is one.
///
/// `observe` is told of all progress; when it answers `Break`, a checkpoint is written
/// and the training ends.
///
/// # Errors
///
/// See [`SftError`].
pub fn train(
    options: &SftOptions,
    observe: &mut dyn FnMut(SftProgress) -> ControlFlow<()>,
) -> Result<SftOutcome, SftError> {
    options.check()?;
    // Before the base, which may take minutes to load.
    let pairs = read(options)?;
    let output = &options.output;
    fs::create_dir_all(output).map_err(|source| SftError::Output {
        path: output.clone(),
        source,
    })?;
    let editor = super::base::load(options)?;
    let lanes = Lanes::for_device(&options.device);
    let (train, held_out) = encode(options, pairs, &editor, &lanes, observe)?;
    let size = ImageSize {
        height: options.height,
        width: options.width,
    };
    let asked = Asked {
        size,
        max_sequence_length: options.max_sequence_length,
        guidance_scale: options.guidance_scale,
    };
    let network = Network::new(&editor, &options.trained, asked, options.seed);

    let initial = network.parameters();
    let parameters = initial.len();
    let mut state = SftState::load(output, parameters)?.unwrap_or_else(|| SftState::new(initial));
    let mut log = Log::open(output, state.step)?;
    let training = Training {
        options,
        network,
        lanes,
    };
    let mut validation_loss = None;
    while state.step < options.steps {
        let mut entry = training.step(&mut state, &train)?;
        if state.step % options.validate_every == 0 || state.step == options.steps {
            entry.validation_loss = training.validate(&state, &held_out)?;
            validation_loss = entry.validation_loss.or(validation_loss);
        }
        log.write(&entry)?;
        let stop = observe(SftProgress::Step {
            entry,
            steps: options.steps,
        })
        .is_break();
        if stop || state.step % options.checkpoint_every == 0 || state.step == options.steps {
            state.save(output)?;
        }
        if stop && state.step < options.steps {
            return Err(SftError::Stopped(state.step));
        }
    }
    let folder = training.save(&state)?;
    Ok(SftOutcome {
        folder,
        parameters,
        validation_loss,
    })
}

/// The training pairs and the held-out ones.
fn read(options: &SftOptions) -> Result<[Vec<Pair>; 2], SftError> {
    let limit = SourcesLimit::Model(Layout::read(&options.base)?.sources_max);
    let read = |split| read_pairs(&options.dataset, split, limit);
    let held_out = match options.validation_rows {
        0 => Ok(Vec::new()),
        _ => read(Split::Test),
    };
    let (train, mut held_out) = both(read(Split::Train), held_out)?;
    held_out.truncate(options.validation_rows);
    Ok([train, held_out])
}

/// Encodes the training pairs and the held-out ones.
fn encode(
    options: &SftOptions,
    [train, held_out]: [Vec<Pair>; 2],
    editor: &Editor,
    lanes: &Lanes,
    observe: &mut dyn FnMut(SftProgress) -> ControlFlow<()>,
) -> Result<(Examples, Examples), SftError> {
    let encoding = Encoding {
        editor,
        size: ImageSize {
            height: options.height,
            width: options.width,
        },
        max_sequence_length: options.max_sequence_length,
        text_encoders: options.text_encoders(),
        lanes,
    };
    let train_rows = train.len();
    let total = train_rows + held_out.len();
    let mut advance = |done| match observe(SftProgress::Encoding { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(SftError::Stopped(0)),
    };
    let train = Examples::encode(&train, encoding, &mut advance)?;
    let held_out = Examples::encode(&held_out, encoding, &mut |done| advance(train_rows + done))?;
    Ok((train, held_out))
}

struct Training<'a> {
    options: &'a SftOptions,
    network: Network,
    lanes: Lanes,
}

/// A row with its noise level and the seed of its noise.
struct Draw {
    row: usize,
    t: f32,
    noise_seed: u64,
}

impl Training<'_> {
    /// One update.
    fn step(&self, state: &mut SftState, examples: &Examples) -> Result<Entry, SftError> {
        let start = Instant::now();
        let options = self.options;
        let step = state.step + 1;
        let draws = self.draws(step, examples.len());
        let parts = self.lanes.map_with(
            self.micro_batches(&draws, examples),
            || self.network.to_train(&state.parameters),
            |network, draws| loss_and_gradient(network, examples, &draws, &options.device),
        );
        let parts: Vec<(f64, Vec<f32>)> = parts.into_iter().collect::<Result<_, _>>()?;
        let (losses, gradients): (Vec<f64>, Vec<Vec<f32>>) = parts.into_iter().unzip();
        let loss = losses.iter().sum::<f64>() / draws.len() as f64;
        finite("loss", loss, step)?;
        let mut gradient = shards::tree_sum(gradients);
        gradient.iter_mut().for_each(|g| *g /= draws.len() as f32);

        let learning_rate =
            options.adamw.learning_rate * options.learning_rate.factor(step, options.steps);
        let grad_norm = state.update(
            gradient,
            &Step {
                adamw: AdamWConfig {
                    learning_rate,
                    ..options.adamw
                },
                max_grad_norm: options.max_grad_norm,
                ema_decay_max: options.ema_decay_max,
            },
        );
        finite("gradient norm", grad_norm, step)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Entry {
            step,
            loss,
            grad_norm,
            learning_rate,
            seconds,
            validation_loss: None,
        })
    }

    /// The mean loss of the averaged parameters on held-out rows, at evenly spread
    /// noise levels and always the same noise.
    fn validate(&self, state: &SftState, examples: &Examples) -> Result<Option<f64>, SftError> {
        let rows = examples.len();
        let draw = |row| Draw {
            row,
            t: (row as f32 + 0.5) / rows as f32,
            noise_seed: self.seed(0, row as u32, Counter::Validation),
        };
        let draws: Vec<Draw> = (0..rows).map(draw).collect();
        let losses = self.lanes.map_with(
            self.micro_batches(&draws, examples),
            || self.network.to_use(&state.ema),
            |network, draws| {
                let losses = losses(network, examples, &draws, &self.options.device)?;
                Ok(host(losses).into_iter().map(f64::from).sum::<f64>())
            },
        );
        let losses: Vec<f64> = losses.into_iter().collect::<Result<_, SftError>>()?;
        Ok((rows > 0).then(|| losses.iter().sum::<f64>() / rows as f64))
    }

    /// The rows of an update: the next of an endless shuffled sequence.
    fn draws(&self, step: u64, rows: usize) -> Vec<Draw> {
        let size = self.options.batch_size as u64;
        let first = (step - 1) * size;
        let mut epoch = (u64::MAX, Vec::new());
        let draw = |(index, position): (u32, u64)| {
            let (number, place) = (position / rows as u64, position % rows as u64);
            if epoch.0 != number {
                let order = seed::permutation(self.seed(number, 0, Counter::Order), rows);
                epoch = (number, order);
            }
            let level_seed = self.seed(step, index, Counter::Level);
            let level = self
                .options
                .noise_levels
                .level(noise::normal_values(level_seed, 1)[0].into());
            Draw {
                row: epoch.1[place as usize],
                t: level as f32,
                noise_seed: self.seed(step, index, Counter::Noise),
            }
        };
        (0..).zip(first..first + size).map(draw).collect()
    }

    fn seed(&self, major: u64, minor: u32, counter: Counter) -> u64 {
        let (high, low) = ((major >> 32) as u32, major as u32);
        seed::derive(
            self.options.seed,
            Purpose::Sft,
            low,
            high,
            minor,
            counter as u32,
        )
    }

    /// Draws whose sources have the same sizes, in parts of nearly one length that fit the longest allowed.
    fn micro_batches<'a>(&self, draws: &'a [Draw], examples: &Examples) -> Vec<Vec<&'a Draw>> {
        let sizes: Vec<_> = draws
            .iter()
            .map(|draw| examples.source_sizes(draw.row))
            .collect();
        let alike = batches_of_one_shape(&sizes, |_| usize::MAX);
        let parts = alike.iter().flat_map(|alike| {
            let parts = alike.len().div_ceil(self.options.micro_batch_size);
            (0..parts).map(move |index| &alike[part(alike.len(), index, parts)])
        });
        parts
            .map(|part| part.iter().map(|&index| &draws[index]).collect())
            .collect()
    }

    /// Saves the averaged parameters where users look for them.
    fn save(self, state: &SftState) -> Result<PathBuf, SftError> {
        let network = self.network.to_use(&state.ema);
        match (&self.options.trained, network.adapter()) {
            (Trained::Lora(config), Some(adapter)) => {
                let folder = self.options.output.join("adapter");
                let projections = network.editor().projections();
                lora::save_peft(&folder, adapter, config, projections)?;
                lora::save_diffusers(&folder, adapter, config, projections)?;
                Card::of_sft(self.options, config).write(&folder)?;
                Ok(folder)
            }
            _ => {
                let folder = self.options.output.join("editor");
                network.editor().save(&folder)?;
                Ok(folder)
            }
        }
    }
}

/// What a seed is for.
#[derive(Clone, Copy)]
enum Counter {
    Order,
    Level,
    Noise,
    Validation,
}

fn loss_and_gradient(
    network: &mut Network,
    examples: &Examples,
    draws: &[&Draw],
    device: &Device,
) -> Result<(f64, Vec<f32>), SftError> {
    let loss = losses(network, examples, draws, device)?.sum();
    let gradients = loss.backward();
    let loss = host(loss.inner())[0].into();
    Ok((loss, network.gradients(gradients)))
}

/// The flow-matching loss of each row. `[B]`
fn losses(
    network: &Network,
    examples: &Examples,
    draws: &[&Draw],
    device: &Device,
) -> Result<Tensor<1>, SftError> {
    let rows: Vec<usize> = draws.iter().map(|draw| draw.row).collect();
    let batch = examples.batch(&rows, device);
    let noise = noise_of(&batch, draws);
    let t: Vec<f32> = draws.iter().map(|draw| draw.t).collect();
    let x_t = nft::add_noise(batch.x0.clone(), noise.clone(), &t);
    let t = Tensor::from_data(TensorData::new(t, [rows.len()]), device);
    let velocity = network.velocity(x_t, t, &batch)?;
    Ok(nft::mean_square(velocity - (noise - batch.x0)))
}

fn noise_of(batch: &Batch, draws: &[&Draw]) -> Tensor<3> {
    let [_, tokens, channels] = batch.x0.dims();
    let seeds: Vec<u64> = draws.iter().map(|draw| draw.noise_seed).collect();
    noise::normal_batch(&seeds, [tokens, channels], &batch.x0.device())
}

fn finite(what: &'static str, value: f64, step: u64) -> Result<(), SftError> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(SftError::NotFinite { what, value, step })
    }
}
