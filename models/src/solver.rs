//! Solvers of the probability-flow ODE of flow matching.
//!
//! x_sigma = (1 - sigma) x0 + sigma noise, so alpha = 1 - sigma, and a velocity v predicts
//! x0 = x - sigma v. Noise levels fall from at most 1 to 0. The DPM solvers work in
//! lambda = log(alpha / sigma) on the data prediction (DPM-Solver++), which is infinite at both
//! ends; there their first-order step is the ddim step.

use burn::tensor::Tensor;

pub use retouch_settings::Solver;

/// Follows the velocity field from `noise` down the noise levels.
///
/// # Shapes
/// * noise, velocity and output: `[K, S, C]`
pub fn sample(
    solver: Solver,
    sigmas: &[f32],
    noise: Tensor<3>,
    mut velocity: impl FnMut(Tensor<3>, f32) -> Tensor<3>,
) -> Tensor<3> {
    let mut x = noise;
    let mut before = None;
    for (&sigma, &next) in sigmas.iter().zip(&sigmas[1..]) {
        let step = Step {
            sigma: f64::from(sigma),
            next: f64::from(next),
        };
        let v = velocity(x.clone(), sigma);
        let x0 = x.clone() - v.clone() * step.sigma;
        x = match solver {
            Solver::Euler => x + v * (step.next - step.sigma),
            Solver::Ddim => step.ddim(x, x0.clone()),
            Solver::Dpm1 => step.dpm1(x, x0.clone()),
            Solver::Dpm2 => step.dpm2(x, x0.clone(), before),
        };
        before = Some(Prediction {
            sigma: step.sigma,
            x0,
        });
    }
    x
}

/// The image predicted at an earlier noise level.
struct Prediction {
    sigma: f64,
    x0: Tensor<3>,
}

/// From one noise level to the next.
struct Step {
    sigma: f64,
    next: f64,
}

impl Step {
    fn ddim(&self, x: Tensor<3>, x0: Tensor<3>) -> Tensor<3> {
        let noise = (x - x0.clone() * (1.0 - self.sigma)) / self.sigma;
        x0 * (1.0 - self.next) + noise * self.next
    }

    /// x' = (sigma' / sigma) x + alpha' (1 - e^-h) x0.
    fn dpm1(&self, x: Tensor<3>, x0: Tensor<3>) -> Tensor<3> {
        x * (self.next / self.sigma) + x0 * self.data_weight()
    }

    /// As [`Step::dpm1`], with x0 extrapolated to the middle of the step: x0 + (x0 - before) h / (2 h_before).
    fn dpm2(&self, x: Tensor<3>, x0: Tensor<3>, before: Option<Prediction>) -> Tensor<3> {
        let h = log_snr(self.next) - log_snr(self.sigma);
        // No predecessor, or an infinite h on either side, leaves the first order.
        let weight = before
            .as_ref()
            .map(|before| h / (log_snr(self.sigma) - log_snr(before.sigma)));
        match (before, weight) {
            (Some(before), Some(weight)) if weight.is_finite() && weight > 0.0 => {
                let middle = x0.clone() + (x0 - before.x0) * (0.5 * weight);
                self.dpm1(x, middle)
            }
            _ => self.dpm1(x, x0),
        }
    }

    /// alpha' (1 - e^-h) with h = lambda' - lambda.
    fn data_weight(&self) -> f64 {
        let decay = (log_snr(self.sigma) - log_snr(self.next)).exp();
        (1.0 - self.next) * (1.0 - decay)
    }
}

/// lambda: minus infinity at pure noise, infinity at the image.
fn log_snr(sigma: f64) -> f64 {
    ((1.0 - sigma) / sigma).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Case;
    use burn::tensor::Device;

    #[test]
    fn solvers_equal_the_reference() {
        for case in Case::all("solver") {
            let solver: Solver = case.parameter("solver").trim_matches('"').parse().unwrap();
            let sigmas: Vec<f32> = case.tensor::<1>("in.sigmas").into_data().iter().collect();
            let a = case.tensor::<1>("in.a").unsqueeze::<3>();
            let b = case.tensor::<1>("in.b").unsqueeze::<3>();
            let mut latents = Vec::new();
            let velocity = |x: Tensor<3>, sigma: f32| {
                latents.push(x.clone());
                (x * a.clone()).tanh() + b.clone() * sigma
            };
            let last = sample(solver, &sigmas, case.tensor("in.z"), velocity);
            latents.push(last);
            case.check("out.latents", Tensor::stack::<4>(latents, 0), 1e-6);
        }
    }

    #[test]
    fn every_solver_is_exact_where_the_prediction_is_constant() {
        let device = Device::flex();
        let image = Tensor::<3>::full([1, 2, 3], 0.25, &device);
        let noise = crate::noise::normal(3, [1, 2, 3], &device);
        for solver in [Solver::Euler, Solver::Ddim, Solver::Dpm1, Solver::Dpm2] {
            let velocity = |x: Tensor<3>, sigma: f32| (x - image.clone()) / sigma;
            let x0 = sample(solver, &[1.0, 0.8, 0.5, 0.1, 0.0], noise.clone(), velocity);
            let error = (x0 - image.clone()).abs().max().into_scalar::<f32>();
            assert!(error < 1e-6, "{solver}: {error}");
        }
    }
}
