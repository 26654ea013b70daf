//! Attention, forward and back, with every kind of range.

use super::*;

struct Problem {
    batch: usize,
    heads: usize,
    key_heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    ranges: Option<Vec<[usize; 2]>>,
}

impl Problem {
    /// Of row-major [B, H, S, hd] numbers; the output is [B, S, H * hd].
    fn plain(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let Self {
            batch,
            heads,
            key_heads,
            queries,
            keys,
            width,
            ..
        } = *self;
        let mut y = vec![0.0; batch * queries * heads * width];
        for (b, h, i) in (0..batch)
            .flat_map(|b| (0..heads).flat_map(move |h| (0..queries).map(move |i| (b, h, i))))
        {
            let key_head = h / (heads / key_heads);
            let q = &q[((b * heads + h) * queries + i) * width..][..width];
            let row = |x: &[f64], j: usize| {
                x[((b * key_heads + key_head) * keys + j) * width..][..width].to_vec()
            };
            let [first, last] = self
                .ranges
                .as_ref()
                .map_or([0, keys], |ranges| ranges[b * queries + i]);
            let scores: Vec<f64> = (first..last)
                .map(|j| {
                    q.iter().zip(row(k, j)).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt()
                })
                .collect();
            let largest = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
            let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            for (j, score) in (first..last).zip(&scores) {
                let share = (score - largest).exp() / sum;
                for (y, v) in y[((b * queries + i) * heads + h) * width..][..width]
                    .iter_mut()
                    .zip(row(v, j))
                {
                    *y += share * v;
                }
            }
        }
        y
    }

    fn key_ranges(&self) -> Option<Keys> {
        let ranges = self.ranges.as_ref()?;
        let side = |side: usize| {
            let values: Vec<u32> = ranges.iter().map(|range| range[side] as u32).collect();
            let data = TensorData::new(values, [self.batch, self.queries]);
            <CubeBackend as burn_backend::ops::IntTensorOps<CubeBackend>>::int_from_data(
                data,
                &device(),
            )
        };
        Some(Keys {
            first: side(0),
            last: side(1),
        })
    }

    fn check(&self) {
        let Self {
            batch,
            heads,
            key_heads,
            queries,
            keys,
            width,
            ..
        } = *self;
        let (q, k) = (
            numbers(batch * heads * queries * width, 1),
            numbers(batch * key_heads * keys * width, 2),
        );
        let v = numbers(k.len(), 3);
        let expected = self.plain(&wide(&q), &wide(&k), &wide(&v));
        // Queries as a projection leaves them: heads side by side in each token.
        let q_tokens = permute(tensor(&q, [batch, heads, queries, width]), &[0, 2, 1, 3]);
        let q_tokens = reshape(q_tokens, [batch, queries, heads, width].into());
        let q_view = permute(q_tokens, &[0, 2, 1, 3]);
        let (k_tensor, v_tensor) = (
            tensor(&k, [batch, key_heads, keys, width]),
            tensor(&v, [batch, key_heads, keys, width]),
        );
        let scale = (width as f32).sqrt().recip();
        let ranges = self.key_ranges();
        let (y, log_sums) = attention(
            q_view.clone(),
            k_tensor.clone(),
            v_tensor.clone(),
            ranges.as_ref(),
            scale,
        );
        assert_close("output", y.clone(), &expected);
        if heads != key_heads {
            return;
        }
        let grad = numbers(expected.len(), 4);
        let upstream = tensor(&grad, [batch, queries, heads * width]);
        let [wide_q, wide_k, wide_v, wide_grad] = [&q, &k, &v, &grad].map(|x| wide(x));
        let of_q = slope(&wide_q, &wide_grad, |q| self.plain(q, &wide_k, &wide_v));
        let of_k = slope(&wide_k, &wide_grad, |k| self.plain(&wide_q, k, &wide_v));
        let of_v = slope(&wide_v, &wide_grad, |v| self.plain(&wide_q, &wide_k, v));
        // All queries in one block, and in several.
        for at_once in [queries, queries.div_ceil(3)] {
            let grads = attention_backward(
                q_view.clone(),
                k_tensor.clone(),
                v_tensor.clone(),
                y.clone(),
                log_sums.clone(),
                upstream.clone(),
                ranges.as_ref(),
                scale,
                at_once,
            );
            assert_close("gradient of q", grads.q, &of_q);
            assert_close("gradient of k", grads.k, &of_k);
            assert_close("gradient of v", grads.v, &of_v);
        }
    }
}

#[test]
fn attention_keeps_no_scores_and_is_the_same() {
    let all = Problem {
        batch: 2,
        heads: 2,
        key_heads: 2,
        queries: 21,
        keys: 37,
        width: 16,
        ranges: None,
    };
    all.check();
    Problem {
        width: 32,
        heads: 1,
        key_heads: 1,
        queries: 5,
        keys: 3,
        ..all
    }
    .check();
    // Four query heads on two key heads.
    Problem {
        heads: 4,
        key_heads: 2,
        batch: 1,
        queries: 17,
        keys: 17,
        width: 80,
        ranges: None,
    }
    .check();
}

#[test]
fn queries_see_their_range_of_keys() {
    let causal: Vec<[usize; 2]> = (0..2).flat_map(|_| (0..20).map(|i| [0, i + 5])).collect();
    let sizes = Problem {
        batch: 2,
        heads: 2,
        key_heads: 2,
        queries: 20,
        keys: 24,
        width: 16,
        ranges: Some(causal),
    };
    sizes.check();
    let padded = [[3, 24], [0, 9]]
        .iter()
        .flat_map(|range| vec![*range; 20])
        .collect();
    Problem {
        ranges: Some(padded),
        ..sizes
    }
    .check();
    // The first sees nothing at all.
    let windows = (0..40)
        .map(|i| {
            if i % 20 < 4 {
                [0, 0]
            } else if i % 20 < 11 {
                [0, 10]
            } else {
                [10, 24]
            }
        })
        .collect();
    Problem {
        ranges: Some(windows),
        ..sizes
    }
    .check();
}
