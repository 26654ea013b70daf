//! Attention under every mask.

use burn::prelude::*;

use super::check;
use crate::ops::{self, AttentionMask, plain};

struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
}

impl Case {
    fn square(batch: usize, heads: usize, length: usize, width: usize) -> Self {
        Self {
            batch,
            heads,
            kv_heads: heads,
            queries: length,
            keys: length,
            width,
        }
    }

    fn check(&self, mask: AttentionMask) {
        let Self {
            batch,
            heads,
            kv_heads,
            queries,
            keys,
            width,
        } = *self;
        let q_len = batch * heads * queries * width;
        let k_len = batch * kv_heads * keys * width;
        let contiguous = |x: &[Tensor<1>]| {
            let k = |i: usize| x[i].clone().reshape([batch, kv_heads, keys, width]);
            let q = x[0].clone().reshape([batch, heads, queries, width]);
            (q, k(1), k(2))
        };
        // As projections give them: positions first, then heads.
        let split = |x: &[Tensor<1>]| {
            let k = |i: usize| {
                x[i].clone()
                    .reshape([batch, keys, kv_heads, width])
                    .swap_dims(1, 2)
            };
            let q = x[0]
                .clone()
                .reshape([batch, queries, heads, width])
                .swap_dims(1, 2);
            (q, k(1), k(2))
        };
        let scale = 1.0 / (width as f32).sqrt();
        type Views<'a> = &'a (dyn Fn(&[Tensor<1>]) -> (Tensor<4>, Tensor<4>, Tensor<4>) + Sync);
        for views in [&contiguous as Views, &split] {
            let fused = |x: &[Tensor<1>]| {
                let (q, k, v) = views(x);
                ops::attention(q, k, v, &mask, scale).flatten(0, 2)
            };
            let reference = |x: &[Tensor<1>]| {
                let (q, k, v) = views(x);
                plain::attention(q, k, v, None, &mask, scale).flatten(0, 2)
            };
            let name = format!("attention {queries} x {keys} x {width}, {mask:?}");
            check(&name, &[q_len, k_len, k_len], &fused, &reference);
        }
    }
}

/// What devices without our kernels use where there is no mask.
#[test]
fn the_backends_own_attention_agrees() {
    let shape = |x: &[Tensor<1>], i: usize, heads: usize, length: usize| {
        x[i].clone().reshape([2, heads, length, 8])
    };
    let views = move |x: &[Tensor<1>]| {
        let (k, v) = (shape(x, 1, 2, 7), shape(x, 2, 2, 7));
        (shape(x, 0, 4, 5), k, v)
    };
    let backend = |x: &[Tensor<1>]| {
        let (q, k, v) = views(x);
        plain::backend_attention(q, k, v, 0.3).flatten(0, 2)
    };
    let reference = |x: &[Tensor<1>]| {
        let (q, k, v) = views(x);
        plain::attention(q, k, v, None, &AttentionMask::None, 0.3).flatten(0, 2)
    };
    let (q_len, k_len) = (2 * 4 * 5 * 8, 2 * 2 * 7 * 8);
    check("backend", &[q_len, k_len, k_len], &backend, &reference);
}

#[test]
fn unmasked_attention_agrees() {
    for (length, width) in [(1, 2), (5, 7), (33, 32), (150, 32), (200, 40)] {
        Case::square(2, 3, length, width).check(AttentionMask::None);
    }
}

#[test]
fn grouped_cross_attention_agrees() {
    let case = Case {
        batch: 2,
        heads: 6,
        kv_heads: 2,
        queries: 37,
        keys: 101,
        width: 16,
    };
    case.check(AttentionMask::None);
    case.check(AttentionMask::Causal);
    case.check(AttentionMask::KeyPadding {
        lengths: vec![101, 3],
    });
}

#[test]
fn causal_attention_agrees() {
    Case::square(1, 2, 130, 24).check(AttentionMask::Causal);
}

#[test]
fn padded_causal_attention_agrees() {
    let case = Case {
        kv_heads: 1,
        ..Case::square(3, 2, 110, 16)
    };
    case.check(AttentionMask::CausalKeyRange {
        start: vec![0, 40, 110],
        end: vec![70, 110, 110],
    });
}

#[test]
fn a_query_without_keys_gets_zeros() {
    Case::square(2, 2, 9, 8).check(AttentionMask::KeyPadding {
        lengths: vec![0, 9],
    });
}

#[test]
fn segments_see_themselves_only() {
    let case = Case::square(2, 2, 140, 16);
    case.check(AttentionMask::Segments(vec![0, 64, 64, 65, 129, 140]));
}

#[test]
fn large_scores_do_not_overflow() {
    let device = Device::flex();
    let row = |values: [f32; 2]| Tensor::<1>::from_floats(values, &device).reshape([1, 1, 2, 1]);
    let q = row([300.0, -300.0]);
    let out = ops::attention(
        q,
        row([1.0, -1.0]),
        row([2.0, 5.0]),
        &AttentionMask::None,
        1.0,
    );
    assert_eq!(super::host(out.flatten(0, 2)), [2.0, 5.0]);
}
