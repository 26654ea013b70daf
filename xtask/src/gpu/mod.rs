//! `cargo xtask gpu`: what is proved of the GPU path on machines without a GPU, and measured on one that has it.

mod bounds;
pub(crate) mod build;
mod card;
mod debian;
mod double;
pub(crate) mod llvm;
mod mesa;
mod ptx;
mod size;
mod suite;
mod table;
mod wgpu;

use std::path::Path;

use anyhow::{Context, bail};

const USAGE: &str = "\
cargo xtask gpu: the GPU path, proved without a GPU and measured on one

usage: cargo xtask gpu COMMAND

  build                 retouch with the devices `cuda:N` and `wgpu`, and their tests; needs neither a GPU nor CUDA. LLVM, which
                        cubecl compiles kernels with, comes from its release page or, where that is out of reach, from Debian's
                        packages
  build --release       the program alone, as users have it
  prove                 build, double --check and wgpu, one after the other, as CI does
  double [--devices N] [--] PROGRAM ...
                        runs a program on a driver double: a libcuda.so.1 that answers as an H100's driver does and counts
                        launches, syncs, copies and bytes, while nothing is computed. `retouch` is the one that `build` made
  double --check        an edit, an NFT step and a whole run on the double; counts may not exceed tools/gpu/bounds.toml, two
                        runs must count the same but for one launch in 500, and ptxas must take every kernel for sm_80 and sm_90a
  double --bounds       the same, and writes tools/gpu/bounds.toml anew
  double --flux, --qwen launches, syncs and GiB at the published size of FLUX.1-Kontext or
                        Qwen-Image-Edit: a frozen forward and a training pair, as a table
  wgpu [--all]          kernels, ops and a golden case of each kind on wgpu, through Mesa's Vulkan on the CPU; --all has all
                        golden cases and training by block
  wgpu --smoke          the same for examples/smoke.toml, a whole run
  wgpu [--] PROGRAM ... runs a program so that it finds that Vulkan
  pack                  makes target/gpu/card: all that a bare machine with one H100 needs, at most 64 MiB
  run [--rehearse]      what is measured on a card, in three parts (tools/gpu/README.md); --rehearse runs them on the double

examples:
  cargo xtask gpu build && cargo xtask gpu double --check
  cargo xtask gpu double -- retouch edit --device cuda:0 --model assets/tiny/editor -o out.png in.png \"make it red\"
  cargo xtask gpu double --devices 8 -- retouch devices";

/// Where everything fetched, built and counted lies, below the root.
const FOLDER: &str = "target/gpu";

pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["build"] => build::build(root, build::Profile::Dev),
        ["build", "--release"] => build::build(root, build::Profile::Release),
        ["prove"] => prove(root),
        ["double", "--check"] => suite::run(root, suite::Mode::Check),
        ["double", "--bounds"] => suite::run(root, suite::Mode::Bound),
        ["double", "--flux"] => size::measure(root, &size::FLUX),
        ["double", "--qwen"] => size::measure(root, &size::QWEN),
        ["double", "--devices", count, ref program @ ..] => {
            let devices = count.parse();
            let devices =
                devices.with_context(|| format!("--devices {count:?} is no number of devices"))?;
            double::command(root, devices, without_dashes(program))
        }
        ["double", ref program @ ..] => double::command(root, 1, without_dashes(program)),
        ["wgpu"] => wgpu::check(root, wgpu::Extent::Some),
        ["wgpu", "--all"] => wgpu::check(root, wgpu::Extent::All),
        ["wgpu", "--smoke"] => wgpu::smoke(root),
        ["wgpu", ref program @ ..] => wgpu::command(root, without_dashes(program)),
        ["pack"] => card::pack(root),
        ["run"] => card::run(root),
        ["run", "--rehearse"] => card::rehearse(root),
        ["help" | "--help" | "-h"] | [] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown: gpu {}\n\n{USAGE}", words.join(" ")),
    }
}

/// What CI has of this; `wgpu --all`, `double --flux` and `--qwen` take longer.
pub(crate) fn prove(root: &Path) -> anyhow::Result<()> {
    build::build(root, build::Profile::Dev)?;
    suite::run(root, suite::Mode::Check)?;
    wgpu::check(root, wgpu::Extent::Some)
}

fn without_dashes<'a>(words: &'a [&'a str]) -> &'a [&'a str] {
    words.strip_prefix(&["--"]).unwrap_or(words)
}

/// A folder in front of those where the loader looks already.
fn library_path(folder: &Path) -> String {
    let mut path = folder.display().to_string();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH").filter(|others| !others.is_empty()) {
        path.push(':');
        path.push_str(&others.to_string_lossy());
    }
    path
}

fn make_executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(0o755),
    )?)
}
