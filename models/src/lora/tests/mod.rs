mod files;

use std::cell::RefCell;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::*;
use crate::golden::Case;
use crate::init::Init;

/// rank and alpha of a case.
fn config(case: &Case) -> LoraConfig {
    let value = |key: &str| -> f64 { case.parameter(key).parse().unwrap() };
    LoraConfig {
        rank: value("rank") as usize,
        alpha: value("alpha"),
        target_modules: vec!["base".into()],
    }
}

#[test]
fn outputs_and_gradients_equal_the_reference() {
    let device = Device::flex().autodiff();
    for case in Case::all("lora_linear") {
        let weights = case.weights();
        let tensor = |name: &str| weights.tensor::<2>(name, &device).unwrap();
        let projections = RefCell::new(Vec::new());
        let init = Init::new(0, &device);
        let [out_features, in_features] = tensor("base").dims();
        let mut linear = Scope::root(&init, &projections)
            .linear("base", in_features, out_features)
            .no_grad();
        linear.weight = Param::from_tensor(tensor("base")).set_require_grad(false);
        let pair = LoraPair {
            a: Param::from_tensor(tensor("lora_A")),
            b: Param::from_tensor(tensor("lora_B")),
        };
        let adapter = LoraAdapter::from_pairs(vec![Some(pair)], config(&case).scale());

        let x = Tensor::from_inner(case.tensor::<3>("in.x")).require_grad();
        let y = linear.forward(x.clone(), Some(&adapter));
        let dy = Tensor::from_inner(case.tensor::<3>("in.dy"));
        let gradients = (y.clone() * dy).sum().backward();

        let pair = adapter.pair(0).unwrap();
        case.check("out.y", y.inner(), 1e-4);
        case.check("grad.lora_A", pair.a.grad(&gradients).unwrap(), 1e-4);
        case.check("grad.lora_B", pair.b.grad(&gradients).unwrap(), 1e-4);
        case.check("grad.x", x.grad(&gradients).unwrap(), 1e-4);
        assert!(
            linear.weight.grad(&gradients).is_none(),
            "the base is frozen"
        );
    }
}
