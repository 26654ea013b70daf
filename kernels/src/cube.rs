//! What the units of a cube do together.

use cubecl::prelude::*;

/// The sum of every unit's value, known to all units. They are `units`, a power of two.
///
/// The order of additions is fixed, so that the same numbers give the same bits.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] units: usize) -> f32 {
    let mut partial = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    partial[unit] = value;
    sync_cube();
    let steps = comptime!(units.trailing_zeros());
    #[unroll]
    for step in 0..steps {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let sum = partial[unit] + partial[unit + half];
            partial[unit] = sum;
        }
        sync_cube();
    }
    partial[0]
}
