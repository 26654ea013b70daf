//! Gaussian noise that is the same on every machine.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

/// Independent standard Gaussians, f32, drawn on the host by ChaCha12 from `seed` alone.
///
/// # Shapes
/// * output: `shape`
pub fn normal<const D: usize>(seed: u64, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values = normal_values(seed, shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The values of [`normal`] on the host, in row-major order.
pub fn normal_values(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = rng(seed);
    (0..count)
        .map(|_| StandardNormal.sample(&mut rng))
        .collect()
}

/// [`normal`] for each of some seeds, as one batch.
///
/// # Shapes
/// * output: `[seeds.len(), rows, columns]`
pub fn normal_batch(seeds: &[u64], [rows, columns]: [usize; 2], device: &Device) -> Tensor<3> {
    // A large batch takes tens of milliseconds on one core, in which a device would have nothing to do.
    let values: Vec<Vec<f32>> = seeds
        .par_iter()
        .map(|seed| normal_values(*seed, rows * columns))
        .collect();
    let shape = [seeds.len(), rows, columns];
    Tensor::from_data(TensorData::new(values.concat(), shape), device)
}

/// The generator behind [`normal`], for other draws (permutations, uniform numbers).
pub fn rng(seed: u64) -> impl Rng {
    ChaCha12Rng::seed_from_u64(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_noise_and_others_do_not() {
        assert_eq!(normal_values(7, 100), normal_values(7, 100));
        assert_ne!(normal_values(7, 100), normal_values(8, 100));
        assert_eq!(normal_values(7, 10), normal_values(7, 100)[..10]);
    }

    #[test]
    fn a_batch_holds_the_noise_of_each_seed() {
        let batch = normal_batch(&[3, 1, 2], [4, 5], &Device::flex());
        let values: Vec<f32> = batch.into_data().iter().collect();
        let expected = [3, 1, 2].map(|seed| normal_values(seed, 20));
        assert_eq!(values, expected.concat());
    }

    /// Guards replay of old runs: these numbers may never change.
    #[test]
    fn noise_is_stable() {
        let values = normal_values(7, 100_000);
        assert_eq!(
            values[..4],
            [-1.0435766, -0.5767478, -0.7112543, 0.11629714]
        );
        assert_eq!(values[99_999].to_bits(), 3_190_814_596);
        // The distribution's tails, beyond 3.65, are drawn in another way: one of them is pinned too.
        let largest = values.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
        assert_eq!(largest.to_bits(), 1_083_104_492);
        assert_eq!(rng(7).next_u64(), 559_256_596_868_823_998);
    }

    #[test]
    fn noise_is_standard_normal() {
        let values = normal_values(1, 100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / 1e5;
        assert!(
            mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }
}
