//! A batch of judgements as the model takes it.
//!
//! The tokens before the edited image are the same for all edits of a group: they form one prefix row, computed once.
//! What follows is a suffix row per edit. Prefixes are padded on the left and suffixes on the right, so that the real
//! keys of a row are contiguous.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

use super::template::ImageRole;
use crate::image_processor::Patches;
use crate::ops::AttentionMask;
use crate::qwen2_5_vl::{
    Grid, ImageTokens, PrefixCache, Qwen2_5Vl, Sequence, Slot, TokenRows, rows,
};

/// How much goes through the model at once: what a group of large images takes in memory is bounded by it, and a GPU
/// gains nothing from more.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtOnce {
    /// Patches of images, unless one image has more.
    pub(super) patches: usize,
    /// Tokens of rows and of the prefixes that they see, unless one row has more.
    pub(super) tokens: usize,
}

const AT_ONCE: AtOnce = AtOnce {
    patches: 1 << 14,
    tokens: 1 << 15,
};

/// One judgement, tokenised.
pub(super) struct Group {
    /// The text's tokens, an image being one token.
    pub(super) ids: Vec<u32>,
    /// What these images are.
    pub(super) images: Vec<ImageRole>,
    /// None where the template has no source.
    pub(super) sources: Vec<Patches>,
    pub(super) edits: Vec<Patches>,
}

/// Any number of judgements, ready for the model; made by [`JudgeProcessor`](super::JudgeProcessor).
#[derive(Clone, Debug)]
pub struct JudgeInputs {
    pixel_values: Vec<f32>,
    grids: Vec<Grid>,
    prefix: Rows,
    suffix: Rows,
    /// The prefix of each suffix.
    groups: Vec<usize>,
    /// Tokens of each edited image, with which its suffix begins.
    edited_tokens: Vec<usize>,
    image: ImageTokens,
}

/// Logits of some tokens at many places; see [`JudgeInputs::token_logits`].
#[derive(Clone, Debug)]
pub struct TokenLogits {
    /// After each token of the edited image, row by row from the top left: `[rows, tokens, ids]`.
    pub edited: Tensor<3>,
    /// What these were read from: `[rows, tokens, hidden]`.
    pub edited_hidden: Tensor<3>,
    /// The answer: `[rows, ids]`.
    pub answer: Tensor<2>,
}

/// Token rows of one length.
#[derive(Clone, Debug, Default)]
struct Rows {
    slots: Vec<Slot>,
    positions: Vec<[usize; 3]>,
    /// Real tokens of each row.
    real: Vec<usize>,
    length: usize,
}

/// The side on which short rows are filled up.
#[derive(Clone, Copy)]
enum Padding {
    Left,
    Right,
}

impl JudgeInputs {
    pub(super) fn new(groups: Vec<Group>, image: ImageTokens) -> Self {
        let mut builder = Builder {
            image,
            ..Builder::default()
        };
        groups.into_iter().for_each(|group| builder.push(group));
        builder.finish()
    }

    /// Number of edits, over all judgements.
    pub fn rows(&self) -> usize {
        self.groups.len()
    }

    /// The tokens of an edit's conversation, without padding, those of images repeated for all their patches.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn token_ids(&self, row: usize) -> Vec<u32> {
        let prefix = self.prefix.row(self.groups[row], Padding::Left);
        let slots = prefix.iter().chain(self.suffix.row(row, Padding::Right));
        slots
            .map(|slot| match slot {
                Slot::Text(id) => *id,
                Slot::Image(_) => self.image.token_id,
            })
            .collect()
    }

    /// Tokens of the longest row.
    pub fn tokens_per_row(&self) -> usize {
        self.prefix.length + self.suffix.length
    }

    /// The logits of the tokens `ids` as the answer for every edit, differentiable in the model's parameters.
    ///
    /// # Shapes
    /// * output: `[rows, ids.len()]`
    pub fn answer_logits(&self, model: &Qwen2_5Vl, ids: &[u32]) -> Tensor<2> {
        self.answer_logits_in_parts(AT_ONCE, model, ids)
    }

    /// As [`JudgeInputs::answer_logits`]. No edit's logits depend on what goes through the model beside it.
    pub(super) fn answer_logits_in_parts(
        &self,
        at_once: AtOnce,
        model: &Qwen2_5Vl,
        ids: &[u32],
    ) -> Tensor<2> {
        let features = self.features(at_once, model);
        let prefix = self.prefix_cache(model, &features);
        let parts = parts(&vec![self.tokens_per_row(); self.rows()], at_once.tokens);
        let logits = parts.into_iter().map(|rows| {
            let last = &self.suffix.real[rows.clone()];
            let last: Vec<usize> = last.iter().map(|real| real - 1).collect();
            let sequence = self.sequence(model, &features, prefix.as_ref(), rows);
            model.logits_of(model.language_model.last_hidden(sequence, &last), ids)
        });
        joined(logits.collect())
    }

    /// The logits of the tokens `ids` after each token of the edited images as well; what the answer will be is
    /// learned faster if these too have something to predict.
    ///
    /// # Panics
    /// If the edited images are not all of one size.
    pub fn token_logits(&self, model: &Qwen2_5Vl, ids: &[u32]) -> TokenLogits {
        let tokens = self.edited_tokens[0];
        assert!(
            self.edited_tokens.iter().all(|other| *other == tokens),
            "the edited images of a batch have one size"
        );
        let features = self.features(AT_ONCE, model);
        let prefix = self.prefix_cache(model, &features);
        let sequence = self.sequence(model, &features, prefix.as_ref(), 0..self.rows());
        let hidden = model.language_model.hidden(sequence);
        let [rows_count, length, features] = hidden.dims();
        let edited_hidden = hidden.clone().narrow(1, 0, tokens);
        let edited = edited_hidden.clone();
        let edited = edited.reshape([rows_count * tokens, features]);
        let last = self.suffix.real.iter().enumerate();
        let last: Vec<usize> = last.map(|(row, real)| row * length + real - 1).collect();
        let answer = rows(hidden.reshape([rows_count * length, features]), &last);
        let edited = model.logits_of(edited, ids);
        TokenLogits {
            edited: edited.reshape([rows_count, tokens, ids.len()]),
            edited_hidden,
            answer: model.logits_of(answer, ids),
        }
    }

    /// Some suffix rows behind their prefixes.
    fn sequence(
        &self,
        model: &Qwen2_5Vl,
        features: &Tensor<2>,
        prefix: Option<&PrefixCache>,
        rows: Range<usize>,
    ) -> Sequence<'_> {
        let length = self.suffix.length;
        Sequence {
            embeds: self.suffix.embeds(model, features, rows.clone()),
            positions: &self.suffix.positions[rows.start * length..rows.end * length],
            mask: self.suffix_mask(rows.clone()),
            prefix: prefix.map(|prefix| prefix.rows(&self.groups[rows])),
        }
    }

    /// Keys and values of every judgement's prefix, where they have any.
    fn prefix_cache(&self, model: &Qwen2_5Vl, features: &Tensor<2>) -> Option<PrefixCache> {
        let prefix = &self.prefix;
        if prefix.length == 0 {
            return None;
        }
        let start = prefix.real.iter().map(|real| prefix.length - real);
        let sequence = Sequence {
            embeds: prefix.embeds(model, features, 0..prefix.real.len()),
            positions: &prefix.positions,
            mask: AttentionMask::CausalKeyRange {
                start: start.collect(),
                end: vec![prefix.length; prefix.real.len()],
            },
            prefix: None,
        };
        Some(model.language_model.prefill(sequence))
    }

    /// What the vision tower makes of all images: `[image tokens, hidden]`
    fn features(&self, at_once: AtOnce, model: &Qwen2_5Vl) -> Tensor<2> {
        let device = model.language_model.embedding().device();
        let patches: Vec<usize> = self.grids.iter().map(Grid::patches).collect();
        let width = self.pixel_values.len() / patches.iter().sum::<usize>();
        let mut done = 0;
        let features = parts(&patches, at_once.patches).into_iter().map(|images| {
            let count: usize = patches[images.clone()].iter().sum();
            let values = &self.pixel_values[done * width..(done + count) * width];
            done += count;
            let pixels = TensorData::new(values.to_vec(), [count, width]);
            let pixels = Tensor::from_data(pixels, &device);
            model.visual.forward(pixels, &self.grids[images])
        });
        joined(features.collect())
    }

    fn suffix_mask(&self, rows: Range<usize>) -> AttentionMask {
        let (prefix, suffix) = (&self.prefix, &self.suffix);
        let start = |group: &usize| prefix.length - prefix.real.get(*group).unwrap_or(&0);
        let real = suffix.real[rows.clone()].iter();
        AttentionMask::CausalKeyRange {
            start: self.groups[rows].iter().map(start).collect(),
            end: real.map(|real| prefix.length + real).collect(),
        }
    }
}

/// Neighbours that are no larger than `max` together, unless one alone is.
fn parts(sizes: &[usize], max: usize) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for (index, size) in sizes.iter().enumerate() {
        if index > start && sum + size > max {
            parts.push(start..index);
            (start, sum) = (index, 0);
        }
        sum += size;
    }
    parts.push(start..sizes.len());
    parts
}

/// The rows of all parts; one part is taken as it is.
fn joined(parts: Vec<Tensor<2>>) -> Tensor<2> {
    match <[_; 1]>::try_from(parts) {
        Ok([whole]) => whole,
        Err(parts) => Tensor::cat(parts, 0),
    }
}

impl Rows {
    /// The real tokens of a row that was padded on the given side.
    fn row(&self, row: usize, padding: Padding) -> &[Slot] {
        let slots = &self.slots[row * self.length..][..self.length];
        let real = self.real[row];
        match padding {
            Padding::Left => &slots[self.length - real..],
            Padding::Right => &slots[..real],
        }
    }

    /// # Shapes
    /// * output: `[rows.len(), length, hidden]`
    fn embeds(&self, model: &Qwen2_5Vl, features: &Tensor<2>, rows: Range<usize>) -> Tensor<3> {
        let slots = &self.slots[rows.start * self.length..rows.end * self.length];
        let embeds = model.embed(slots, Some(features.clone()));
        let [_, hidden] = embeds.dims();
        embeds.reshape([rows.len(), self.length, hidden])
    }

    fn padded(rows: Vec<Row>, padding: Padding) -> Self {
        let length = rows.iter().map(|row| row.slots.len()).max().unwrap_or(0);
        let mut padded = Self {
            length,
            ..Self::default()
        };
        for row in rows {
            let missing = length - row.slots.len();
            padded.real.push(row.slots.len());
            let (before, after) = match padding {
                Padding::Left => (missing, 0),
                Padding::Right => (0, missing),
            };
            // Any token will do: nothing attends to padding.
            padded
                .slots
                .extend(std::iter::repeat_n(Slot::Text(0), before));
            padded.slots.extend(row.slots);
            padded
                .slots
                .extend(std::iter::repeat_n(Slot::Text(0), after));
            padded.positions.extend(std::iter::repeat_n([0; 3], before));
            padded.positions.extend(row.positions);
            padded.positions.extend(std::iter::repeat_n([0; 3], after));
        }
        padded
    }
}

/// Tokens of one row, without padding.
struct Row {
    slots: Vec<Slot>,
    positions: Vec<[usize; 3]>,
}

#[derive(Default)]
struct Builder {
    image: ImageTokens,
    pixel_values: Vec<f32>,
    grids: Vec<Grid>,
    features: usize,
    prefixes: Vec<Row>,
    suffixes: Vec<Row>,
    groups: Vec<usize>,
    edited_tokens: Vec<usize>,
}

/// An image among the features of the batch.
#[derive(Clone, Copy)]
struct Placed {
    grid: Grid,
    first_feature: usize,
}

impl Builder {
    fn push(&mut self, group: Group) {
        let sources = group.sources.into_iter();
        let sources: Vec<Placed> = sources.map(|patches| self.place(patches)).collect();
        let index = self.groups.last().map_or(0, |last| last + 1);
        for (number, edit) in group.edits.into_iter().enumerate() {
            let edit = self.place(edit);
            let images: Vec<Placed> = group
                .images
                .iter()
                .map(|role| match role {
                    ImageRole::Source(index) => sources[*index],
                    ImageRole::Edited => edit,
                })
                .collect();
            let mut prefix = self.row(&group.ids, &images);
            let start = prefix.slots.iter().position(|slot| is_of(*slot, edit));
            let suffix = prefix.split_off(start.expect("the template has the edited image"));
            if number == 0 {
                self.prefixes.push(prefix);
            }
            self.suffixes.push(suffix);
            self.groups.push(index);
            self.edited_tokens
                .push(edit.grid.tokens(self.image.merge_size));
        }
    }

    fn place(&mut self, patches: Patches) -> Placed {
        let placed = Placed {
            grid: patches.grid,
            first_feature: self.features,
        };
        self.features += patches.grid.tokens(self.image.merge_size);
        self.pixel_values.extend(patches.values);
        self.grids.push(patches.grid);
        placed
    }

    /// All tokens of a judgement, an image being as many as its grid has.
    fn row(&self, ids: &[u32], images: &[Placed]) -> Row {
        let mut expanded = Vec::new();
        let mut slots = Vec::new();
        let mut next = images.iter();
        for id in ids {
            if *id != self.image.token_id {
                expanded.push(*id);
                slots.push(Slot::Text(*id));
                continue;
            }
            let placed = next.next().expect("no markup but the template's");
            let tokens = placed.grid.tokens(self.image.merge_size);
            expanded.extend(std::iter::repeat_n(*id, tokens));
            slots.extend((0..tokens).map(|token| Slot::Image(placed.first_feature + token)));
        }
        let grids: Vec<Grid> = images.iter().map(|placed| placed.grid).collect();
        let positions = TokenRows::unpadded(&[expanded]).rope_index(&grids, self.image);
        Row { slots, positions }
    }

    fn finish(self) -> JudgeInputs {
        JudgeInputs {
            pixel_values: self.pixel_values,
            grids: self.grids,
            prefix: Rows::padded(self.prefixes, Padding::Left),
            suffix: Rows::padded(self.suffixes, Padding::Right),
            groups: self.groups,
            edited_tokens: self.edited_tokens,
            image: self.image,
        }
    }
}

impl Row {
    fn split_off(&mut self, at: usize) -> Self {
        Self {
            slots: self.slots.split_off(at),
            positions: self.positions.split_off(at),
        }
    }
}

fn is_of(slot: Slot, image: Placed) -> bool {
    matches!(slot, Slot::Image(feature) if feature >= image.first_feature)
}
