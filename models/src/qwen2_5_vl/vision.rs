//! The vision tower: `Qwen2_5_VisionTransformerPretrainedModel`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::config::VisionConfig;
use super::grid::{Grid, Windows, frame_boundaries, patch_positions};
use super::layers::{LayerInit, Mlp, rows};
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
        let windows = Windows::new(grids, &self.config);
        let frames = Segments::new(frame_boundaries(grids));
        let window_segments = Segments::new(windows.boundaries.clone());
        let x = self.patch_embed.forward(pixel_values);
        let rope = self.rope(grids, &windows, &x);
        let mut x = self.sorted(x, &windows);
        for (index, block) in self.blocks.iter().enumerate() {
            let full = self.config.fullatt_block_indexes.contains(&index);
            let segments = if full { &frames } else { &window_segments };
            x = block.forward(x, &rope, segments);
        }
        let merged = self.merger.forward(x, self.config.merge_unit());
        if windows.in_order() {
            return merged;
        }
        rows(merged, &windows.places())
    }

    /// Positions of the patches, in window order.
    fn rope(&self, grids: &[Grid], windows: &Windows, x: &Tensor<2>) -> RopeTable {
        let unit = self.config.merge_unit();
        let positions = patch_positions(grids, self.config.spatial_merge_size);
        let sorted: Vec<[usize; 2]> = windows
            .order
            .iter()
            .flat_map(|token| &positions[token * unit..(token + 1) * unit])
            .copied()
            .collect();
        RopeTable::vision(&sorted, self.config.head_dim(), &x.device(), x.dtype())
    }

    /// Brings the patches of each merged token into window order.
    fn sorted(&self, x: Tensor<2>, windows: &Windows) -> Tensor<2> {
        if windows.in_order() {
            return x;
        }
        let [patches, hidden] = x.dims();
        let unit = self.config.merge_unit();
        let x = x.reshape([patches / unit, unit * hidden]);
        rows(x, &windows.order).reshape([patches, hidden])
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
    fn forward(&self, x: Tensor<2>, rope: &RopeTable, segments: &Segments) -> Tensor<2> {
        let attended = self
            .attn
            .forward(self.norm1.forward(x.clone()), rope, segments);
        let x = x + attended;
        let mlp = self.mlp.forward(self.norm2.forward(x.clone()));
        x + mlp
    }
}

impl VisionAttention {
    /// # Shapes
    /// * x and output: `[N, hidden]`
    fn forward(&self, x: Tensor<2>, rope: &RopeTable, segments: &Segments) -> Tensor<2> {
        let [patches, hidden] = x.dims();
        let (batch, length) = (segments.batch, patches / segments.batch);
        let head_dim = hidden / self.heads;
        let qkv = self.qkv.forward(x);
        let part = |index: usize| {
            let part = qkv.clone().narrow(1, index * hidden, hidden);
            ops::split_heads(part.reshape([batch, length, hidden]), self.heads)
        };
        let table = |t: &Tensor<3>| t.clone().reshape([batch, length, head_dim]);
        let (cos, sin) = (table(&rope.cos), table(&rope.sin));
        let q = ops::rope_half(part(0), cos.clone(), sin.clone());
        let k = ops::rope_half(part(1), cos, sin);
        let scale = (head_dim as f32).sqrt().recip();
        let out = ops::attention(q, k, part(2), &segments.mask, scale);
        self.proj.forward(out.reshape([patches, hidden]))
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

/// How attention is cut: segments of equal length become a batch, others a block-diagonal mask.
struct Segments {
    batch: usize,
    mask: AttentionMask,
}

impl Segments {
    fn new(boundaries: Vec<usize>) -> Self {
        let mut lengths = boundaries.windows(2).map(|ends| ends[1] - ends[0]);
        let first = lengths.next();
        if lengths.all(|length| Some(length) == first) {
            return Self {
                batch: boundaries.len() - 1,
                mask: AttentionMask::None,
            };
        }
        Self {
            batch: 1,
            mask: AttentionMask::Segments(boundaries),
        }
    }
}
