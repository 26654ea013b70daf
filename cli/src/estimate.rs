//! How a role's memory and arithmetic are printed.

use retouch_models::inspect::{Effort, Estimate};

use crate::{output::remark, show::size};

pub(crate) fn print_estimate(estimate: &Estimate) {
    remark!("{} needs {}:", estimate.role, size(estimate.bytes));
    for line in &estimate.lines {
        remark!(
            "  {:>10}  {}: {}",
            size(line.bytes),
            line.what,
            line.arithmetic
        );
    }
    print_effort(&estimate.effort);
}

fn print_effort(effort: &Effort) {
    let Effort {
        unit, flops, bytes, ..
    } = effort;
    remark!(
        "  computes {} per {unit}, and reads {} of weights:",
        operations(*flops),
        size(*bytes)
    );
    for line in &effort.lines {
        remark!(
            "  {:>12}  {}: {}",
            operations(line.flops),
            line.what,
            line.arithmetic
        );
    }
}

/// Floating-point operations as people read them.
fn operations(flops: u64) -> String {
    const UNITS: [&str; 5] = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"];
    let (mut value, mut unit) = (flops as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{flops} FLOP"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_the_largest_unit_that_fits() {
        assert_eq!(operations(999), "999 FLOP");
        assert_eq!(operations(1234), "1.2 kFLOP");
        assert_eq!(operations(190_500_000_000_000), "190.5 TFLOP");
        assert_eq!(operations(5_000_000_000_000_000), "5000.0 TFLOP");
    }
}
