use burn::module::Module;
use burn::tensor::Tensor;

use super::modulation::EPS;
use super::rotary::JointRotary;
use super::stream::Stream;
use crate::layers::RmsNorm;
use crate::lora::{LoraAdapter, LoraLinear, Scope};
use crate::ops::{AttentionMask, LinearOutput};

/// Attention of a double-stream block: both streams have their own weights and attend to both.
#[derive(Module, Debug)]
pub(crate) struct JointAttention {
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    to_q: LoraLinear,
    to_k: LoraLinear,
    to_v: LoraLinear,
    to_out: LoraLinear,
    norm_added_q: RmsNorm,
    norm_added_k: RmsNorm,
    add_q_proj: LoraLinear,
    add_k_proj: LoraLinear,
    add_v_proj: LoraLinear,
    to_add_out: LoraLinear,
    heads: usize,
}

impl JointAttention {
    pub(crate) fn init(heads: usize, head_dim: usize, scope: &Scope<'_>) -> Self {
        let dim = heads * head_dim;
        let norm = || RmsNorm::init(head_dim, EPS, scope.init());
        Self {
            norm_q: norm(),
            norm_k: norm(),
            to_q: scope.linear("to_q", dim, dim),
            to_k: scope.linear("to_k", dim, dim),
            to_v: scope.linear("to_v", dim, dim),
            to_out: scope.linear("to_out.0", dim, dim),
            norm_added_q: norm(),
            norm_added_k: norm(),
            add_q_proj: scope.linear("add_q_proj", dim, dim),
            add_k_proj: scope.linear("add_k_proj", dim, dim),
            add_v_proj: scope.linear("add_v_proj", dim, dim),
            to_add_out: scope.linear("to_add_out", dim, dim),
            heads,
        }
    }

    /// Outputs of the image tokens and of the text tokens, all of which are real.
    ///
    /// # Shapes
    /// * x and first output: `[B, S, D]`
    /// * context and second output: `[B, T, D]`
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        context: Tensor<3>,
        rotary: JointRotary<'_>,
        adapter: Option<&LoraAdapter>,
    ) -> (LinearOutput<3>, LinearOutput<3>) {
        let [[_, image, _], [_, text, _]] = [x.dims(), context.dims()];
        let added = self
            .text_stream()
            .qkv(context, &(0..text), rotary.txt, adapter);
        let own = self.image_stream().qkv(x, &(0..image), rotary.img, adapter);
        // Text first, as in the reference: the order of keys is the order of sums.
        let joint = added.concat(own).attend(&AttentionMask::None);
        let context = joint.clone().narrow(1, 0, text);
        let x = joint.narrow(1, text, image);
        (
            self.to_out.output(x, adapter),
            self.to_add_out.output(context, adapter),
        )
    }

    /// As [`JointAttention::forward`], with text that is padded at its end: the keys are the image's, then the
    /// text's, of which `mask` hides the padding.
    ///
    /// # Shapes
    /// As [`JointAttention::forward`].
    pub(crate) fn forward_masked(
        &self,
        x: Tensor<3>,
        context: Tensor<3>,
        rotary: JointRotary<'_>,
        mask: &AttentionMask,
        adapter: Option<&LoraAdapter>,
    ) -> (LinearOutput<3>, LinearOutput<3>) {
        let [[_, image, _], [_, text, _]] = [x.dims(), context.dims()];
        let own = self.image_stream().qkv(x, &(0..image), rotary.img, adapter);
        let added = self
            .text_stream()
            .qkv(context, &(0..text), rotary.txt, adapter);
        // Text last, unlike in the reference, so that all that a mask hides is the end of a row.
        let joint = own.concat(added).attend(mask);
        let x = joint.clone().narrow(1, 0, image);
        let context = joint.narrow(1, image, text);
        (
            self.to_out.output(x, adapter),
            self.to_add_out.output(context, adapter),
        )
    }

    /// As [`JointAttention::forward_masked`], of the first `kept` image tokens alone.
    ///
    /// # Shapes
    /// * x: `[B, S, D]`, context: `[B, T, D]`
    /// * output: `[B, kept, D]`
    pub(crate) fn forward_image(
        &self,
        x: Tensor<3>,
        kept: usize,
        context: Tensor<3>,
        rotary: JointRotary<'_>,
        mask: &AttentionMask,
        adapter: Option<&LoraAdapter>,
    ) -> LinearOutput<3> {
        let own = self.image_stream().qkv(x, &(0..kept), rotary.img, adapter);
        let added = self.text_stream().key_value(context, rotary.txt, adapter);
        let x = own.with_keys(added).attend(mask);
        self.to_out.output(x, adapter)
    }

    fn image_stream(&self) -> Stream<'_> {
        Stream {
            q: (&self.to_q, &self.norm_q),
            k: (&self.to_k, &self.norm_k),
            v: &self.to_v,
            heads: self.heads,
        }
    }

    fn text_stream(&self) -> Stream<'_> {
        Stream {
            q: (&self.add_q_proj, &self.norm_added_q),
            k: (&self.add_k_proj, &self.norm_added_k),
            v: &self.add_v_proj,
            heads: self.heads,
        }
    }
}
