//! Which of its two implementations an op takes.

use std::sync::OnceLock;

/// `plain` makes every op of a process take burn's own ops.
const VARIABLE: &str = "RETOUCH_OPS";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Kernels of ours, where there are any for the device.
    Fused,
    /// burn's own ops, as on devices without kernels of ours.
    Plain,
}

/// What `$RETOUCH_OPS` said when the first op ran.
pub(crate) fn path() -> Path {
    static PATH: OnceLock<Path> = OnceLock::new();
    *PATH.get_or_init(|| match std::env::var(VARIABLE) {
        Ok(name) if name == "plain" => Path::Plain,
        _ => Path::Fused,
    })
}

/// `"fused"` where ops take kernels of ours, `"plain"` where `RETOUCH_OPS=plain` makes them take burn's own.
pub fn path_name() -> &'static str {
    match path() {
        Path::Fused => "fused",
        Path::Plain => "plain",
    }
}
