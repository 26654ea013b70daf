//! Fused ops against burn's own: results, every gradient, and independence of the number of threads.

mod attention;
mod images;
mod narrow;
mod rows;

use burn::prelude::*;
use burn::tensor::TensorData;

/// Largest difference allowed, relative to the largest number.
const TOLERANCE: f32 = 1e-5;

/// What a test differentiates: flat inputs to a flat output.
type Function<'a> = &'a (dyn Fn(&[Tensor<1>]) -> Tensor<1> + Sync);

/// The output and the gradient of every tracked input under a random upstream gradient.
fn evaluate(function: Function, inputs: &[Vec<f32>], tracked: &[bool]) -> Vec<Vec<f32>> {
    evaluate_on(Device::flex(), function, inputs, tracked)
}

fn evaluate_on(
    device: Device,
    function: Function,
    inputs: &[Vec<f32>],
    tracked: &[bool],
) -> Vec<Vec<f32>> {
    let device = device.autodiff();
    let inputs: Vec<Tensor<1>> = inputs
        .iter()
        .zip(tracked)
        .map(|(values, &tracked)| {
            let data = TensorData::new(values.clone(), [values.len()]);
            Tensor::from_data(data, &device).set_require_grad(tracked)
        })
        .collect();
    let output = function(&inputs);
    let [len] = output.dims();
    let upstream = TensorData::new(numbers(len, 99), [len]);
    let loss = (output.clone() * Tensor::from_data(upstream, &device)).sum();
    let grads = loss.backward();
    let mut results = vec![host(output.inner())];
    for (input, _) in inputs.iter().zip(tracked).filter(|(_, tracked)| **tracked) {
        results.push(host(input.grad(&grads).expect("a tracked input")));
    }
    results
}

/// Where fused ops are tested: `$RETOUCH_TEST_DEVICE`, the CPU by default. What they are compared with runs on the CPU.
fn device() -> Device {
    let name = std::env::var("RETOUCH_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    crate::device::parse(&name).expect("$RETOUCH_TEST_DEVICE is a device of this build")
}

fn host(tensor: Tensor<1>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32 values")
}

/// Reproducible numbers, roughly normal.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len)
        .map(|_| 1.7 * (0..4).map(|_| uniform()).sum::<f32>())
        .collect()
}

fn assert_close(name: &str, ours: &[Vec<f32>], reference: &[Vec<f32>]) {
    assert_eq!(ours.len(), reference.len(), "{name}");
    for (i, (ours, reference)) in ours.iter().zip(reference).enumerate() {
        assert_eq!(ours.len(), reference.len(), "{name}, result {i}");
        let largest = reference.iter().fold(1e-2f32, |max, x| max.max(x.abs()));
        for (at, (a, b)) in ours.iter().zip(reference).enumerate() {
            assert!(
                (a - b).abs() <= TOLERANCE * largest,
                "{name}: result {i} (0 is the output) differs at {at}: {a} instead of {b}, largest {largest}"
            );
        }
    }
}

/// Compares `fused` with `plain` with all inputs tracked and with each tracked alone, then on the CPU under several thread pools.
fn check(name: &str, lens: &[usize], fused: Function, plain: Function) {
    check_tracked(name, lens, &vec![true; lens.len()], fused, plain);
}

/// [`check`] where inputs that are not `trackable` are constants.
fn check_tracked(name: &str, lens: &[usize], trackable: &[bool], fused: Function, plain: Function) {
    let inputs: Vec<Vec<f32>> = (1..).zip(lens).map(|(i, &len)| numbers(len, i)).collect();
    let expected = evaluate(plain, &inputs, trackable);
    let ours = evaluate_on(device(), fused, &inputs, trackable);
    assert_close(name, &ours, &expected);
    if device() != Device::flex() {
        return;
    }
    let tracked = (0..lens.len()).filter(|i| trackable[*i]);
    for (next, i) in (1..).zip(tracked) {
        let alone: Vec<bool> = (0..lens.len()).map(|j| i == j).collect();
        let results = evaluate(fused, &inputs, &alone);
        assert_eq!(results[1], ours[next], "{name}: gradient {i} alone");
    }
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let results = pool
            .expect("a thread pool")
            .install(|| evaluate(fused, &inputs, trackable));
        assert_eq!(results, ours, "{name} with {threads} threads");
    }
}
