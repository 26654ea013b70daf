//! `cargo xtask mutations`: the simulator is itself tested. Each mutation is a bug of one line in the coordinator's
//! machine; the simulator must find it.
//!
//! The mutations are made in a copy of the source under `target/mutations`, so that the real source has no hooks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// A mutation must be caught within so many seeds.
const SEEDS_MAX: u64 = 10_000;

/// A bug of one line.
struct Mutation {
    /// What goes wrong.
    bug: &'static str,
    /// In `coordinator/src/machine`.
    file: &'static str,
    /// Text that is there exactly once, within one line.
    from: &'static str,
    /// What it becomes.
    to: &'static str,
}

const MUTATIONS: [Mutation; 12] = [
    Mutation {
        bug: "what an old generation says counts (A10)",
        file: "workers.rs",
        from: "worker.generation == generation && worker.is_alive()",
        to: "worker.is_alive()",
    },
    Mutation {
        bug: "a lost worker keeps its leases",
        file: "recovery.rs",
        from: "let leases: Vec<_> = worker.leases.iter().copied().collect();",
        to: "let leases: Vec<retouch_proto::LeaseId> = Vec::new();",
    },
    Mutation {
        bug: "a rewind is not recorded (A8)",
        file: "recovery.rs",
        from: "self.record(Entry::Rewound { from, to });",
        to: "",
    },
    Mutation {
        bug: "scores of lost samples are kept for the samples that replace them (A5)",
        file: "results.rs",
        from: "group.scored = None;",
        to: "",
    },
    Mutation {
        bug: "a rewind keeps the bans of iterations that it takes back (A8)",
        file: "prompts.rs",
        from: "self.unban_after(to);",
        to: "",
    },
    Mutation {
        bug: "the seeds of iterations that are taken back are not replayed (A8)",
        file: "prompts.rs",
        from: "self.position = self.began(to.next());",
        to: "",
    },
    Mutation {
        bug: "a rank that died is waited for",
        file: "recovery.rs",
        from: "if self.learning.awaits(id) {",
        to: "if false {",
    },
    Mutation {
        bug: "leases are numbered from one again after a restart",
        file: "leases.rs",
        from: "next: u64::from(incarnation) << 32,",
        to: "next: 0,",
    },
    Mutation {
        bug: "a worker is given more than it has room for",
        file: "workers.rs",
        from: "held.slots_free.saturating_sub(unsent).min(room)",
        to: "held.slots_free",
    },
    Mutation {
        bug: "an iteration is sealed while groups are still being scored",
        file: "groups.rs",
        from: "self.counts.scored + self.counts.dropped == self.counts.total",
        to: "self.counts.scored + self.counts.dropped + self.counts.scoring == self.counts.total",
    },
    Mutation {
        bug: "the newest policy samples, whoever is first (A9)",
        file: "progress.rs",
        from: "let sampler = iteration.0.saturating_sub(1 + self.staleness);",
        to: "let sampler = self.committed.iteration.0.min(iteration.0 - 1);",
    },
    Mutation {
        bug: "an order is answered and not recorded",
        file: "control.rs",
        from: "self.record(Entry::Stands(self.phase.standing()));",
        to: "",
    },
];

/// Makes each mutation in turn and has the simulator look for it.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let copy = Copy::new(root)?;
    ensure!(
        copy.simulate(500)?.is_none(),
        "the simulator finds something wrong without any mutation: `cargo xtask sim --seeds 500`"
    );
    let mut missed = Vec::new();
    for mutation in &MUTATIONS {
        let source = mutation.source(root)?;
        copy.write(
            mutation.file,
            &source.replacen(mutation.from, mutation.to, 1),
        )?;
        let caught = copy.simulate(SEEDS_MAX)?;
        copy.write(mutation.file, &source)?;
        match caught {
            Some(finding) => println!("caught: {}\n        {finding}", mutation.bug),
            None => missed.push(mutation.bug),
        }
    }
    ensure!(
        missed.is_empty(),
        "not caught within {SEEDS_MAX} seeds: {}",
        missed.join("; ")
    );
    println!("all {} mutations were caught", MUTATIONS.len());
    Ok(())
}

impl Mutation {
    /// The file as it is, in which the text to be mutated is there once.
    fn source(&self, root: &Path) -> anyhow::Result<String> {
        let path = root.join(MACHINE).join(self.file);
        let source =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let count = source.matches(self.from).count();
        ensure!(
            count == 1,
            "{}: {:?} is there {count} times, a mutation must find it once",
            path.display(),
            self.from
        );
        Ok(source)
    }
}

/// Where mutations are made.
const MACHINE: &str = "coordinator/src/machine";

/// A copy of the workspace with the coordinator alone.
struct Copy {
    folder: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join("target/mutations/source");
        let target = root.join("target/mutations/target");
        let crates = crates(root)?;
        for name in crates.iter().map(String::as_str).chain(["Cargo.lock"]) {
            copy_all(&root.join(name), &folder.join(name))?;
        }
        let manifest =
            fs::read_to_string(root.join("Cargo.toml")).context("can't read Cargo.toml")?;
        fs::write(
            folder.join("Cargo.toml"),
            coordinator_alone(&manifest, &crates)?,
        )
        .context("can't write the copy's Cargo.toml")?;
        Ok(Self { folder, target })
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(MACHINE).join(file);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }

    /// Builds the copy and runs so many seeds; what was found, if anything was.
    fn simulate(&self, seeds: u64) -> anyhow::Result<Option<String>> {
        let cargo = |arguments: &[&str]| {
            let mut command = crate::cargo_command(arguments);
            command
                .current_dir(&self.folder)
                .env("CARGO_TARGET_DIR", &self.target);
            command
        };
        let build = ["build", "--quiet", "--package", "retouch-coordinator"];
        let which = ["--features", "simulator", "--bin", "simulate"];
        let built = cargo(&[&build[..], &which].concat())
            .output()
            .context("can't run cargo build")?;
        ensure!(
            built.status.success(),
            "the copy in {} does not build:\n{}",
            self.folder.display(),
            String::from_utf8_lossy(&built.stderr)
        );
        let simulator = self.target.join("debug/simulate");
        let ran = Command::new(&simulator)
            .args(["--seeds", &seeds.to_string()])
            .output()
            .with_context(|| format!("can't run {}", simulator.display()))?;
        if ran.status.success() {
            return Ok(None);
        }
        let told = String::from_utf8_lossy(&ran.stderr).into_owned();
        let finding = told.lines().rev().find(|line| line.starts_with("seed "));
        finding
            .map(|line| Some(line.to_owned()))
            .with_context(|| format!("the simulator ended without naming a seed:\n{told}"))
    }
}

/// What the coordinator and its tests are built from, by the manifests; folders are called as crates are.
fn crates(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut crates = vec!["coordinator".to_owned()];
    let mut read = 0;
    while let Some(name) = crates.get(read) {
        let path = root.join(name).join("Cargo.toml");
        let manifest =
            fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let needed = manifest.lines().filter_map(|line| {
            let name = line.strip_prefix("retouch-")?;
            name.strip_suffix(".workspace = true")
        });
        for name in needed.map(str::to_owned) {
            if !crates.contains(&name) {
                crates.push(name);
            }
        }
        read += 1;
    }
    Ok(crates)
}

/// The workspace's manifest with these crates alone.
fn coordinator_alone(manifest: &str, crates: &[String]) -> anyhow::Result<String> {
    let begin = manifest
        .find("members = [")
        .context("Cargo.toml has no members")?;
    let end = begin
        + manifest[begin..]
            .find(']')
            .context("Cargo.toml has no end of members")?;
    let alone = format!(
        "{}members = {crates:?}{}",
        &manifest[..begin],
        &manifest[end + 1..]
    );
    // Settings of packages that are not there are warned about.
    let lines = alone
        .lines()
        .filter(|line| !line.starts_with("default-members"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Copies what has changed, so that cargo builds again only what has to be.
fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
        for entry in fs::read_dir(from).with_context(|| format!("can't list {}", from.display()))? {
            let name = entry?.file_name();
            copy_all(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    let text = fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(to, text).with_context(|| format!("can't write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutation_finds_its_line() {
        let root = crate::root();
        for mutation in &MUTATIONS {
            let source = mutation.source(&root).unwrap();
            let mutated = source.replacen(mutation.from, mutation.to, 1);
            assert_eq!(
                source.lines().count(),
                mutated.lines().count(),
                "{}",
                mutation.bug
            );
        }
    }

    #[test]
    fn the_copy_holds_the_coordinator_and_what_it_needs() {
        let crates = crates(&crate::root()).unwrap();
        for name in ["coordinator", "dataset", "hostile", "proto", "settings"] {
            assert!(crates.iter().any(|c| c == name), "{name} in {crates:?}");
        }
        assert!(!crates.iter().any(|name| name == "models"), "{crates:?}");
        let manifest = "[workspace]\nmembers = [\n    \"cli\",\n]\ndefault-members = [\"cli\"]\n";
        assert_eq!(
            coordinator_alone(manifest, &crates).unwrap(),
            format!("[workspace]\nmembers = {crates:?}"),
            "no other member, and no default ones"
        );
    }
}
