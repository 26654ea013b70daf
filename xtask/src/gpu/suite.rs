//! `gpu double --check`: programs on the driver double from beginning to end, within their bounds.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};

use super::{
    FOLDER,
    bounds::{self, Bounds},
    build,
    double::{self, Counts, Double, Program},
    ptx, size,
};

/// The quickstart's editor and the smoke run take seconds; the rest is room for slow machines.
const LIMIT: Duration = Duration::from_secs(600);
const DEVICES: [&str; 3] = ["model.device", "learner.device", "reward.device"];

/// A program of the suite.
struct Case {
    name: &'static str,
    card: &'static str,
    /// Whether all that it does is in one thread after another: then two runs count the same.
    repeats: bool,
    arguments: Vec<String>,
}

/// What is done with what the programs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Each has to be within its bound.
    Check,
    /// Bounds are written anew.
    Bound,
}

pub(crate) fn run(root: &Path, mode: Mode) -> anyhow::Result<()> {
    let bounds = match mode {
        Mode::Check => Some(Bounds::read(root)?),
        Mode::Bound => None,
    };
    let retouch = build::built(root)?;
    let folder = root.join(FOLDER).join("double");
    // Tuned and compiled kernels of other runs would hide what this one does.
    let cache = folder.join("check/cache");
    if cache.exists() {
        std::fs::remove_dir_all(&cache)?;
    }
    let double = Double::get(root)?.with_cache(cache);
    std::fs::create_dir_all(double.cache())?;
    double.test(root)?;
    let cases = cases(root, &folder.join("check"))?;
    let mut files = Vec::new();
    let (mut problems, mut counted) = (Vec::new(), Vec::new());
    for case in &cases {
        let run = |turn: &str| {
            let mut command = Command::new(&retouch);
            command
                .args(&case.arguments)
                .current_dir(root)
                .env("RETOUCH_DOUBLE_CARD", case.card);
            let folder = folder.join(format!("check/{}-{turn}", case.name));
            let counts = double.run(Program {
                name: case.name,
                command,
                folder: folder.clone(),
                limit: LIMIT,
            })?;
            anyhow::Ok((counts, folder))
        };
        // The first process tunes and compiles. What counts is what all others do.
        let (first, tuned) = run("first")?;
        let (counts, folder) = run("second")?;
        println!(
            "{} ({}): {:.1} s, with tuning {:.1} s",
            case.name, case.card, counts.seconds, first.seconds
        );
        files.extend(double::ptx(&tuned)?);
        files.extend(double::ptx(&folder)?);
        if let Some(bounds) = &bounds
            && let Err(error) = bounds.check(case.name, &counts)
        {
            problems.push(error.to_string());
        }
        if counts.refused > 0 {
            problems.push(format!(
                "{}: the driver refuses {} calls",
                case.name, counts.refused
            ));
        }
        if case.repeats {
            let (again, _) = run("third")?;
            if let Err(error) = same(case.name, &counts, &again) {
                problems.push(error.to_string());
            }
        }
        counted.push((case.name, counts));
    }
    if mode == Mode::Bound {
        bounds::write(root, &counted)?;
    }
    ptx::assemble(root, &distinct(files), &["sm_80", "sm_90a"])?;
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn cases(root: &Path, folder: &Path) -> anyhow::Result<Vec<Case>> {
    std::fs::create_dir_all(folder)?;
    let text = |path: PathBuf| {
        path.to_str()
            .map(String::from)
            .context("the path is not UTF-8")
    };
    let picture = text(root.join("assets/tiny/dataset/images/test_00000.png"))?;
    let editor = text(root.join("assets/tiny/editor"))?;
    let edit = |name, card, dtype: &str| {
        let out = text(folder.join(format!("{name}.png")))?;
        let words = [
            "edit",
            "--device",
            "cuda:0",
            "--dtype",
            dtype,
            "--seed",
            "1",
            "--model",
            &editor,
            "-o",
            &out,
            &picture,
            "make it red",
        ];
        anyhow::Ok(Case {
            name,
            card,
            repeats: true,
            arguments: words.map(Into::into).to_vec(),
        })
    };
    let small = size::FLUX.folder(root, size::Layers::One)?;
    let step_of_flux = size::FLUX.run_file(root, &small, &folder.join("flux"))?;
    let on_card = |name, arguments: &[&str]| {
        let mut arguments: Vec<String> = arguments.iter().map(|word| String::from(*word)).collect();
        for device in DEVICES {
            arguments.extend(["--set".into(), format!("{device}=cuda:0")]);
        }
        Case {
            name,
            card: "h100",
            repeats: true,
            arguments,
        }
    };
    let run_dir = folder.join("smoke");
    if run_dir.exists() {
        std::fs::remove_dir_all(&run_dir)?;
    }
    let run_dir = format!("run_dir={}", text(run_dir)?);
    // Runs go on where their folder says; each of these begins anew.
    let fresh = |name, arguments: &[&str]| Case {
        repeats: false,
        ..on_card(name, arguments)
    };
    Ok(vec![
        edit("edit", "h100", "f32")?,
        edit("edit-bf16", "h100", "bf16")?,
        edit("edit-a100", "a100", "bf16")?,
        on_card(
            "step",
            &[
                "launch",
                "examples/quickstart.toml",
                "--dry-run",
                "--set",
                "model.dtype=bf16",
            ],
        ),
        on_card(
            "step-flux",
            &[
                "launch",
                &text(step_of_flux)?,
                "--dry-run",
                "--set",
                "learner.micro_batch_size=3",
            ],
        ),
        fresh(
            "smoke",
            &[
                "launch",
                "examples/smoke.toml",
                "--set",
                &run_dir,
                "--set",
                "learner.ranks=1",
                "--set",
                "name=smoke",
            ],
        ),
    ])
}

fn same(name: &str, one: &Counts, other: &Counts) -> anyhow::Result<()> {
    let without_time = |counts: &Counts| Counts {
        seconds: 0.0,
        ..counts.clone()
    };
    ensure!(
        without_time(one) == without_time(other),
        "{name}: two runs count differently\n  {one:?}\n  {other:?}"
    );
    Ok(())
}

/// Files are called by their content.
fn distinct(mut files: Vec<PathBuf>) -> Vec<PathBuf> {
    files.sort_by(|one, other| one.file_name().cmp(&other.file_name()));
    files.dedup_by(|one, other| one.file_name() == other.file_name());
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_kernel_of_two_programs_is_one() {
        let files = ["a/1.ptx", "b/1.ptx", "b/2.ptx"]
            .map(PathBuf::from)
            .to_vec();
        assert_eq!(distinct(files).len(), 2);
    }

    #[test]
    fn time_alone_may_differ() {
        let one = Counts {
            launches: 1,
            seconds: 1.0,
            ..Counts::default()
        };
        let other = Counts {
            seconds: 2.0,
            ..one.clone()
        };
        same("x", &one, &other).expect("they count the same");
        let other = Counts {
            launches: 2,
            ..one.clone()
        };
        let error = same("x", &one, &other)
            .expect_err("they do not")
            .to_string();
        assert!(error.contains("two runs count differently"), "{error}");
    }
}
