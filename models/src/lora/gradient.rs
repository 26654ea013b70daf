use std::ops::Range;

use burn::module::Param;
use burn::tensor::{Bool, DType, Gradients, Tensor};

use super::{LoraAdapter, LoraPair};

/// Tensors that are put in a row at once. Where burn fuses ops, that is one kernel with an input for each of them.
const JOINED_MAX: usize = 32;
/// Most rows of the first of the two reductions that look for values that are not finite.
const ROWS_MAX: usize = 4096;

/// The gradient of an adapter's factors in flat form, on the device where it was computed.
///
/// Flat, because what is done with it then takes one kernel, where the factors one by one would take hundreds.
#[derive(Debug, Clone)]
pub struct LoraGradient<'a> {
    adapter: &'a LoraAdapter,
    /// Of the slots that backward passes came by; the gradient of all others is zero.
    segments: Vec<Segment>,
}

/// A part of the flat form.
#[derive(Debug, Clone)]
struct Segment {
    /// The slots of the adapter whose factors it holds.
    slots: Range<usize>,
    values: Tensor<1>,
}

impl<'a> LoraGradient<'a> {
    /// Zero.
    pub fn zero(adapter: &'a LoraAdapter) -> Self {
        let segments = Vec::new();
        Self { adapter, segments }
    }

    /// What a backward pass through the whole model gives.
    pub fn new(adapter: &'a LoraAdapter, gradients: &Gradients) -> Self {
        let mut this = Self::zero(adapter);
        this.take(adapter.slots(), gradients);
        this
    }

    /// Takes the gradients of the factors in `slots`, which no other pass has used.
    pub(crate) fn take(&mut self, slots: Range<usize>, gradients: &Gradients) {
        let pairs = slots.clone().filter_map(|slot| self.adapter.pair(slot));
        let factors = pairs.flat_map(factors).map(|factor| {
            let gradient = factor.val().grad(gradients);
            (factor.lazy_shape().num_elements(), gradient)
        });
        let factors: Vec<(usize, Option<Tensor<2>>)> = factors.collect();
        if factors.iter().all(|(_, gradient)| gradient.is_none()) {
            return;
        }
        let device = self.adapter.plain_device();
        let flat = factors.into_iter().map(|(len, gradient)| match gradient {
            Some(gradient) => gradient.reshape([len]),
            None => Tensor::zeros([len], (&device, DType::F32)),
        });
        let values = joined(flat.collect());
        self.segments.push(Segment { slots, values });
    }

    /// Adds the gradient of another batch for the same adapter.
    pub fn add(&mut self, other: Self) {
        let sum = std::mem::replace(self, Self::zero(self.adapter));
        *self = match (sum.segments.is_empty(), other.segments.is_empty()) {
            (true, _) => other,
            (_, true) => sum,
            _ => {
                let adapter = self.adapter;
                Self::whole(adapter, sum.into_tensor() + other.into_tensor())
            }
        };
    }

    /// The same in one piece.
    pub(super) fn merged(self) -> Self {
        match self.segments.is_empty() {
            true => self,
            false => Self::whole(self.adapter, self.into_tensor()),
        }
    }

    /// Whether every value is finite, as a flag on the device; `None` where no backward pass came by. `[1]`
    pub fn is_finite(&self) -> Option<Tensor<1, Bool>> {
        let flags = self.segments.iter().map(|segment| {
            // Not the finiteness of a sum: large values that are finite would overflow in it.
            let finite = segment.values.clone().abs().lower_equal_elem(f32::MAX);
            let [len] = finite.dims();
            // In two steps: one alone would leave most of a GPU without work.
            let rows = 1 << len.trailing_zeros().min(ROWS_MAX.ilog2());
            let rows = finite.reshape([rows, len / rows]).all_dim(1);
            rows.swap_dims(0, 1).all_dim(1).reshape([1])
        });
        let flags: Vec<_> = flags.collect();
        match <[_; 1]>::try_from(flags) {
            Ok([flag]) => Some(flag),
            Err(flags) => (!flags.is_empty()).then(|| Tensor::cat(flags, 0).all()),
        }
    }

    /// The flat form on the device, zeros where no pass came by: `[flat_len]`
    ///
    /// # Panics
    /// If the adapter has no factors.
    pub fn into_tensor(self) -> Tensor<1> {
        let Self {
            adapter,
            mut segments,
        } = self;
        segments.sort_by_key(|segment| segment.slots.start);
        let zeros = |slots: Range<usize>| {
            let len = flat_len(adapter, slots);
            (len > 0).then(|| Tensor::zeros([len], (&adapter.plain_device(), DType::F32)))
        };
        let (mut parts, mut done) = (Vec::new(), 0);
        for Segment { slots, values } in segments {
            parts.extend(zeros(done..slots.start));
            parts.push(values);
            done = slots.end;
        }
        parts.extend(zeros(done..adapter.slots().end));
        joined(parts)
    }

    /// The flat form on the host; the device is waited for.
    pub fn into_flat(self) -> Vec<f32> {
        if self.segments.is_empty() {
            return vec![0.0; self.adapter.flat_len()];
        }
        let values = self.into_tensor().into_data().convert::<f32>();
        let values = values.try_into_vec();
        values.expect("the values were just converted to f32")
    }

    fn whole(adapter: &'a LoraAdapter, values: Tensor<1>) -> Self {
        let slots = adapter.slots();
        let segments = vec![Segment { slots, values }];
        Self { adapter, segments }
    }
}

/// Number of values of the factors in `slots`.
fn flat_len(adapter: &LoraAdapter, slots: Range<usize>) -> usize {
    let pairs = slots.filter_map(|slot| adapter.pair(slot));
    let factors = pairs.flat_map(factors);
    factors
        .map(|factor| factor.lazy_shape().num_elements())
        .sum()
}

/// All values in a row, of at least one tensor.
fn joined(mut parts: Vec<Tensor<1>>) -> Tensor<1> {
    while parts.len() > 1 {
        let together = |parts: &[Tensor<1>]| match parts {
            [alone] => alone.clone(),
            parts => Tensor::cat(parts.to_vec(), 0),
        };
        parts = parts.chunks(JOINED_MAX).map(together).collect();
    }
    parts.pop().expect("an adapter has factors")
}

fn factors(pair: &LoraPair) -> [&Param<Tensor<2>>; 2] {
    [&pair.a, &pair.b]
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use retouch_settings::LoraConfig;

    use super::*;
    use crate::lora::Projection;
    use crate::noise;

    /// An adapter of rank 2 on three of four layers.
    fn adapter() -> LoraAdapter {
        let projection = |name: &str| Projection {
            name: name.into(),
            in_features: 3,
            out_features: 5,
        };
        let config = LoraConfig {
            rank: 2,
            alpha: 2.0,
            target_modules: vec!["trained".into()],
        };
        let names = ["0.trained", "1.trained", "2.frozen", "3.trained"];
        let device = Device::flex().autodiff();
        LoraAdapter::init(&config, &names.map(projection), 1, &device)
    }

    /// The gradient of `weight` times the sum of both factors of the slots, from a pass of their own.
    fn of(adapter: &LoraAdapter, slots: Range<usize>, weight: f64) -> LoraGradient<'_> {
        let pairs = slots.clone().filter_map(|slot| adapter.pair(slot));
        let sums = pairs.flat_map(factors).map(|factor| factor.val().sum());
        let loss = sums.reduce(|a, b| a + b).unwrap() * weight;
        let mut gradient = LoraGradient::zero(adapter);
        gradient.take(slots, &loss.backward());
        gradient
    }

    #[test]
    fn passes_in_any_order_fill_their_places() {
        let adapter = adapter();
        let mut gradient = of(&adapter, 2..4, 3.0);
        gradient.segments.extend(of(&adapter, 0..1, 1.0).segments);
        let expected = [vec![1.0; 16], vec![0.0; 16], vec![3.0; 16]].concat();
        assert_eq!(gradient.clone().into_flat(), expected);
        assert_eq!(gradient.merged().into_flat(), expected);
        assert_eq!(LoraGradient::zero(&adapter).into_flat(), vec![0.0; 48]);
        let zero = LoraGradient::zero(&adapter).into_tensor();
        assert_eq!(zero.into_data(), TensorData::from([0.0f32; 48]));
    }

    #[test]
    fn sums_are_those_of_the_factors() {
        let adapter = adapter();
        let mut sum = LoraGradient::zero(&adapter);
        sum.add(of(&adapter, 0..4, 0.1));
        sum.add(of(&adapter, 1..4, 0.2));
        sum.add(LoraGradient::zero(&adapter));
        let expected = [vec![0.1; 16], vec![0.1 + 0.2; 32]].concat();
        assert_eq!(sum.into_flat(), expected);
    }

    #[test]
    fn one_value_that_is_not_finite_is_noticed() {
        let adapter = adapter();
        let flag = |values: &[f32]| {
            let values = Tensor::from_floats(values, &Device::flex());
            let flag = LoraGradient::whole(&adapter, values).is_finite();
            flag.unwrap().into_scalar::<bool>()
        };
        for place in 0..48 {
            let mut values = noise::normal_values(2, 48);
            // Their sum is not finite, and they are.
            values[place] = f32::MAX;
            values[(place + 1) % 48] = f32::MAX;
            assert!(flag(&values));
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                values[place] = broken;
                assert!(!flag(&values), "{broken} at {place}");
            }
        }
        assert!(LoraGradient::zero(&adapter).is_finite().is_none());
    }
}
