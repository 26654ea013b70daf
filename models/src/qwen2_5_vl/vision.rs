//! The vision tower: `Qwen2_5_VisionTransformerPretrainedModel`.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

use super::config::VisionConfig;
use super::grid::{Grid, Layout, Run, inverse, is_identity, patch_positions};
use super::layers::{LayerInit, Mlp, row_indices};
use super::rope::RopeTable;
use crate::init::Init;
use crate::layers::{Linear, RmsNorm};
use crate::ops::{self, AttentionMask};

/// Epsilon of every norm in the tower; no field of the configuration.
const NORM_EPS: f64 = 1e-6;

/// Turns patches into tokens of the language model.
#[derive(Module, Debug)]
pub struct VisionTower {
    patch_embed: PatchEmbed,
    blocks: Vec<VisionBlock>,
    merger: PatchMerger,
    #[module(skip)]
    config: VisionConfig,
}

#[derive(Module, Debug)]
struct PatchEmbed {
    proj: PatchProjection,
}

/// A convolution whose stride is its kernel: a linear layer over flattened patches.
#[derive(Module, Debug)]
struct PatchProjection {
    /// `[hidden, channels, frames, patch, patch]`
    weight: Param<Tensor<5>>,
}

#[derive(Module, Debug)]
struct VisionBlock {
    norm1: RmsNorm,
    norm2: RmsNorm,
    attn: VisionAttention,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct VisionAttention {
    qkv: Linear,
    proj: Linear,
    #[module(skip)]
    heads: usize,
}

#[derive(Module, Debug)]
struct PatchMerger {
    ln_q: RmsNorm,
    mlp: MergerMlp,
}

#[derive(Module, Debug)]
struct MergerMlp {
    fc1: Linear,
    fc2: Linear,
}

impl VisionTower {
    /// A tower with random weights.
    pub fn init(config: &VisionConfig, init: &Init) -> Self {
        let layers = &LayerInit {
            init,
            std: config.initializer_range,
        };
        Self {
            patch_embed: PatchEmbed::init(config, layers),
            blocks: (0..config.depth)
                .map(|_| VisionBlock::init(config, layers))
                .collect(),
            merger: PatchMerger::init(config, layers),
            config: config.clone(),
        }
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Encodes all images at once; each attends to itself alone.
    ///
    /// # Shapes
    /// * pixel_values: `[N, channels * frames * patch * patch]`, N the sum of the grids' patches
    /// * output: `[N / merge^2, out_hidden]`, image after image, row after row
    pub fn forward(&self, pixel_values: Tensor<2>, grids: &[Grid]) -> Tensor<2> {
        let layout = Layout::windows(grids, &self.config);
        let x = self.patch_embed.forward(pixel_values);
        let windows = Segments::new(&layout, &layout, grids, &self.config, &x);
        let whole = Layout::frames(grids, &self.config);
        let frames = Segments::new(&whole, &layout, grids, &self.config, &x);
        let device = x.device();
        let mut x = gathered(x, &Order::new(&layout.order, &device));
        for (index, block) in self.blocks.iter().enumerate() {
            let full = self.config.fullatt_block_indexes.contains(&index);
            x = block.forward(x, if full { &frames } else { &windows });
        }
        let merged = self.merger.forward(x, self.config.merge_unit());
        gathered(merged, &Order::new(&layout.places(), &device))
    }
}

/// An order of the merged tokens, on the device once for all layers; none where it changes nothing.
struct Order(Option<Tensor<1, Int>>);

impl Order {
    fn new(order: &[usize], device: &Device) -> Self {
        Self((!is_identity(order)).then(|| row_indices(order, device)))
    }
}

/// Brings the rows of each merged token into another order.
///
/// # Shapes
/// * x and output: `[order.len() * n, D]`, n rows to a token
fn gathered(x: Tensor<2>, order: &Order) -> Tensor<2> {
    let Order(Some(order)) = order else {
        return x;
    };
    let ([all, features], [tokens]) = (x.dims(), order.dims());
    let x = x.reshape([tokens, all / tokens * features]);
    x.select(0, order.clone()).reshape([all, features])
}

/// Which patches attend to each other, and their positions.
struct Segments {
    runs: Vec<Run>,
    rope: RopeTable,
    /// From the order of the hidden states to the segments' own, and back.
    there: Order,
    back: Order,
}

impl Segments {
    /// The segments of `layout`, for hidden states in the order of `base`.
    fn new(
        layout: &Layout,
        base: &Layout,
        grids: &[Grid],
        config: &VisionConfig,
        x: &Tensor<2>,
    ) -> Self {
        let unit = config.merge_unit();
        let positions = patch_positions(grids, config.spatial_merge_size);
        let tokens = layout.order.iter();
        let positions: Vec<[usize; 2]> = tokens
            .flat_map(|token| &positions[token * unit..(token + 1) * unit])
            .copied()
            .collect();
        let places = base.places();
        let order: Vec<usize> = layout.order.iter().map(|token| places[*token]).collect();
        let device = x.device();
        Self {
            runs: layout.runs.clone(),
            rope: RopeTable::vision(&positions, config.head_dim(), &device, x.dtype()),
            there: Order::new(&order, &device),
            back: Order::new(&inverse(&order), &device),
        }
    }
}

impl PatchEmbed {
    fn init(config: &VisionConfig, layers: &LayerInit<'_>) -> Self {
        let patch = config.patch_size;
        let shape = [
            config.hidden_size,
            config.in_channels,
            config.temporal_patch_size,
            patch,
            patch,
        ];
        Self {
            proj: PatchProjection {
                weight: layers.init.normal(shape, layers.std),
            },
        }
    }

    fn forward(&self, pixel_values: Tensor<2>) -> Tensor<2> {
        let weight = self.proj.weight.val();
        let [hidden, ..] = weight.dims();
        let [_, features] = pixel_values.dims();
        let x = pixel_values.cast(weight.dtype());
        ops::linear(x, weight.reshape([hidden, features]), None)
    }
}

impl VisionBlock {
    fn init(config: &VisionConfig, layers: &LayerInit<'_>) -> Self {
        let hidden = config.hidden_size;
        Self {
            norm1: layers.norm(hidden, NORM_EPS),
            norm2: layers.norm(hidden, NORM_EPS),
            attn: VisionAttention {
                qkv: layers.linear(hidden, 3 * hidden),
                proj: layers.linear(hidden, hidden),
                heads: config.num_heads,
            },
            mlp: layers.mlp_with_bias(hidden, config.intermediate_size),
        }
    }

    /// # Shapes
    /// * x and output: `[N, hidden]`
    fn forward(&self, x: Tensor<2>, segments: &Segments) -> Tensor<2> {
        let x = x.clone() + self.attn.forward(self.norm1.forward(x), segments);
        x.clone() + self.mlp.forward(self.norm2.forward(x))
    }
}

impl VisionAttention {
    /// # Shapes
    /// * x and output: `[N, hidden]`
    fn forward(&self, x: Tensor<2>, segments: &Segments) -> Tensor<2> {
        let qkv = self.qkv.forward(gathered(x, &segments.there));
        let mut first = 0;
        let attended = segments.runs.iter().map(|run| {
            let attended = self.attend(qkv.clone(), &segments.rope, first, *run);
            first += run.count * run.length;
            attended
        });
        let attended: Vec<Tensor<2>> = attended.collect();
        let out = match <[_; 1]>::try_from(attended) {
            Ok([whole]) => whole,
            Err(parts) => Tensor::cat(parts, 0),
        };
        gathered(self.proj.forward(out), &segments.back)
    }

    /// Attention within each segment of a run, whose first patch is `first`.
    ///
    /// # Shapes
    /// * qkv: `[N, 3 hidden]`
    /// * output: `[run's patches, hidden]`
    fn attend(&self, qkv: Tensor<2>, rope: &RopeTable, first: usize, run: Run) -> Tensor<2> {
        let [_, features] = qkv.dims();
        let (hidden, patches) = (features / 3, run.count * run.length);
        let head_dim = hidden / self.heads;
        let part = |index: usize| {
            let part = qkv
                .clone()
                .slice([first..first + patches, index * hidden..(index + 1) * hidden]);
            ops::split_heads(part.reshape([run.count, run.length, hidden]), self.heads)
        };
        let table = |table: &Tensor<3>| {
            let table = table.clone().narrow(1, first, patches);
            table.reshape([run.count, run.length, head_dim])
        };
        let (cos, sin) = (table(&rope.cos), table(&rope.sin));
        let q = ops::rope_half(part(0), cos.clone(), sin.clone());
        let k = ops::rope_half(part(1), cos, sin);
        let scale = (head_dim as f32).sqrt().recip();
        let out = ops::attention(q, k, part(2), &AttentionMask::None, scale);
        out.reshape([patches, hidden])
    }
}

impl PatchMerger {
    fn init(config: &VisionConfig, layers: &LayerInit<'_>) -> Self {
        let merged = config.hidden_size * config.merge_unit();
        Self {
            ln_q: layers.norm(config.hidden_size, NORM_EPS),
            mlp: MergerMlp {
                fc1: layers.linear(merged, merged),
                fc2: layers.linear(merged, config.out_hidden_size),
            },
        }
    }

    /// # Shapes
    /// * x: `[N, hidden]`
    /// * output: `[N / unit, out_hidden]`
    fn forward(&self, x: Tensor<2>, unit: usize) -> Tensor<2> {
        let [patches, hidden] = x.dims();
        let x = self
            .ln_q
            .forward(x)
            .reshape([patches / unit, unit * hidden]);
        self.mlp.fc2.forward(ops::gelu_erf(self.mlp.fc1.forward(x)))
    }
}
