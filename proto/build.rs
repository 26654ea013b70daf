//! Compiles the .proto files in pure Rust, so that building needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["coordinator", "control", "blobs", "judge", "enrollment"]
        .map(|name| format!("proto/retouch/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".retouch.v1.FetchChunk.data")
        .bytes(".retouch.v1.ScoreGroupRequest")
        .compile_fds(descriptors)?;
    Ok(())
}
