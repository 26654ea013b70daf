//! Vector arithmetic on f32, compiled once per instruction set and chosen at run time.
//!
//! A kernel is a generic function over [`Simd`]; [`simd_fn!`] gives it an entry that picks AVX-512, AVX2 or portable code.
//! Values of the token types exist only where their instructions do, which is what makes their methods safe to call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

/// One instruction set. The value is a proof that the CPU has it.
pub(crate) trait Simd: Copy + Send + Sync {
    /// A vector of [`LANES`](Self::LANES) numbers.
    type F32: Copy;
    const LANES: usize;
    /// Rows and vectors of the register tile of a matrix product.
    const TILE_ROWS: usize;

    fn splat(self, value: f32) -> Self::F32;
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    /// `a * b + c` in one rounding where the CPU can.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// Rounds to the nearest whole number.
    fn round(self, a: Self::F32) -> Self::F32;
    /// `a * 2^n` for whole `n` in -126..=127.
    fn scale_by_power(self, a: Self::F32, n: Self::F32) -> Self::F32;
    /// `a` with the sign of `sign`.
    fn copy_sign(self, a: Self::F32, sign: Self::F32) -> Self::F32;
    /// Neighbouring lanes exchanged: lane `2i` with lane `2i + 1`.
    fn swap_pairs(self, a: Self::F32) -> Self::F32;
    /// Sum over the lanes.
    fn sum(self, a: Self::F32) -> f32;
    /// Maximum over the lanes.
    fn max_lane(self, a: Self::F32) -> f32;

    /// # Safety
    /// `LANES` numbers can be read at `from`.
    unsafe fn load_ptr(self, from: *const f32) -> Self::F32;
    /// # Safety
    /// `LANES` numbers can be written at `to`.
    unsafe fn store_ptr(self, to: *mut f32, value: Self::F32);
    /// Loads `count <= LANES` numbers, the other lanes are zero.
    ///
    /// # Safety
    /// `count` numbers can be read at `from`.
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::F32;
    /// Stores the first `count <= LANES` numbers.
    ///
    /// # Safety
    /// `count` numbers can be written at `to`.
    unsafe fn store_first(self, to: *mut f32, value: Self::F32, count: usize);

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F32 {
        assert!(from.len() >= Self::LANES);
        // SAFETY: the slice is long enough.
        unsafe { self.load_ptr(from.as_ptr()) }
    }

    /// `LANES` numbers at `from`, or the `count` that are left, padded with zeros.
    ///
    /// # Safety
    /// `count` numbers can be read at `from`.
    #[inline(always)]
    unsafe fn load_up_to(self, from: *const f32, count: usize) -> Self::F32 {
        // SAFETY: passed on.
        unsafe {
            if count >= Self::LANES {
                self.load_ptr(from)
            } else {
                self.load_first(from, count)
            }
        }
    }

    /// # Safety
    /// `count` numbers, or `LANES` if those are fewer, can be written at `to`.
    #[inline(always)]
    unsafe fn store_up_to(self, to: *mut f32, value: Self::F32, count: usize) {
        // SAFETY: passed on.
        unsafe {
            if count >= Self::LANES {
                self.store_ptr(to, value);
            } else {
                self.store_first(to, value, count);
            }
        }
    }

    // The loops below call `f` at one place each: a closure can't be told to be inlined, but one that is called once
    // always is, and one that is not leaves the caller's instruction set and is ten times slower.

    /// `out[i] = f(inputs[..][i])`, vector by vector.
    #[inline(always)]
    fn zip_map<const N: usize>(
        self,
        inputs: [&[f32]; N],
        out: &mut [f32],
        f: impl Fn([Self::F32; N]) -> Self::F32,
    ) {
        let len = out.len();
        assert!(inputs.iter().all(|input| input.len() == len));
        for i in (0..len).step_by(Self::LANES) {
            // SAFETY: `len - i` numbers are left in every slice.
            unsafe {
                let x = self.load_all(inputs, i, len - i);
                self.store_up_to(out.as_mut_ptr().wrapping_add(i), f(x), len - i);
            }
        }
    }

    /// `sums[i] = f(inputs[..][i], sums[i])`, vector by vector.
    #[inline(always)]
    fn accumulate<const N: usize>(
        self,
        inputs: [&[f32]; N],
        sums: &mut [f32],
        f: impl Fn([Self::F32; N], Self::F32) -> Self::F32,
    ) {
        let len = sums.len();
        assert!(inputs.iter().all(|input| input.len() == len));
        for i in (0..len).step_by(Self::LANES) {
            // SAFETY: `len - i` numbers are left in every slice.
            unsafe {
                let x = self.load_all(inputs, i, len - i);
                let sum = sums.as_mut_ptr().wrapping_add(i);
                self.store_up_to(sum, f(x, self.load_up_to(sum, len - i)), len - i);
            }
        }
    }

    /// The sum of `f(inputs[..][i])`, where `f` of zeros must be zero. The order of summation depends on the length alone.
    #[inline(always)]
    fn zip_sum<const N: usize>(
        self,
        inputs: [&[f32]; N],
        f: impl Fn([Self::F32; N]) -> Self::F32,
    ) -> f32 {
        let len = inputs[0].len();
        assert!(inputs.iter().all(|input| input.len() == len));
        let mut sums = [self.splat(0.0); 2];
        for i in (0..len).step_by(Self::LANES) {
            // SAFETY: `len - i` numbers are left in every slice.
            let x = unsafe { self.load_all(inputs, i, len - i) };
            sums = [sums[1], self.add(sums[0], f(x))];
        }
        self.sum(self.add(sums[0], sums[1]))
    }

    /// The vectors of all inputs at `at`, of which `count` numbers are left.
    ///
    /// # Safety
    /// `count` numbers can be read behind `at` in each input.
    #[inline(always)]
    unsafe fn load_all<const N: usize>(
        self,
        inputs: [&[f32]; N],
        at: usize,
        count: usize,
    ) -> [Self::F32; N] {
        let mut x = [self.splat(0.0); N];
        for (x, input) in x.iter_mut().zip(inputs) {
            // SAFETY: passed on.
            *x = unsafe { self.load_up_to(input.as_ptr().wrapping_add(at), count) };
        }
        x
    }

    /// The largest number; minus infinity if there is none.
    #[inline(always)]
    fn max_of(self, x: &[f32]) -> f32 {
        let chunks = x.chunks_exact(Self::LANES);
        let rest = chunks.remainder().iter().copied();
        let mut lanes = self.splat(f32::NEG_INFINITY);
        for chunk in chunks {
            lanes = self.max(lanes, self.load(chunk));
        }
        rest.fold(self.max_lane(lanes), f32::max)
    }

    /// The sum of `(x - center)^2`.
    #[inline(always)]
    fn centered_squares(self, x: &[f32], center: f32) -> f32 {
        let whole = x.len() - x.len() % Self::LANES;
        let centers = self.splat(center);
        let sum = self.zip_sum([&x[..whole]], |[x]| {
            let centered = self.sub(x, centers);
            self.mul(centered, centered)
        });
        let squares = x[whole..].iter().map(|x| (x - center) * (x - center));
        sum + squares.sum::<f32>()
    }

    #[inline(always)]
    fn negate(self, a: Self::F32) -> Self::F32 {
        self.sub(self.splat(0.0), a)
    }

    /// `e^a` to about one unit in the last place, clamped to finite numbers.
    ///
    /// Cody and Waite's reduction by ln 2 in two parts, then a polynomial of degree six.
    #[inline(always)]
    fn exp(self, a: Self::F32) -> Self::F32 {
        let a = self.max(self.min(a, self.splat(88.0)), self.splat(-87.0));
        let n = self.round(self.mul(a, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-0.693_359_4), a);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.0 / 720.0);
        for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.mul_add(p, r, self.splat(coefficient));
        }
        self.scale_by_power(p, n)
    }

    /// `1 / (1 + e^-a)`.
    #[inline(always)]
    fn sigmoid(self, a: Self::F32) -> Self::F32 {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.negate(a))))
    }
}

/// Defines functions that run the generic kernel after `=` with the best instruction set of this CPU.
macro_rules! simd_fn {
    ($($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? = $kernel:path;)*) => {$(
        $(#[$attribute])*
        $visibility fn $name($($argument: $type),*) $(-> $output)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512(token: $crate::ops::simd::Avx512, $($argument: $type),*) $(-> $output)? {
                    $kernel(token, $($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2(token: $crate::ops::simd::Avx2, $($argument: $type),*) $(-> $output)? {
                    $kernel(token, $($argument),*)
                }
                if let Some(token) = $crate::ops::simd::Avx512::detect() {
                    // SAFETY: the token proves that the CPU has these instructions.
                    return unsafe { avx512(token, $($argument),*) };
                }
                if let Some(token) = $crate::ops::simd::Avx2::detect() {
                    // SAFETY: as above.
                    return unsafe { avx2(token, $($argument),*) };
                }
            }
            $kernel($crate::ops::simd::Portable, $($argument),*)
        }
    )*};
}
pub(crate) use simd_fn;

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn exp_kernel<S: Simd>(s: S, x: &mut [f32]) {
        s.accumulate([], x, |[], x| s.exp(x));
    }

    simd_fn! { fn exp_best(x: &mut [f32]) = exp_kernel; }

    fn assert_close_to_exp(mut run: impl FnMut(&mut [f32])) {
        let inputs: Vec<f32> = (-860..=860).map(|i| i as f32 * 0.1).collect();
        let mut outputs = inputs.clone();
        run(&mut outputs);
        for (x, y) in inputs.iter().zip(&outputs) {
            let expected = (*x as f64).exp();
            let error = (*y as f64 - expected).abs() / expected;
            assert!(error < 4e-7, "exp({x}) = {y}, off by {error:e}");
        }
    }

    #[test]
    fn exp_is_precise_on_every_instruction_set() {
        assert_close_to_exp(exp_best);
        assert_close_to_exp(|x| exp_kernel(Portable, x));
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = Avx2::detect() {
            assert_close_to_exp(|x| exp_kernel(token, x));
        }
    }
}
