//! What is measured on a card: packing it for a bare machine, running it on this one, and rehearsing it on the double.

use std::{path::Path, process::Command};

use anyhow::{Context, ensure};

use super::{
    FOLDER,
    build::{self, Tests},
    double::{self, Double},
};

/// What a bare machine takes in one call, the checkout included.
const BYTES_MAX: u64 = 64 << 20;
const MIB: f64 = 1024.0 * 1024.0;
const PARTS: [Part; 3] = [
    Part {
        name: "a",
        script: "tools/gpu/card/part-a.sh",
        programs: &[Packed::Parity],
    },
    Part {
        name: "b",
        script: "tools/gpu/card/part-b.sh",
        programs: &[Packed::Retouch],
    },
    Part {
        name: "c",
        script: "tools/gpu/card/part-c.sh",
        programs: &[Packed::Learner],
    },
];

struct Part {
    name: &'static str,
    script: &'static str,
    programs: &'static [Packed],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packed {
    Retouch,
    /// Golden cases.
    Parity,
    /// The learner's unit tests, for NCCL.
    Learner,
}

impl Packed {
    fn name(self) -> &'static str {
        match self {
            Self::Retouch => "retouch",
            Self::Parity => "parity",
            Self::Learner => "learner",
        }
    }
}

/// Programs stripped and compressed, and what else the scripts need, in `target/gpu/card`.
///
/// # Errors
/// If a part is larger than what a bare machine takes.
pub(crate) fn pack(root: &Path) -> anyhow::Result<()> {
    let tests = Tests::build(root)?;
    let folder = root.join(FOLDER).join("card");
    double::clear(&folder)?;
    let common = folder.join("common");
    let libdevice = common.join("cuda/nvvm/libdevice");
    std::fs::create_dir_all(&libdevice)?;
    std::fs::copy(double::libdevice(root)?, libdevice.join("libdevice.10.bc"))?;
    std::fs::write(common.join("built-in"), root.display().to_string())?;
    let tracked = tracked_bytes(root)?;
    for part in PARTS {
        let to = folder.join(part.name);
        std::fs::create_dir_all(&to)?;
        for program in part.programs {
            let from = match program {
                Packed::Retouch => build::built(root)?,
                Packed::Parity => tests.program("parity", "test")?.0,
                Packed::Learner => tests.program("retouch_learner", "lib")?.0,
            };
            compress(&from, &to.join(program.name()))?;
        }
        let carried = bytes(&to)? + bytes(&common)?;
        println!(
            "part {}: {:.1} MiB carried beside the checkout's {:.1} of {:.0}",
            part.name,
            carried as f64 / MIB,
            tracked as f64 / MIB,
            BYTES_MAX as f64 / MIB
        );
        ensure!(
            carried + tracked <= BYTES_MAX,
            "part {} is too large",
            part.name
        );
    }
    println!(
        "packed in {}; tools/gpu/README.md says how it is run",
        folder.display()
    );
    Ok(())
}

/// All parts on this machine's card, and the results as a file of `tools/gpu/results`.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let card = Command::new("nvidia-smi")
        .args(["--query-gpu=name", "--format=csv,noheader"])
        .output();
    let card = card
        .context("no nvidia-smi: this machine has no card; --rehearse runs on the driver double")?;
    ensure!(card.status.success(), "nvidia-smi finds no card");
    let out = root.join(FOLDER).join("card-out");
    double::clear(&out)?;
    for part in PARTS {
        execute(script(root, &part, &out))?;
    }
    let names = String::from_utf8(card.stdout)?;
    let name = names.lines().next().unwrap_or("card");
    let file = root
        .join("tools/gpu/results")
        .join(format!("{}-{}.md", today()?, slug(name)));
    std::fs::write(&file, results(root, name, &out)?)?;
    println!("{}", file.display());
    Ok(())
}

/// All parts on the driver double: every step runs, and nothing is computed.
pub(crate) fn rehearse(root: &Path) -> anyhow::Result<()> {
    let double = Double::get(root)?;
    let out = root.join(FOLDER).join("card-rehearsal");
    double::clear(&out)?;
    let reports = out.join("double");
    std::fs::create_dir_all(&reports)?;
    for part in PARTS {
        let mut command = script(root, &part, &out);
        double.apply(&mut command, &reports);
        command.env("REHEARSAL", "1").env("WORK", out.join("work"));
        execute(command)?;
    }
    let file = out.join("results.md");
    std::fs::write(&file, results(root, "driver double", &out)?)?;
    println!("{}", file.display());
    Ok(())
}

fn script(root: &Path, part: &Part, out: &Path) -> Command {
    let mut command = Command::new("bash");
    command.arg(part.script).env("OUT", out).current_dir(root);
    command
}

fn execute(mut command: Command) -> anyhow::Result<()> {
    let status = command.status().context("can't run bash")?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn results(root: &Path, card: &str, out: &Path) -> anyhow::Result<String> {
    let log = git(root, &["log", "-1", "--format=%h of %cs"])?;
    let mut text = format!(
        "# {card}, {}\n\nCommit {}, by `cargo xtask gpu run`.\n",
        today()?,
        log.trim()
    );
    for part in PARTS {
        let file = out.join(format!("results-{}.md", part.name));
        let part = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        text.push('\n');
        text.push_str(&part);
    }
    Ok(text)
}

fn today() -> anyhow::Result<String> {
    let output = Command::new("date").args(["-u", "+%F"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn slug(name: &str) -> String {
    let words = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

fn git(root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(root)
        .output();
    let output = output.context("can't run git")?;
    ensure!(output.status.success(), "git {arguments:?} failed");
    Ok(String::from_utf8(output.stdout)?)
}

fn tracked_bytes(root: &Path) -> anyhow::Result<u64> {
    let list = git(root, &["ls-files", "-z"])?;
    let files = list.split('\0').filter(|name| !name.is_empty());
    let sizes =
        files.map(|name| std::fs::symlink_metadata(root.join(name)).map_or(0, |file| file.len()));
    Ok(sizes.sum())
}

fn bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let file = entry.metadata()?;
        sum += if file.is_dir() {
            bytes(&entry.path())?
        } else {
            file.len()
        };
    }
    Ok(sum)
}

fn compress(program: &Path, to: &Path) -> anyhow::Result<()> {
    println!("> strip and xz {}", program.display());
    let status = Command::new("strip")
        .arg("-o")
        .arg(to)
        .arg(program)
        .status();
    ensure!(status.context("can't run strip")?.success(), "strip failed");
    // Code gets smaller where addresses of calls are made comparable first.
    let filter: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["--x86"],
        "aarch64" => &["--arm64"],
        _ => &[],
    };
    let mut xz = Command::new("xz");
    xz.args(filter).args(["--lzma2=preset=9e", "--force"]);
    let status = xz.arg(to).status();
    ensure!(status.context("can't run xz")?.success(), "xz failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cards_are_file_names() {
        assert_eq!(slug("NVIDIA H100 80GB HBM3"), "nvidia-h100-80gb-hbm3");
    }
}
