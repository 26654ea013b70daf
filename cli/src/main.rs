//! The `retouch` binary.
fn main() {}
