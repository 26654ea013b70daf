use anyhow::bail;

use crate::case::Case;
use crate::compare::Outputs;

#[path = "method.rs"]
mod method;

/// Computes what the case's component computes.
///
/// # Errors
/// If the component is unknown or its inputs can't be read.
pub(crate) fn run(case: &Case) -> anyhow::Result<Outputs> {
    match case.component.as_str() {
        "nft_loss" => method::nft_loss(case),
        unknown => bail!("unknown component {unknown:?}: no such component is tested here"),
    }
}
