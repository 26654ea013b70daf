//! Plain arrays, which the compiler vectorises as far as the target allows.

use super::Simd;

/// Works on every CPU.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 8;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F32 = [f32; LANES];
    const LANES: usize = LANES;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F32 {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Self::F32) -> Self::F32 {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // Fused only where that is an instruction: elsewhere it is a slow library call.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    fn round(self, a: Self::F32) -> Self::F32 {
        // Adding and taking away 1.5 * 2^23 leaves no room for a fraction.
        a.map(|a| (a + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn scale_by_power(self, a: Self::F32, n: Self::F32) -> Self::F32 {
        zip(a, n, |a, n| {
            a * f32::from_bits(((n as i32 + 127) << 23) as u32)
        })
    }
    #[inline(always)]
    fn copy_sign(self, a: Self::F32, sign: Self::F32) -> Self::F32 {
        zip(a, sign, f32::copysign)
    }
    #[inline(always)]
    fn swap_pairs(self, a: Self::F32) -> Self::F32 {
        std::array::from_fn(|i| a[i ^ 1])
    }
    #[inline(always)]
    fn sum(self, a: Self::F32) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    fn max_lane(self, a: Self::F32) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Self::F32 {
        // SAFETY: the caller lends LANES numbers; arrays of f32 are aligned as f32 is.
        unsafe { *from.cast::<[f32; LANES]>() }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, value: Self::F32) {
        // SAFETY: as above.
        unsafe { *to.cast::<[f32; LANES]>() = value }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::F32 {
        // SAFETY: the caller lends `count` numbers.
        let given = unsafe { std::slice::from_raw_parts(from, count) };
        let mut lanes = [0.0; LANES];
        lanes[..count].copy_from_slice(given);
        lanes
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, value: Self::F32, count: usize) {
        // SAFETY: the caller lends `count` numbers.
        let room = unsafe { std::slice::from_raw_parts_mut(to, count) };
        room.copy_from_slice(&value[..count]);
    }
}
