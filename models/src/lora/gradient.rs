use std::ops::Range;

use burn::module::Param;
use burn::tensor::{Bool, Gradients, Tensor, Transaction};

use super::{LoraAdapter, LoraPair};

/// The gradient of an adapter's factors, on the device where it was computed.
#[derive(Debug, Clone)]
pub struct LoraGradient<'a> {
    adapter: &'a LoraAdapter,
    /// Per slot of the adapter those of A and B; `None` where no backward pass came by.
    found: Vec<[Option<Tensor<2>>; 2]>,
}

impl<'a> LoraGradient<'a> {
    /// Zero.
    pub fn zero(adapter: &'a LoraAdapter) -> Self {
        let found = adapter.slots().map(|_| [None, None]).collect();
        Self { adapter, found }
    }

    /// What a backward pass through the whole model gives.
    pub fn new(adapter: &'a LoraAdapter, gradients: &Gradients) -> Self {
        let mut this = Self::zero(adapter);
        this.take(adapter.slots(), gradients);
        this
    }

    /// Takes the gradients of the factors in `slots`, which no other pass has used.
    pub(crate) fn take(&mut self, slots: Range<usize>, gradients: &Gradients) {
        for slot in slots {
            if let Some(pair) = self.adapter.pair(slot) {
                self.found[slot] = factors(pair).map(|factor| factor.val().grad(gradients));
            }
        }
    }

    /// Adds the gradient of another batch for the same adapter.
    pub fn add(&mut self, other: Self) {
        let sums = self.found.iter_mut().flatten();
        for (sum, more) in sums.zip(other.found.into_iter().flatten()) {
            *sum = match (sum.take(), more) {
                (Some(sum), Some(more)) => Some(sum + more),
                (sum, more) => sum.or(more),
            };
        }
    }

    /// Whether every value is finite, as a flag on the device; `None` where no backward pass came by. `[1]`
    pub fn is_finite(&self) -> Option<Tensor<1, Bool>> {
        let factors = self.found.iter().flatten().flatten();
        // Not the finiteness of a sum: large values that are finite would overflow in it.
        let flags = factors.map(|factor| factor.clone().is_finite().all());
        let flags: Vec<_> = flags.collect();
        (!flags.is_empty()).then(|| Tensor::cat(flags, 0).all())
    }

    /// The flat form on the host, zeros where no pass came by; a device is waited for once.
    pub fn into_flat(self) -> Vec<f32> {
        let lens = self.adapter.slots().flat_map(|slot| {
            let pair = self.adapter.pair(slot);
            pair.map_or([0, 0], |pair| {
                factors(pair).map(|factor| factor.lazy_shape().num_elements())
            })
        });
        let (mut present, mut reads) = (Vec::new(), Transaction::default());
        for factor in self.found.into_iter().flatten() {
            present.push(factor.is_some());
            if let Some(factor) = factor {
                reads = reads.register(factor);
            }
        }
        let mut values = reads.execute().into_iter();
        let mut flat = Vec::with_capacity(self.adapter.flat_len());
        for (len, present) in lens.zip(present) {
            match present.then(|| values.next()).flatten() {
                Some(factor) => flat.extend(factor.iter::<f32>()),
                None => flat.resize(flat.len() + len, 0.0),
            }
        }
        flat
    }
}

fn factors(pair: &LoraPair) -> [&Param<Tensor<2>>; 2] {
    [&pair.a, &pair.b]
}
