//! A projection under LoRA, forward and backward.

use std::cell::RefCell;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use retouch_models::init::Init;
use retouch_models::lora::{LoraAdapter, LoraLinear, LoraPair, Scope};
use retouch_models::weights::Weights;

use crate::case::Case;
use crate::compare::Outputs;

pub(crate) fn linear(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let device = device.clone().autodiff();
    let weights = Weights::from_file(&case.path("weights.safetensors"))?;
    let layer = layer(weights.tensor("base", &device)?.cast(case.dtype));
    let pair = LoraPair {
        a: Param::from_tensor(weights.tensor("lora_A", &device)?),
        b: Param::from_tensor(weights.tensor("lora_B", &device)?),
    };
    let scale = case.number("alpha")? / case.number("rank")?;
    let adapter = LoraAdapter::from_pairs(vec![Some(pair.clone())], scale);
    let x = case.narrow_input::<3>("x", &device)?.require_grad();
    let y = layer.forward(x.clone(), Some(&adapter));
    let gradients = (y.clone() * case.narrow_input("dy", &device)?)
        .sum()
        .backward();
    let gradient = |factor: &Param<Tensor<2>>| factor.val().grad(&gradients).expect("a gradient");
    Ok(Outputs::default()
        .float("out.y", y.inner())
        .float("grad.lora_A", gradient(&pair.a))
        .float("grad.lora_B", gradient(&pair.b))
        .float("grad.x", x.grad(&gradients).expect("a gradient")))
}

/// The only projection of a model, with `weight` [out, in] and a bias of zeros.
fn layer(weight: Tensor<2>) -> LoraLinear {
    let [outputs, inputs] = weight.dims();
    let (init, projections) = (Init::new(0, &weight.device()), RefCell::new(Vec::new()));
    let mut layer = Scope::root(&init, &projections).linear("to_q", inputs, outputs);
    let zeros = Tensor::zeros([outputs], (&weight.device(), weight.dtype()));
    layer.bias = Param::from_tensor(zeros).no_grad();
    layer.weight = Param::from_tensor(weight).no_grad();
    layer
}
