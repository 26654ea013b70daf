//! Masks as kernels take them: for each query its range of keys, on the device.

use std::sync::{Mutex, PoisonError};

use burn::backend::ops::IntTensorOps;
use burn::backend::tensor::Device;
use burn::tensor::TensorData;

use super::super::mask::{AttentionMask, Lengths};
use super::{Cube, CubeFloat};

/// Masks that are kept at most. An evaluation of a transformer has one, and asks for it in every block.
const KEPT: usize = 16;

/// First keys, and one past the last: `[B or 1, S or 1]`
pub(super) type Ranges = [CubeFloat; 2];

struct Entry {
    mask: AttentionMask,
    lengths: Lengths,
    device: Device<Cube>,
    ranges: Ranges,
}

/// The mask's ranges; none where every query sees every key.
pub(super) fn ranges(
    mask: &AttentionMask,
    lengths: Lengths,
    device: &Device<Cube>,
) -> Option<Ranges> {
    static LATEST: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
    if *mask == AttentionMask::None {
        return None;
    }
    let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
    let known = latest.iter().position(|entry| {
        entry.lengths == lengths && entry.device == *device && entry.mask == *mask
    });
    let entry = match known {
        Some(at) => latest.remove(at),
        None => Entry {
            mask: mask.clone(),
            lengths,
            device: device.clone(),
            ranges: uploaded(mask, lengths, device),
        },
    };
    let ranges = entry.ranges.clone();
    latest.insert(0, entry);
    latest.truncate(KEPT);
    Some(ranges)
}

fn uploaded(mask: &AttentionMask, lengths: Lengths, device: &Device<Cube>) -> Ranges {
    // What does not depend on a query, or on a batch row, is told once.
    let queries = match mask {
        AttentionMask::KeyPadding { .. } => 1,
        _ => lengths.queries,
    };
    let batch = match mask {
        AttentionMask::Causal | AttentionMask::Segments(_) => 1,
        _ => lengths.batch,
    };
    let rows = (0..batch).flat_map(|batch| (0..queries).map(move |query| (batch, query)));
    let keys = rows.map(|(batch, query)| mask.keys_of(batch, query, lengths));
    let (first, last): (Vec<u32>, Vec<u32>) = keys
        .map(|keys| (keys.start as u32, keys.end.max(keys.start) as u32))
        .unzip();
    [first, last].map(|side| Cube::int_from_data(TensorData::new(side, [batch, queries]), device))
}
