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
    double::{self, Counts, Double, End, Program},
    ptx, size,
};

/// Each takes seconds; the rest is room for slow machines.
const LIMIT: Duration = Duration::from_secs(600);
/// Where the cases' own files lie, below the double's folder.
const FOLDER_OF_CASES: &str = "double/check";
const PICTURE: &str = "assets/tiny/dataset/images/test_00000.png";
const EDITOR: &str = "assets/tiny/editor";
/// All rewards are equal where all results are zeros.
const NOTHING_LEARNED: End =
    End::Failure("nothing was learned: the judge gives all samples of a group the same reward");

/// What is done with what the programs count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Each has to be within its bound.
    Check,
    /// Bounds are written anew.
    Bound,
}

/// A program of the suite, as `retouch` is called in the root.
#[derive(Debug, Clone)]
struct Case {
    name: &'static str,
    card: &'static str,
    /// Memory of the card, where it has less than such cards have.
    mib: Option<u32>,
    arguments: Vec<String>,
    /// Whether two runs count the same; not where several processes share the work as it comes.
    repeats: bool,
    /// The folder of a run, which would go on where it stopped.
    run_dir: Option<PathBuf>,
    end: End,
}

pub(crate) fn run(root: &Path, mode: Mode) -> anyhow::Result<()> {
    let bounds = match mode {
        Mode::Check => Some(Bounds::read(root)?),
        Mode::Bound => None,
    };
    let suite = Suite::new(root)?;
    let (mut files, mut problems, mut counted) = (Vec::new(), Vec::new(), Vec::new());
    for case in cases(root)? {
        // The first process tunes and compiles. What counts is what all others do.
        let first = suite.run(&case, "first")?;
        let counts = suite.run(&case, "second")?;
        println!(
            "{} ({}): {:.1} s, with tuning {:.1} s",
            case.name, case.card, counts.seconds, first.seconds
        );
        for turn in ["first", "second"] {
            files.extend(double::ptx(&suite.folder(&case, turn))?);
        }
        if let Some(bounds) = &bounds
            && let Err(error) = bounds.check(case.name, &counts)
        {
            problems.push(error.to_string());
        }
        if counts.refused > 0 {
            let refused = counts.refused;
            problems.push(format!("{}: the driver refuses {refused} calls", case.name));
        }
        if case.repeats
            && let Err(error) = same(case.name, &counts, &suite.run(&case, "third")?)
        {
            problems.push(error.to_string());
        }
        counted.push(bounds::Measured {
            program: case.name,
            counts,
            repeats: case.repeats,
        });
    }
    if mode == Mode::Bound {
        bounds::write(root, &counted)?;
    }
    for case in short_of_memory(root)? {
        let refused = suite.run(&case, "first")?.refused;
        println!("{}: {refused} allocations refused", case.name);
        ensure!(refused > 0, "{}: there is memory enough", case.name);
    }
    ptx::assemble(root, &distinct(files), &["sm_80", "sm_90a"])?;
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

struct Suite {
    root: PathBuf,
    retouch: PathBuf,
    double: Double,
}

impl Suite {
    fn new(root: &Path) -> anyhow::Result<Self> {
        let retouch = build::built(root)?;
        let folder = root.join(FOLDER).join(FOLDER_OF_CASES);
        double::clear(&folder)?;
        // Tuned and compiled kernels of other runs would hide what these do.
        let cache = folder.join("cache");
        std::fs::create_dir_all(&cache)?;
        let double = Double::get(root)?.with_cache(cache);
        double.test(root)?;
        Ok(Self {
            root: root.into(),
            retouch,
            double,
        })
    }

    fn folder(&self, case: &Case, turn: &str) -> PathBuf {
        let folder = self.root.join(FOLDER).join(FOLDER_OF_CASES);
        folder.join(format!("{}-{turn}", case.name))
    }

    fn run(&self, case: &Case, turn: &str) -> anyhow::Result<Counts> {
        if let Some(run_dir) = &case.run_dir
            && run_dir.exists()
        {
            std::fs::remove_dir_all(run_dir)?;
        }
        let mut command = Command::new(&self.retouch);
        command.args(&case.arguments).current_dir(&self.root);
        command.env("RETOUCH_DOUBLE_CARD", case.card);
        if let Some(mib) = case.mib {
            command.env("RETOUCH_DOUBLE_MIB", mib.to_string());
        }
        self.double.run(Program {
            name: case.name,
            command,
            folder: self.folder(case, turn),
            limit: LIMIT,
            end: case.end,
        })
    }
}

fn cases(root: &Path) -> anyhow::Result<Vec<Case>> {
    let folder = root.join(FOLDER).join(FOLDER_OF_CASES);
    let out = text(&folder.join("out.png"))?;
    let run_dir = folder.join("run");
    let edit = |name, card, dtype| {
        let how = [
            "edit", "--device", "cuda:0", "--dtype", dtype, "--seed", "1",
        ];
        let what = ["--model", EDITOR, "-o", &out, PICTURE, "make it red"];
        Case::new(name, card, &[&how[..], &what].concat())
    };
    let small = size::FLUX.folder(root, size::Layers::One)?;
    let run_file = text(&size::FLUX.run_file(root, &small, &folder.join("flux"))?)?;
    let step = |name, file: &str, setting| {
        let words = ["launch", file, "--dry-run", "--set", setting];
        let device = ["--set", "learner.device=cuda:0"];
        Case::new(name, "h100", &[&words[..], &device].concat())
    };
    let run_setting = format!("run_dir={}", text(&run_dir)?);
    let mut smoke = vec!["launch", "examples/smoke.toml", "--set", &run_setting];
    for setting in [
        "learner.ranks=1",
        "model.device=cuda:0",
        "learner.device=cuda:0",
        "reward.device=cuda:0",
    ] {
        smoke.extend(["--set", setting]);
    }
    let smoke = Case {
        repeats: false,
        run_dir: Some(run_dir.clone()),
        end: NOTHING_LEARNED,
        ..Case::new("smoke", "h100", &smoke)
    };
    let report = Case::new("report", "h100", &["report", &text(&run_dir)?]);
    Ok(vec![
        edit("edit", "h100", "f32"),
        edit("edit-bf16", "h100", "bf16"),
        edit("edit-a100", "a100", "bf16"),
        step("step", "examples/quickstart.toml", "model.dtype=bf16"),
        step("step-flux", &run_file, "learner.micro_batch_size=3"),
        smoke,
        // What a run that learned something does at its end.
        Case {
            repeats: false,
            ..report
        },
    ])
}

/// Edits on cards that are too small: of FLUX's width, with room for the edit but not for all that tuning it would try;
/// and one where the driver's context leaves too little.
fn short_of_memory(root: &Path) -> anyhow::Result<[Case; 2]> {
    let wide = text(&size::FLUX.folder(root, size::Layers::One)?)?;
    let out = text(&root.join(FOLDER).join(FOLDER_OF_CASES).join("out.png"))?;
    let edit = |name, mib, model: &str| {
        let how = [
            "edit", "--device", "cuda:0", "--dtype", "bf16", "--model", model,
        ];
        let size = [
            "--height",
            "512",
            "--width",
            "512",
            "--num-inference-steps",
            "1",
        ];
        let what = ["-o", &out, PICTURE, "make it red"];
        Case {
            mib: Some(mib),
            ..Case::new(name, "h100", &[&how[..], &size, &what].concat())
        }
    };
    Ok([
        edit("edit-short-of-memory", 4000, &wide),
        Case {
            end: End::Failure("the device is out of memory"),
            ..edit("edit-without-memory", 530, EDITOR)
        },
    ])
}

impl Case {
    fn new(name: &'static str, card: &'static str, arguments: &[&str]) -> Self {
        Self {
            name,
            card,
            mib: None,
            arguments: arguments.iter().map(|word| String::from(*word)).collect(),
            repeats: true,
            run_dir: None,
            end: End::Well,
        }
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str();
    let text = text.with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}

fn same(name: &str, one: &Counts, other: &Counts) -> anyhow::Result<()> {
    ensure!(
        one.is_like(other),
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
    fn time_loading_and_a_launch_in_hundreds_may_differ() {
        let one = Counts {
            launches: 2339,
            syncs: 31,
            seconds: 1.0,
            modules: 70,
            ..Counts::default()
        };
        let other = Counts {
            launches: 2340,
            seconds: 2.0,
            modules: 72,
            host_to_device: 2,
            ..one.clone()
        };
        same("x", &one, &other).expect("they ask the same");
        let differ = |other: Counts| {
            let error = same("x", &one, &other).expect_err("they do not");
            let error = error.to_string();
            assert!(error.contains("two runs count differently"), "{error}");
        };
        differ(Counts {
            launches: 2345,
            ..one.clone()
        });
        differ(Counts {
            syncs: 32,
            ..one.clone()
        });
    }
}
