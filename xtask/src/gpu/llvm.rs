//! The LLVM that cubecl compiles CUDA kernels with.
//!
//! The build script of `tracel-llvm-bundler` fetches a prebuilt one from its release page, unless there is one in
//! the user's data folder already: a file `.tracel-llvm-installed` and `bin/llvm-config` are all that it asks for. Where the
//! page is out of reach, Debian's packages serve: static libraries, cut down to NVPTX and this machine's own target.
//!
//! The bindings are LLVM 23's. Between 22 and 23 the C API changed in numbers of opcodes and value kinds that cubecl
//! does not read; 21 lacks functions that are linked.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use super::debian;

const BUNDLER: &str = "tracel-llvm-bundler";
const RELEASES: &str = "https://github.com/tracel-ai/tracel-llvm/releases/download";
/// Newest first.
const VERSIONS: [u32; 3] = [24, 23, 22];
const COMPONENTS: [&str; 9] = [
    "nvptx",
    "native",
    "passes",
    "linker",
    "bitreader",
    "bitwriter",
    "irreader",
    "orcjit",
    "target",
];
/// Headers that list what "all targets" are.
const TARGET_LISTS: [&str; 4] = ["Targets", "AsmParsers", "AsmPrinters", "Disassemblers"];

/// Makes sure that the build will have an LLVM.
pub(crate) fn provide(root: &Path) -> anyhow::Result<()> {
    let lock = std::fs::read_to_string(root.join("Cargo.lock"))?;
    let version = locked_version(&lock, BUNDLER);
    let version = version.with_context(|| format!("Cargo.lock names no {BUNDLER}"))?;
    let prefix = data_folder()?.join(format!("tracel/tracel-llvm-{version}"));
    if prefix.join(".tracel-llvm-installed").is_file() {
        return Ok(());
    }
    if is_published(&version) {
        println!("LLVM: the build script fetches {version} from its release page");
        return Ok(());
    }
    println!("LLVM: {RELEASES} is out of reach, so Debian's serves");
    make(&prefix).with_context(|| format!("can't make an LLVM in {}", prefix.display()))
}

fn locked_version(lock: &str, package: &str) -> Option<String> {
    let mut lines = lock.lines();
    lines.find(|line| *line == format!("name = \"{package}\""))?;
    let version = lines.next()?.strip_prefix("version = \"")?;
    Some(version.trim_end_matches('"').to_owned())
}

fn data_folder() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share"));
    named
        .or_else(home)
        .context("neither $XDG_DATA_HOME nor $HOME is set")
}

fn is_published(version: &str) -> bool {
    let url = format!("{RELEASES}/v{version}/linux-x64.checksums.json");
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--fail",
        "--location",
        "--head",
        "--max-time",
        "20",
        &url,
    ]);
    curl.output().is_ok_and(|output| output.status.success())
}

fn make(prefix: &Path) -> anyhow::Result<()> {
    debian::update_lists(&format!("llvm-{}-dev", VERSIONS[VERSIONS.len() - 1]))?;
    let mut newest = None;
    for version in VERSIONS {
        if newest.is_none() && debian::candidate(&format!("llvm-{version}-dev"))?.is_some() {
            newest = Some(version);
        }
    }
    let version = newest.context("the package lists have no LLVM of 22 or newer")?;
    println!("LLVM: Debian's {version} -> {}", prefix.display());
    if prefix.exists() {
        std::fs::remove_dir_all(prefix)?;
    }
    let unpacked = prefix.join("debian");
    let names = [
        format!("llvm-{version}-dev"),
        format!("llvm-{version}"),
        format!("libllvm{version}"),
        "libz3-4".into(),
    ];
    std::fs::create_dir_all(&unpacked)?;
    debian::unpack(&names, &unpacked)?;
    let debian = Debian {
        root: unpacked.join("usr"),
        version,
    };
    debian.install(prefix)?;
    std::fs::remove_dir_all(unpacked)?;
    Ok(std::fs::write(
        prefix.join(".tracel-llvm-installed"),
        format!("Debian's LLVM {version}\n"),
    )?)
}

/// Debian's packages, unpacked.
struct Debian {
    root: PathBuf,
    version: u32,
}

impl Debian {
    fn config(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let architecture = std::env::consts::ARCH;
        let libraries = self.root.join(format!("lib/{architecture}-linux-gnu"));
        let program = self
            .root
            .join(format!("lib/llvm-{}/bin/llvm-config", self.version));
        let mut command = Command::new(program);
        command.arg("--link-static").args(arguments);
        let output = command.env("LD_LIBRARY_PATH", libraries).output();
        let output = output.context("can't run llvm-config")?;
        ensure!(output.status.success(), "llvm-config {arguments:?} failed");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn install(&self, prefix: &Path) -> anyhow::Result<()> {
        let libraries = self.config(&[&["--libs"][..], &COMPONENTS].concat())?;
        let version = self.config(&["--version"])?;
        for folder in ["include", "lib", "bin"] {
            std::fs::create_dir_all(prefix.join(folder))?;
        }
        self.install_headers(prefix)?;
        let from = self.root.join(format!("lib/llvm-{}/lib", self.version));
        for library in libraries.split_whitespace() {
            let name = format!("lib{}.a", library.trim_start_matches("-l"));
            std::fs::rename(from.join(&name), prefix.join("lib").join(&name))
                .with_context(|| format!("Debian's packages have no {name}"))?;
        }
        // LLVM can compress sections: every Debian has these two, if not what is needed to link with them.
        for library in ["z", "zstd"] {
            link_system_library(library, &prefix.join("lib"))?;
        }
        let script = include_str!("llvm-config.sh")
            .replace("@PREFIX@", &prefix.display().to_string())
            .replace("@VERSION@", &version)
            .replace("@LIBRARIES@", &libraries.replace('\n', " "));
        let path = prefix.join("bin/llvm-config");
        std::fs::write(&path, script)?;
        super::make_executable(&path)
    }

    fn install_headers(&self, prefix: &Path) -> anyhow::Result<()> {
        let include = self.root.join("include");
        for name in ["llvm", "llvm-c"] {
            let from = include.join(format!("{name}-{}/{name}", self.version));
            std::fs::rename(from, prefix.join("include").join(name))?;
        }
        let native = match std::env::consts::ARCH {
            "aarch64" => "AArch64",
            _ => "X86",
        };
        for list in TARGET_LISTS {
            let path = prefix.join(format!("include/llvm/Config/{list}.def"));
            let text = std::fs::read_to_string(&path)?;
            std::fs::write(&path, keep_targets(&text, &["NVPTX", native]))?;
        }
        Ok(())
    }
}

/// Lines such as `LLVM_TARGET(AArch64)` of these targets alone; all others stay.
fn keep_targets(list: &str, targets: &[&str]) -> String {
    let keeps = |line: &&str| {
        let entry = line
            .strip_prefix("LLVM_")
            .and_then(|line| line.split_once('('));
        let target = entry.and_then(|(_, rest)| rest.split_once(')'));
        target.is_none_or(|(target, _)| targets.contains(&target))
    };
    let mut text: Vec<&str> = list.lines().filter(keeps).collect();
    text.push("");
    text.join("\n")
}

fn link_system_library(name: &str, folder: &Path) -> anyhow::Result<()> {
    let file = format!("lib{name}.so.1");
    let architecture = std::env::consts::ARCH;
    let places = ["/lib", "/usr/lib"].map(|top| format!("{top}/{architecture}-linux-gnu/{file}"));
    let found = places.iter().find(|path| Path::new(path).exists());
    let found = found.with_context(|| format!("{file} is not on this machine"))?;
    Ok(std::os::unix::fs::symlink(
        found,
        folder.join(format!("lib{name}.so")),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locked_version_is_found() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\nversion = \"23.1.0-4\"\n";
        assert_eq!(locked_version(lock, "b").as_deref(), Some("23.1.0-4"));
        assert_eq!(locked_version(lock, "c"), None);
    }

    #[test]
    fn other_targets_are_left_out() {
        let list = "#ifndef LLVM_TARGET\n#endif\nLLVM_TARGET(AArch64)\nLLVM_TARGET(NVPTX)\nLLVM_TARGET(X86)\n#undef LLVM_TARGET\n";
        let kept = "#ifndef LLVM_TARGET\n#endif\nLLVM_TARGET(NVPTX)\nLLVM_TARGET(X86)\n#undef LLVM_TARGET\n";
        assert_eq!(keep_targets(list, &["NVPTX", "X86"]), kept);
    }
}
