//! Gradient clipping by global norm.

/// torch's guard against a division by zero.
const EPSILON: f64 = 1e-6;

/// The Euclidean norm of a vector, summed in f64 in index order.
pub fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>()
        .sqrt()
}

/// Scales `gradient` down to the norm `max_norm` where it is longer, as
/// `torch.nn.utils.clip_grad_norm_` does, and returns its norm before.
pub fn clip_by_norm(gradient: &mut [f32], max_norm: f64) -> f64 {
    let norm = norm(gradient);
    let scale = (max_norm / (norm + EPSILON)).min(1.0) as f32;
    if scale < 1.0 {
        gradient.iter_mut().for_each(|g| *g *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_gradients_shrink_to_the_limit() {
        let mut gradient = vec![3.0, 4.0];
        assert_eq!(clip_by_norm(&mut gradient, 1.0), 5.0);
        assert!((norm(&gradient) - 1.0).abs() < 1e-6);
        assert!((gradient[0] / gradient[1] - 0.75).abs() < 1e-6);
    }

    #[test]
    fn short_gradients_stay_as_they_are() {
        let mut gradient = vec![0.3, 0.4];
        assert!((clip_by_norm(&mut gradient, 1.0) - 0.5).abs() < 1e-6);
        assert_eq!(gradient, vec![0.3, 0.4]);
    }
}
