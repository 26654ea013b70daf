use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use retouch_settings::LoraConfig;

use super::{LoraGradient, Projection};
use crate::noise;

/// The two factors of one layer, f32.
#[derive(Module, Debug)]
pub struct LoraPair {
    /// `[r, in]`
    pub a: Param<Tensor<2>>,
    /// `[out, r]`
    pub b: Param<Tensor<2>>,
}

/// An adapter: a pair of factors for every targeted projection.
///
/// Its *flat* form, which optimizers, all-reduces and hashes work on, is all factors in
/// projection order, A before B, each in row-major order.
#[derive(Module, Debug)]
pub struct LoraAdapter {
    pairs: Vec<Option<LoraPair>>,
    scale: f64,
}

/// Number of values in the flat form of an adapter on `projections`.
pub fn flat_len(config: &LoraConfig, projections: &[Projection]) -> usize {
    let widths = |p: &Projection| p.in_features + p.out_features;
    let targeted = projections.iter().filter(|p| config.targets(&p.name));
    targeted.map(|p| config.rank * widths(p)).sum()
}

/// The flat form of a new adapter, which changes nothing yet: A ~ N(0, std 1/r), B = 0.
pub fn init_flat(config: &LoraConfig, projections: &[Projection], seed: u64) -> Vec<f32> {
    let a_len = |p: &Projection| config.rank * p.in_features;
    let targeted = projections.iter().filter(|p| config.targets(&p.name));
    let noise = noise::normal_values(seed, targeted.clone().map(a_len).sum());
    let (mut noise, std) = (noise.into_iter(), 1.0 / config.rank as f32);
    let mut flat = Vec::with_capacity(flat_len(config, projections));
    for projection in targeted {
        flat.extend(noise.by_ref().take(a_len(projection)).map(|z| z * std));
        flat.resize(flat.len() + config.rank * projection.out_features, 0.0);
    }
    flat
}

impl LoraAdapter {
    /// The adapter of [`init_flat`].
    pub fn init(
        config: &LoraConfig,
        projections: &[Projection],
        seed: u64,
        device: &Device,
    ) -> Self {
        let flat = init_flat(config, projections, seed);
        Self::from_flat(config, projections, &flat, device)
    }

    /// The adapter with the given flat form; its factors are trainable.
    ///
    /// # Panics
    /// If `flat` has another length than [`flat_len`].
    pub fn from_flat(
        config: &LoraConfig,
        projections: &[Projection],
        flat: &[f32],
        device: &Device,
    ) -> Self {
        assert_eq!(
            flat.len(),
            flat_len(config, projections),
            "length of the flat adapter"
        );
        let mut rest = flat;
        let mut factor = |rows: usize, columns: usize| {
            let (values, after) = rest.split_at(rows * columns);
            rest = after;
            let data = TensorData::new(values.to_vec(), [rows, columns]);
            Param::from_tensor(Tensor::from_data(data, (device, DType::F32)))
        };
        let pairs = projections.iter().map(|projection| {
            config.targets(&projection.name).then(|| LoraPair {
                a: factor(config.rank, projection.in_features),
                b: factor(projection.out_features, config.rank),
            })
        });
        Self::from_pairs(pairs.collect(), config.scale())
    }

    /// An adapter of one pair or none per projection.
    pub fn from_pairs(pairs: Vec<Option<LoraPair>>, scale: f64) -> Self {
        Self { pairs, scale }
    }

    /// The factors in `slot` of the model's projections.
    pub fn pair(&self, slot: usize) -> Option<&LoraPair> {
        self.pairs.get(slot)?.as_ref()
    }

    /// The factor on every pair's output.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The same adapter, its outputs times `factor`.
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            scale: self.scale * factor,
            ..self
        }
    }

    /// Number of values in the flat form.
    pub fn flat_len(&self) -> usize {
        self.num_params()
    }

    /// The flat form.
    pub fn to_flat(&self) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.flat_len());
        for pair in self.pairs.iter().flatten() {
            for factor in [&pair.a, &pair.b] {
                flat.extend(factor.val().into_data().iter::<f32>());
            }
        }
        flat
    }

    /// The gradients of all factors in flat form; a factor that the loss did not use has zeros.
    pub fn flat_gradients(&self, gradients: &Gradients) -> Vec<f32> {
        LoraGradient::new(self, gradients).into_flat()
    }

    /// The device of the factors, without autodiff.
    ///
    /// # Panics
    /// If there are no factors.
    pub(super) fn plain_device(&self) -> Device {
        let pair = self.pairs.iter().flatten().next();
        let pair = pair.expect("an adapter has factors");
        pair.a.val().device().without_autodiff()
    }

    /// The slots of the model's projections.
    pub(super) fn slots(&self) -> Range<usize> {
        0..self.pairs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn projections() -> Vec<Projection> {
        let projection = |name: &str, in_features, out_features| Projection {
            name: name.into(),
            in_features,
            out_features,
        };
        vec![
            projection("blocks.0.attn.to_q", 3, 4),
            projection("blocks.0.attn.into_q", 3, 4),
            projection("blocks.0.attn.to_out.0", 4, 5),
        ]
    }

    fn config() -> LoraConfig {
        LoraConfig {
            rank: 2,
            alpha: 4.0,
            target_modules: vec!["to_q".into(), "to_out.0".into()],
        }
    }

    #[test]
    fn targets_match_whole_segments() {
        let hit: Vec<bool> = projections()
            .iter()
            .map(|p| config().targets(&p.name))
            .collect();
        assert_eq!(hit, [true, false, true]);
    }

    #[test]
    fn flat_form_round_trips_in_projection_order() {
        let flat: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let adapter = LoraAdapter::from_flat(&config(), &projections(), &flat, &Device::flex());
        assert_eq!(adapter.to_flat(), flat);
        assert_eq!((adapter.flat_len(), adapter.scale()), (32, 2.0));
        assert!(adapter.pair(1).is_none());
        assert_eq!(adapter.pair(2).unwrap().b.dims(), [5, 2]);
        assert_eq!(
            adapter
                .pair(0)
                .unwrap()
                .b
                .val()
                .into_data()
                .iter::<f32>()
                .next(),
            Some(6.0)
        );
    }

    #[test]
    fn a_new_adapter_has_zero_b_and_a_of_std_one_over_rank() {
        let wide = vec![Projection {
            name: "to_q".into(),
            in_features: 4096,
            out_features: 8,
        }];
        let adapter = LoraAdapter::init(&config(), &wide, 3, &Device::flex());
        let flat = adapter.to_flat();
        let (a, b) = flat.split_at(2 * 4096);
        let std = (a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32).sqrt();
        assert!((std - 0.5).abs() < 0.02, "{std}");
        assert!(b.iter().all(|v| *v == 0.0));
        assert_eq!(
            flat,
            LoraAdapter::init(&config(), &wide, 3, &Device::flex()).to_flat()
        );
    }

    #[test]
    fn gradients_come_in_flat_order_with_zeros_for_unused_factors() {
        let device = Device::flex().autodiff();
        let adapter = LoraAdapter::init(&config(), &projections(), 1, &device);
        let b = adapter.pair(0).unwrap().b.val();
        let gradients = (b.sum() * 3.0).backward();
        let flat = adapter.flat_gradients(&gradients);
        assert_eq!(flat.len(), 32);
        let expected = |i: usize| if (6..14).contains(&i) { 3.0 } else { 0.0 };
        assert!(
            flat.iter().enumerate().all(|(i, g)| *g == expected(i)),
            "{flat:?}"
        );
    }
}
