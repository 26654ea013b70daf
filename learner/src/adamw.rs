//! AdamW over one flat f32 vector, in torch's formula and order of operations.

use rayon::prelude::*;

/// How many elements one task updates; it has no influence on the result.
const CHUNK: usize = 1 << 14;

/// AdamW's settings, under torch's names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled: the parameter shrinks by `learning_rate * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            learning_rate: 3e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 1e-4,
        }
    }
}

impl AdamWConfig {
    /// Makes update number `step` (counted from 1), in place.
    ///
    /// The constants are computed in f64 and rounded once, as Python does for
    /// torch; everything per element is f32.
    ///
    /// # Panics
    ///
    /// If `step` is zero or the lengths differ.
    pub fn update(
        &self,
        step: u64,
        parameters: &mut [f32],
        gradient: &[f32],
        moments: Moments<'_>,
    ) {
        assert!(step > 0, "updates are counted from 1");
        let n = parameters.len();
        assert!(
            [gradient.len(), moments.first.len(), moments.second.len()] == [n; 3],
            "gradient and moments are as long as the parameters"
        );
        let constants = Constants::new(self, step);
        parameters
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(moments.first.par_chunks_mut(CHUNK))
            .zip(moments.second.par_chunks_mut(CHUNK))
            .for_each(|(((p, g), m), v)| constants.update(p, g, m, v));
    }
}

/// Adam's running averages, as long as the parameters.
#[derive(Debug)]
pub struct Moments<'a> {
    /// Average of the gradient.
    pub first: &'a mut [f32],
    /// Average of its square.
    pub second: &'a mut [f32],
}

struct Constants {
    shrink: f32,
    weight1: f32,
    beta2: f32,
    weight2: f32,
    correction2_sqrt: f32,
    epsilon: f32,
    step_size: f32,
}

impl Constants {
    fn new(config: &AdamWConfig, step: u64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            shrink: (1.0 - config.learning_rate * config.weight_decay) as f32,
            weight1: (1.0 - config.beta1) as f32,
            beta2: config.beta2 as f32,
            weight2: (1.0 - config.beta2) as f32,
            correction2_sqrt: correction(config.beta2).sqrt() as f32,
            epsilon: config.epsilon as f32,
            step_size: (config.learning_rate / correction(config.beta1)) as f32,
        }
    }

    fn update(
        &self,
        parameters: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        for (((p, &g), m), v) in parameters.iter_mut().zip(gradient).zip(first).zip(second) {
            *p *= self.shrink;
            *m += self.weight1 * (g - *m);
            *v = *v * self.beta2 + self.weight2 * g * g;
            let denominator = v.sqrt() / self.correction2_sqrt + self.epsilon;
            *p -= self.step_size * *m / denominator;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(config: AdamWConfig, steps: &[[f32; 3]]) -> Vec<f32> {
        let mut p = vec![0.5, -1.0, 2.0];
        let (mut m, mut v) = (vec![0.0; 3], vec![0.0; 3]);
        for (i, g) in steps.iter().enumerate() {
            let moments = Moments {
                first: &mut m,
                second: &mut v,
            };
            config.update(i as u64 + 1, &mut p, g, moments);
        }
        p
    }

    /// torch.optim.AdamW(lr=1e-2, weight_decay=0.1) on the same three gradients.
    #[test]
    fn agrees_with_torch() {
        let config = AdamWConfig {
            learning_rate: 1e-2,
            weight_decay: 0.1,
            ..Default::default()
        };
        let p = run(
            config,
            &[[0.1, -0.2, 0.3], [0.4, 0.0, -1.0], [-0.3, 0.2, 1e-4]],
        );
        for (p, expected) in p.iter().zip(TORCH) {
            assert!((p - expected).abs() < 1e-7, "{p} is not {expected}");
        }
    }

    const TORCH: [f32; 3] = [0.477_919_5, -0.981_187_9, 1.993_245_8];

    #[test]
    fn first_step_has_the_size_of_the_learning_rate() {
        let config = AdamWConfig {
            weight_decay: 0.0,
            ..Default::default()
        };
        let p = run(config, &[[1e-3, -5.0, 0.0]]);
        assert!((p[0] - (0.5 - 3e-4)).abs() < 1e-7 && (p[1] - (-1.0 + 3e-4)).abs() < 1e-7);
        assert_eq!(p[2], 2.0);
    }
}
