//! The forward pass. A cube has some queries of one head and goes through the keys, tile by tile; a plane has sixteen of the
//! queries, and its units have the scores where the tensor cores' `mma.m16n8k16` puts them (PTX ISA, "Matrix fragments
//! for mma.m16n8k16"). Where there are none, units compute the same numbers from shared memory.

use burn_backend::DType;
use burn_backend::cubecl::dtype_to_elem_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::tile::{Layout, load_keys, load_rows, load_values, pair};
use super::{KeyArgs, Keys, Sizes, dense_heads};
use crate::rows::{address_type, empty, vector_size};

/// Stands for minus infinity: of two infinities, the difference is no number.
pub(super) const MASKED: f32 = -1e30;
/// Log-sum-exp of a query that sees nothing, so that no score has any probability.
pub(super) const NOTHING_SEEN: f32 = 1e30;

/// `softmax(scale q k^T) v`, heads joined again, and the log of the sum of exponentials of every row of scores.
///
/// Heads of any width that sixteen divides, 256 at most. With fewer key heads than query heads, neighbouring query heads share one.
///
/// # Shapes
/// - q: `[B, Hq, S, hd]`, k and v: `[B, Hkv, Sk, hd]`
/// - outputs: `[B, S, Hq * hd]`, and `[B, Hq, S]` in f32
pub fn attention(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    keys: Option<&Keys>,
    scale: f32,
) -> (CubeTensor, CubeTensor) {
    let client = q.client.clone();
    let (q, k, v) = (dense_heads(q), dense_heads(k), dense_heads(v));
    let sizes = Sizes::of(&q, &k);
    let output = empty(
        &q,
        [sizes.batch, sizes.queries, sizes.heads * sizes.width],
        q.dtype,
    );
    let log_sums = empty(&q, [sizes.batch, sizes.heads, sizes.queries], DType::F32);
    let keys = KeyArgs::of(keys, &log_sums);
    let layout = Layout::new(
        &client,
        q.dtype,
        sizes.width,
        has_tensor_cores(&q),
        keys.given,
    );
    let strides = [&q, &k, &v].map(|x| x.meta.strides()[..3].to_vec());
    let vector = vector_size(
        &client,
        &[q.dtype],
        &[],
        &[&strides.concat()[..], &[sizes.width]].concat(),
    );
    let stride = |tensor: usize, dim: usize| strides[tensor][dim] / vector;
    attention_kernel::launch(
        &client,
        CubeCount::Static(
            sizes.queries.div_ceil(layout.queries()) as u32,
            (sizes.batch * sizes.heads) as u32,
            1,
        ),
        CubeDim::new_1d(layout.units() as u32),
        address_type(&[&q, &k, &v, &output]),
        vector,
        q.clone().into_buffer_arg(),
        k.into_buffer_arg(),
        v.into_buffer_arg(),
        keys.first.into_buffer_arg(),
        keys.last.into_buffer_arg(),
        output.clone().into_buffer_arg(),
        log_sums.clone().into_buffer_arg(),
        sizes.heads,
        sizes.heads / sizes.key_heads,
        sizes.queries,
        sizes.keys,
        stride(0, 0),
        stride(0, 1),
        stride(0, 2),
        stride(1, 0),
        stride(1, 1),
        stride(1, 2),
        stride(2, 0),
        stride(2, 1),
        stride(2, 2),
        keys.batch_stride,
        keys.row_stride,
        scale,
        layout,
        dtype_to_elem_type(q.dtype),
    );
    (output, log_sums)
}

/// Whether the device multiplies such numbers by `mma.m16n8k16`, in planes of 32.
fn has_tensor_cores(x: &CubeTensor) -> bool {
    let properties = x.client.properties();
    let kind = match x.dtype {
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        _ => return false,
    };
    let narrow = ElemType::Float(kind);
    let config = MmaConfig {
        a_type: narrow,
        b_type: narrow,
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    };
    properties.hardware.plane_size_min == 32
        && properties.hardware.plane_size_max == 32
        && properties.features.matmul.mma.contains(&config)
}

#[cube(launch, address_type = "dynamic")]
fn attention_kernel<E: Float, N: Size>(
    q: &[Vector<E, N>],
    k: &[Vector<E, N>],
    v: &[Vector<E, N>],
    first_keys: &[u32],
    last_keys: &[u32],
    output: &mut [E],
    log_sums: &mut [f32],
    heads: usize,
    heads_per_key_head: usize,
    queries: usize,
    keys: usize,
    q_batch: usize,
    q_head: usize,
    q_row: usize,
    k_batch: usize,
    k_head: usize,
    k_row: usize,
    v_batch: usize,
    v_head: usize,
    v_row: usize,
    range_batch: usize,
    range_row: usize,
    scale: f32,
    #[comptime] layout: Layout,
    #[define(E)] _type: ElemType,
) {
    let (batch, head) = (CUBE_POS_Y as usize / heads, CUBE_POS_Y as usize % heads);
    let key_head = head / heads_per_key_head;
    let first_query = CUBE_POS_X as usize * comptime!(layout.queries());
    let (lane, plane) = (UNIT_POS as usize % 32, UNIT_POS as usize / 32);
    // Every unit has two rows of its plane's sixteen, and pairs of neighbouring columns in each group of eight.
    let (group, quad) = (lane / 4, lane % 4);
    let own_row = plane * 16 + group;

    let mut q_tile = Shared::<[Vector<E, Const<2>>]>::new_slice(comptime!(
        layout.queries() * layout.row_pitch()
    ));
    let mut k_tile =
        Shared::<[Vector<E, Const<2>>]>::new_slice(comptime!(layout.keys * layout.row_pitch()));
    let mut v_tile =
        Shared::<[Vector<E, Const<2>>]>::new_slice(comptime!(layout.width * layout.column_pitch()));
    let mut p_tile = Shared::<[Vector<E, Const<2>>]>::new_slice(comptime!(layout.probabilities()));
    let mut shared_sums = Shared::<[f32]>::new_slice(comptime!(layout.exchange()));

    let q_from = batch * q_batch + head * q_head;
    load_rows::<E, N>(
        q,
        &mut q_tile,
        q_from,
        q_row,
        first_query,
        queries,
        comptime!(layout.queries()),
        layout,
    );

    // The keys of this unit's two rows, and those of all rows of the cube.
    let (row_a, row_b) = (first_query + own_row, first_query + own_row + 8);
    let (mut first_a, mut first_b) = (0usize.runtime(), 0usize.runtime());
    let (mut last_a, mut last_b) = (keys, keys);
    let (mut first_of_all, mut last_of_all) = (0usize.runtime(), keys);
    if comptime!(layout.ranged) {
        let last_query = queries - 1;
        let (at_a, at_b) = (clamp_max(row_a, last_query), clamp_max(row_b, last_query));
        let ranges = batch * range_batch;
        first_a = first_keys[ranges + at_a * range_row] as usize;
        first_b = first_keys[ranges + at_b * range_row] as usize;
        last_a = last_keys[ranges + at_a * range_row] as usize;
        last_b = last_keys[ranges + at_b * range_row] as usize;
        let lowest = clamp_max(first_query + comptime!(layout.queries() - 1), last_query);
        first_of_all = first_keys[ranges + first_query * range_row] as usize;
        last_of_all = clamp_max(last_keys[ranges + lowest * range_row] as usize, keys);
    }

    let blocks = comptime!(layout.keys / 8);
    let columns = comptime!(layout.width / 8);
    let mut out = Array::<f32>::new(comptime!(columns * 4));
    #[unroll]
    for i in 0..comptime!(columns * 4) {
        out[i] = 0.0f32;
    }
    let (mut largest_a, mut largest_b) = (MASKED.runtime(), MASKED.runtime());
    let (mut sum_a, mut sum_b) = (0.0f32.runtime(), 0.0f32.runtime());

    let first_tile = first_of_all / layout.keys;
    let last_tile = last_of_all.div_ceil(layout.keys);
    for tile in first_tile..last_tile {
        let first_key = tile * layout.keys;
        sync_cube();
        let k_from = batch * k_batch + key_head * k_head;
        load_keys::<E, N>(k, &mut k_tile, k_from, k_row, first_key, keys, layout);
        let v_from = batch * v_batch + key_head * v_head;
        load_values::<E, N>(v, &mut v_tile, v_from, v_row, first_key, keys, layout);
        sync_cube();

        let mut scores = Array::<f32>::new(comptime!(blocks * 4));
        score::<E>(&q_tile, &k_tile, &mut scores, plane, group, quad, layout);

        let (mut tile_a, mut tile_b) = (MASKED.runtime(), MASKED.runtime());
        #[unroll]
        for block in 0..blocks {
            #[unroll]
            for i in 0..2usize {
                let key = first_key + comptime!(block * 8 + i) + quad * 2;
                let (at_a, at_b) = (comptime!(block * 4 + i), comptime!(block * 4 + 2 + i));
                let sees_a = key < keys && key >= first_a && key < last_a;
                let sees_b = key < keys && key >= first_b && key < last_b;
                scores[at_a] = select(sees_a, scores[at_a] * scale, MASKED);
                scores[at_b] = select(sees_b, scores[at_b] * scale, MASKED);
                tile_a = max(tile_a, scores[at_a]);
                tile_b = max(tile_b, scores[at_b]);
            }
        }
        let new_a = max(largest_a, quad_max(tile_a, &mut shared_sums, layout));
        let new_b = max(largest_b, quad_max(tile_b, &mut shared_sums, layout));
        let (shrink_a, shrink_b) = ((largest_a - new_a).exp(), (largest_b - new_b).exp());
        largest_a = new_a;
        largest_b = new_b;
        let (mut more_a, mut more_b) = (0.0f32.runtime(), 0.0f32.runtime());
        #[unroll]
        for block in 0..blocks {
            #[unroll]
            for i in 0..2usize {
                let (at_a, at_b) = (comptime!(block * 4 + i), comptime!(block * 4 + 2 + i));
                let p_a = select(scores[at_a] > MASKED, (scores[at_a] - new_a).exp(), 0.0f32);
                let p_b = select(scores[at_b] > MASKED, (scores[at_b] - new_b).exp(), 0.0f32);
                scores[at_a] = p_a;
                scores[at_b] = p_b;
                more_a += p_a;
                more_b += p_b;
            }
        }
        sum_a = sum_a * shrink_a + more_a;
        sum_b = sum_b * shrink_b + more_b;
        #[unroll]
        for column in 0..columns {
            #[unroll]
            for i in 0..2usize {
                let (at_a, at_b) = (comptime!(column * 4 + i), comptime!(column * 4 + 2 + i));
                out[at_a] *= shrink_a;
                out[at_b] *= shrink_b;
            }
        }
        add_values::<E>(
            &scores,
            &v_tile,
            &mut p_tile,
            &mut out,
            plane,
            group,
            quad,
            layout,
        );
    }

    let (sum_a, sum_b) = (
        quad_sum(sum_a, &mut shared_sums, layout),
        quad_sum(sum_b, &mut shared_sums, layout),
    );
    let share_a = select(sum_a > 0.0f32, 1.0f32 / sum_a, 0.0f32);
    let share_b = select(sum_b > 0.0f32, 1.0f32 / sum_b, 0.0f32);
    let all_columns = heads * layout.width;
    let from = batch * queries * all_columns + head * layout.width;
    #[unroll]
    for column in 0..columns {
        #[unroll]
        for i in 0..2usize {
            let at = comptime!(column * 8 + i) + quad * 2;
            if row_a < queries {
                output[from + row_a * all_columns + at] =
                    E::cast_from(out[comptime!(column * 4 + i)] * share_a);
            }
            if row_b < queries {
                output[from + row_b * all_columns + at] =
                    E::cast_from(out[comptime!(column * 4 + 2 + i)] * share_b);
            }
        }
    }
    if quad == 0 {
        let from = (batch * heads + head) * queries;
        if row_a < queries {
            log_sums[from + row_a] = select(sum_a > 0.0f32, largest_a + sum_a.ln(), NOTHING_SEEN);
        }
        if row_b < queries {
            log_sums[from + row_b] = select(sum_b > 0.0f32, largest_b + sum_b.ln(), NOTHING_SEEN);
        }
    }
}

#[cube]
fn clamp_max(value: usize, most: usize) -> usize {
    select(value < most, value, most)
}

/// Products of the plane's queries with the tile's keys: four numbers for each eight keys, two of either row.
#[cube]
fn score<E: Float>(
    q_tile: &Shared<[Vector<E, Const<2>>]>,
    k_tile: &Shared<[Vector<E, Const<2>>]>,
    scores: &mut Array<f32>,
    plane: usize,
    group: usize,
    quad: usize,
    #[comptime] layout: Layout,
) {
    let pitch = comptime!(layout.row_pitch());
    let row = plane * 16 + group;
    let blocks = comptime!(layout.keys / 8);
    #[unroll]
    for i in 0..comptime!(blocks * 4) {
        scores[i] = 0.0f32;
    }
    if comptime!(layout.tensor_cores) {
        let mma = cmma::MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        #[unroll]
        for step in 0..comptime!(layout.width / 16) {
            let mut a = Array::<Vector<E, Const<2>>>::new(4usize);
            let at = comptime!(step * 8) + quad;
            a[0] = q_tile[row * pitch + at];
            a[1] = q_tile[(row + 8) * pitch + at];
            a[2] = q_tile[row * pitch + at + 4];
            a[3] = q_tile[(row + 8) * pitch + at + 4];
            #[unroll]
            for block in 0..blocks {
                let key = comptime!(block * 8) + group;
                let mut b = Array::<Vector<E, Const<2>>>::new(2usize);
                b[0] = k_tile[key * pitch + at];
                b[1] = k_tile[key * pitch + at + 4];
                accumulate::<E>(&mma, &a, &b, scores, comptime!(block * 4));
            }
        }
    } else {
        #[unroll]
        for block in 0..blocks {
            #[unroll]
            for i in 0..2usize {
                let key = comptime!(block * 8 + i) + quad * 2;
                let (mut sum_a, mut sum_b) = (0.0f32.runtime(), 0.0f32.runtime());
                for at in 0..comptime!(layout.width / 2) {
                    let other = Vector::<f32, Const<2>>::cast_from(k_tile[key * pitch + at]);
                    sum_a +=
                        Vector::vector_sum(Vector::cast_from(q_tile[row * pitch + at]) * other);
                    sum_b += Vector::vector_sum(
                        Vector::cast_from(q_tile[(row + 8) * pitch + at]) * other,
                    );
                }
                scores[comptime!(block * 4 + i)] = sum_a;
                scores[comptime!(block * 4 + 2 + i)] = sum_b;
            }
        }
    }
}

/// `sums[at..at + 4] += a b`
#[cube]
fn accumulate<E: Float>(
    mma: &cmma::MmaDefinition<E, E, f32>,
    a: &Array<Vector<E, Const<2>>>,
    b: &Array<Vector<E, Const<2>>>,
    sums: &mut Array<f32>,
    #[comptime] at: usize,
) {
    let mut c = Array::<Vector<f32, Const<2>>>::new(2usize);
    c[0] = pair::<f32>(sums[at], sums[comptime!(at + 1)]);
    c[1] = pair::<f32>(sums[comptime!(at + 2)], sums[comptime!(at + 3)]);
    let d = mma.execute(a, b, &c);
    sums[at] = d[0].extract(0usize);
    sums[comptime!(at + 1)] = d[0].extract(1usize);
    sums[comptime!(at + 2)] = d[1].extract(0usize);
    sums[comptime!(at + 3)] = d[1].extract(1usize);
}

/// Adds the tile's values, by their probabilities. Probabilities are rounded to the type of the values, as torch does.
#[cube]
fn add_values<E: Float>(
    probabilities: &Array<f32>,
    v_tile: &Shared<[Vector<E, Const<2>>]>,
    p_tile: &mut Shared<[Vector<E, Const<2>>]>,
    out: &mut Array<f32>,
    plane: usize,
    group: usize,
    quad: usize,
    #[comptime] layout: Layout,
) {
    let pitch = comptime!(layout.column_pitch());
    let columns = comptime!(layout.width / 8);
    if comptime!(layout.tensor_cores) {
        let mma = cmma::MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
        #[unroll]
        for step in 0..comptime!(layout.keys / 16) {
            // Where the scores of sixteen keys are is where a left factor is wanted.
            let mut a = Array::<Vector<E, Const<2>>>::new(4usize);
            #[unroll]
            for i in 0..4usize {
                let at = comptime!(step * 8 + i * 2);
                a[i] = pair::<E>(
                    E::cast_from(probabilities[at]),
                    E::cast_from(probabilities[comptime!(at + 1)]),
                );
            }
            let at = comptime!(step * 8) + quad;
            #[unroll]
            for column in 0..columns {
                let number = comptime!(column * 8) + group;
                let mut b = Array::<Vector<E, Const<2>>>::new(2usize);
                b[0] = v_tile[number * pitch + at];
                b[1] = v_tile[number * pitch + at + 4];
                accumulate::<E>(&mma, &a, &b, out, comptime!(column * 4));
            }
        }
    } else {
        let row = plane * 16 + group;
        let p_pitch = comptime!(layout.keys / 2);
        #[unroll]
        for block in 0..comptime!(layout.keys / 8) {
            let at = comptime!(block * 4) + quad;
            let p = comptime!(block * 4);
            p_tile[row * p_pitch + at] = pair::<E>(
                E::cast_from(probabilities[p]),
                E::cast_from(probabilities[comptime!(p + 1)]),
            );
            p_tile[(row + 8) * p_pitch + at] = pair::<E>(
                E::cast_from(probabilities[comptime!(p + 2)]),
                E::cast_from(probabilities[comptime!(p + 3)]),
            );
        }
        sync_cube();
        #[unroll]
        for column in 0..columns {
            #[unroll]
            for i in 0..2usize {
                let number = comptime!(column * 8 + i) + quad * 2;
                let (mut sum_a, mut sum_b) = (0.0f32.runtime(), 0.0f32.runtime());
                for at in 0..p_pitch {
                    let value = Vector::<f32, Const<2>>::cast_from(v_tile[number * pitch + at]);
                    sum_a +=
                        Vector::vector_sum(Vector::cast_from(p_tile[row * p_pitch + at]) * value);
                    sum_b += Vector::vector_sum(
                        Vector::cast_from(p_tile[(row + 8) * p_pitch + at]) * value,
                    );
                }
                out[comptime!(column * 4 + i)] += sum_a;
                out[comptime!(column * 4 + 2 + i)] += sum_b;
            }
        }
    }
}

/// The largest value of the four units that share a row.
#[cube]
fn quad_max(value: f32, shared: &mut Shared<[f32]>, #[comptime] layout: Layout) -> f32 {
    let mut result = value;
    if comptime!(layout.tensor_cores) {
        result = max(result, plane_shuffle_xor(result, 1u32));
        result = max(result, plane_shuffle_xor(result, 2u32));
    } else {
        let first = exchange(value, shared);
        #[unroll]
        for i in 0..4usize {
            result = max(result, shared[first + i]);
        }
    }
    result
}

/// The sum over the four units that share a row.
#[cube]
fn quad_sum(value: f32, shared: &mut Shared<[f32]>, #[comptime] layout: Layout) -> f32 {
    let mut result = value;
    if comptime!(layout.tensor_cores) {
        result += plane_shuffle_xor(result, 1u32);
        result += plane_shuffle_xor(result, 2u32);
    } else {
        let first = exchange(value, shared);
        result = shared[first] + shared[first + 1] + shared[first + 2] + shared[first + 3];
    }
    result
}

/// Shows a value to all units; gives where those of this unit's four are.
#[cube]
fn exchange(value: f32, shared: &mut Shared<[f32]>) -> usize {
    sync_cube();
    shared[UNIT_POS as usize] = value;
    sync_cube();
    UNIT_POS as usize / 4 * 4
}
