//! A transformer as a stack of blocks: evaluated as a whole, or so that gradients come back a block at a time.
//!
//! Going back a block at a time needs no graph through the stack. The forward pass runs off the autodiff device and
//! keeps what each block was given. On the way back, from the last block to the first, a block is computed again with
//! its input and its factors as leaves; a number whose gradient by the block's output is the one that came back
//! ([`ops::surrogate`]) gives what the block's factors get and what the block below goes on with. Nothing outside of the blocks is trained
//! ([`Blocks::slots`]), and what is given to all of them, as the embedded time, is constant.

use std::fmt;
use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};

use super::stream::kept_tokens;
use crate::lora::{Checkpointing, LoraAdapter, LoraGradient, Projection, Tracked, Trained};
use crate::ops;

/// What goes from block to block.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    /// Image tokens, or all tokens once text has joined them: `[B, S, D]`
    pub(crate) x: Tensor<3>,
    /// Text tokens, as long as they have a stream of their own: `[B, T, D]`
    pub(crate) context: Option<Tensor<3>>,
}

/// The gradients of [`Tokens`], where there are any.
struct TokenGradients {
    x: Option<Tensor<3>>,
    context: Option<Tensor<3>>,
}

/// The blocks of a transformer, with all that they are given in one evaluation but the tokens and the adapter.
pub(crate) trait Blocks {
    /// Number of blocks.
    fn count(&self) -> usize;

    /// The projections of a block. All of a model's projections are a block's.
    fn slots(&self, block: usize) -> Range<usize>;

    /// What a block makes of the tokens.
    fn forward(&self, block: usize, tokens: Tokens, adapter: Option<&LoraAdapter>) -> Tokens;

    /// The velocity, of what the last block made.
    fn velocity(&self, tokens: Tokens) -> Tensor<3>;
}

/// One evaluation of a transformer: its blocks, and the tokens that enter the first.
///
/// Sampling, frozen policies and training differ only in how they run it.
pub struct Evaluation<'a> {
    blocks: Box<dyn Blocks + 'a>,
    tokens: Tokens,
}

impl<'a> Evaluation<'a> {
    pub(crate) fn new(blocks: impl Blocks + 'a, tokens: Tokens) -> Self {
        Self {
            blocks: Box::new(blocks),
            tokens,
        }
    }

    /// The velocity.
    ///
    /// # Shapes
    /// * output: `[B, kept, out]`
    pub fn velocity(self, adapter: Option<&LoraAdapter>) -> Tensor<3> {
        let Self { blocks, tokens } = self;
        let forward = |tokens, block| blocks.forward(block, tokens, adapter);
        blocks.velocity((0..blocks.count()).fold(tokens, forward))
    }

    /// The velocity, with the way back to an adapter that is being trained.
    ///
    /// # Shapes
    /// As [`Evaluation::velocity`].
    pub fn track(self, trained: Trained<'a>) -> Tracked<'a> {
        let adapter = trained.adapter;
        match trained.checkpointing {
            Checkpointing::None => Tracked::whole(self.velocity(Some(adapter)), adapter),
            Checkpointing::Block => by_block(self, adapter),
        }
    }
}

impl fmt::Debug for Evaluation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evaluation")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// The projections whose names begin with `path`: a module's are neighbours.
pub(crate) fn slots_under(projections: &[Projection], path: &str) -> Range<usize> {
    let under = |projection: &Projection| {
        let rest = projection.name.strip_prefix(path);
        rest.is_some_and(|rest| rest.starts_with('.'))
    };
    let start = projections.iter().position(under).unwrap_or(0);
    let count = projections[start..].iter().take_while(|p| under(p)).count();
    start..start + count
}

fn by_block<'a>(evaluation: Evaluation<'a>, adapter: &'a LoraAdapter) -> Tracked<'a> {
    let Evaluation { blocks, mut tokens } = evaluation;
    // Off the autodiff device: no op of this pass leaves a graph behind.
    let plain = adapter.valid();
    let lowest = lowest_trained(&*blocks, adapter);
    let mut inputs = Vec::new();
    for block in 0..blocks.count() {
        if block >= lowest {
            inputs.push(tokens.clone());
        }
        tokens = blocks.forward(block, tokens, Some(&plain));
    }
    // The loss is differentiated down to here; its graph holds the output layers and no block.
    let output = tokens.leaves();
    let velocity = blocks.velocity(output.clone());
    Tracked::new(velocity, move |gradients| {
        let trail = Trail {
            blocks,
            adapter,
            lowest,
            inputs,
        };
        trail.back(output.gradients(gradients))
    })
}

/// The first block that the adapter changes: no gradient is wanted below it.
fn lowest_trained(blocks: &dyn Blocks, adapter: &LoraAdapter) -> usize {
    let trained = |block: &usize| {
        blocks
            .slots(*block)
            .any(|slot| adapter.pair(slot).is_some())
    };
    let count = blocks.count();
    (0..count).find(trained).unwrap_or(count)
}

/// What a forward pass left behind.
struct Trail<'a> {
    blocks: Box<dyn Blocks + 'a>,
    adapter: &'a LoraAdapter,
    lowest: usize,
    /// What the blocks were given, from the lowest trained one on.
    inputs: Vec<Tokens>,
}

impl<'a> Trail<'a> {
    /// The gradient of the factors, from that of the last block's output.
    fn back(mut self, mut output_gradients: TokenGradients) -> LoraGradient<'a> {
        let mut factors = LoraGradient::zero(self.adapter);
        // Popping frees a block's input as soon as it has served.
        while let Some(input) = self.inputs.pop() {
            let index = self.inputs.len();
            let block = self.lowest + index;
            // The lowest block's input stays a constant, as it is where all is one graph.
            let input = if index > 0 { input.leaves() } else { input };
            let output = self
                .blocks
                .forward(block, input.clone(), Some(self.adapter));
            let Some(surrogate) = output.surrogate(output_gradients) else {
                break;
            };
            let gradients = surrogate.backward();
            factors.take(self.blocks.slots(block), &gradients);
            if index == 0 {
                break;
            }
            output_gradients = input.gradients(&gradients);
        }
        factors
    }
}

impl Tokens {
    /// All tokens in one stream, text first.
    ///
    /// # Shapes
    /// * output: `[B, T + S, D]`
    pub(crate) fn joined(self) -> Tensor<3> {
        match self.context {
            Some(context) => Tensor::cat(vec![context, self.x], 1),
            None => self.x,
        }
    }

    /// The first `kept` image tokens, of a stack that may have had no block to leave the others out.
    ///
    /// # Shapes
    /// * output: `[B, kept, D]`
    pub(crate) fn kept(self, kept: usize) -> Tensor<3> {
        kept_tokens(self.x, &(0..kept))
    }

    /// The same numbers as leaves of a new graph.
    fn leaves(self) -> Self {
        let leaf = |tensor| Tensor::from_inner(tensor).require_grad();
        Self {
            x: leaf(self.x),
            context: self.context.map(leaf),
        }
    }

    /// Of leaves.
    fn gradients(&self, gradients: &Gradients) -> TokenGradients {
        TokenGradients {
            x: self.x.grad(gradients),
            context: self.context.as_ref().and_then(|x| x.grad(gradients)),
        }
    }

    /// A number whose gradient with respect to the tokens is the given one; none if that is none.
    fn surrogate(self, gradients: TokenGradients) -> Option<Tensor<1>> {
        let pairs = [
            (Some(self.x), gradients.x),
            (self.context, gradients.context),
        ];
        let numbers = pairs.into_iter().filter_map(|(tokens, gradient)| {
            let (tokens, gradient) = (tokens?, gradient?);
            Some(ops::surrogate(tokens, Tensor::from_inner(gradient)))
        });
        numbers.reduce(|a, b| a + b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_at_a_dot() {
        let projection = |name: &str| Projection {
            name: name.into(),
            in_features: 1,
            out_features: 1,
        };
        let projections = ["blocks.1.a", "blocks.1.b", "blocks.10.a"].map(projection);
        assert_eq!(slots_under(&projections, "blocks.1"), 0..2);
        assert_eq!(slots_under(&projections, "blocks.10"), 2..3);
        assert!(slots_under(&projections, "blocks.2").is_empty());
    }
}
