//! Models of published size on the driver double: what the host does for a frozen forward and for a training pair.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{
    FOLDER, build,
    double::{Counts, Double, End, Program},
    table,
};

const LIMIT: Duration = Duration::from_secs(1800);
const PIXELS: &str = "512";
/// Steps of two edits: what they differ in is forwards of the transformer and nothing else.
const STEPS: [u64; 2] = [2, 6];
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// A model of which the shapes are known.
pub(crate) struct Model {
    name: &'static str,
    /// What `model_folder.py` calls it.
    kind: &'static str,
}

pub(crate) const FLUX: Model = Model {
    name: "FLUX.1-Kontext",
    kind: "flux",
};
pub(crate) const QWEN: Model = Model {
    name: "Qwen-Image-Edit-2509",
    kind: "qwen",
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layers {
    All,
    /// One of each kind, at full width.
    One,
}

impl Model {
    /// A folder of zeros.
    pub(crate) fn folder(&self, root: &Path, layers: Layers) -> anyhow::Result<PathBuf> {
        let models = root.join(FOLDER).join("models");
        let folder = models.join(match layers {
            Layers::All => self.kind.to_owned(),
            Layers::One => format!("{}-1", self.kind),
        });
        let mut script = Command::new("python3");
        script
            .arg(root.join("tools/gpu/model_folder.py"))
            .arg(self.kind)
            .arg(&folder);
        if layers == Layers::One {
            script.args(["--layers", "1"]);
        }
        if self.kind == "qwen" {
            let like = models.join("qwen-tiny");
            if !like.exists() {
                let which = ["--package", "retouch-tiny", "--bin", "make-qwen-editor"];
                crate::run(&which, &[like.display().to_string()])?;
            }
            script.arg("--like").arg(like);
        }
        let status = script.status().context("can't run python3")?;
        ensure!(status.success(), "model_folder.py failed");
        Ok(folder)
    }

    /// A run file for one group on it, beside the folder of the run.
    pub(crate) fn run_file(
        &self,
        root: &Path,
        model: &Path,
        run_dir: &Path,
    ) -> anyhow::Result<PathBuf> {
        let dataset = root.join("assets/tiny/dataset");
        let text = format!(
            "name = \"size\"\nrun_dir = {run_dir:?}\niterations = 1\n\n[model]\npath = {model:?}\n\n[dataset]\npath = {dataset:?}\n\n\
             [rollout]\ngroups_per_iteration = 1\ngroup_size = 3\n\n[learner]\ngradient_shards = 1\n"
        );
        let file = run_dir.with_extension("toml");
        std::fs::create_dir_all(file.parent().context("it has a folder")?)?;
        std::fs::write(&file, text)?;
        Ok(file)
    }
}

/// A row of the table.
struct Row {
    what: String,
    launches: f64,
    syncs: f64,
    gib: f64,
}

/// Prints the table, and leaves it in `target/gpu`.
pub(crate) fn measure(root: &Path, model: &Model) -> anyhow::Result<()> {
    let bench = Bench {
        double: Double::get(root)?,
        retouch: build::built(root)?,
        folder: root.join(FOLDER).join("double").join(model.kind),
    };
    let weights = model.folder(root, Layers::All)?;
    let run_file = model.run_file(root, &weights, &bench.folder.join("run"))?;
    let picture = root.join("assets/tiny/dataset/images/test_00000.png");
    let mut rows = vec![bench.forward(&weights, &picture)?];
    for micro_batch in [1, 3] {
        rows.push(bench.pair(&run_file, micro_batch)?);
    }
    let text = report(root, model, &rows)?;
    print!("{text}");
    let file = root.join(FOLDER).join(format!("{}.md", model.kind));
    std::fs::write(&file, text)?;
    println!("in {}", file.display());
    Ok(())
}

struct Bench {
    double: Double,
    retouch: PathBuf,
    folder: PathBuf,
}

impl Bench {
    /// Runs a program on the double, with what it printed.
    fn run(&self, name: &str, arguments: &[&str]) -> anyhow::Result<(Counts, String)> {
        let mut command = Command::new(&self.retouch);
        command.args(arguments);
        let folder = self.folder.join(name);
        let counts = self.double.run(Program {
            name,
            command,
            folder: folder.clone(),
            limit: LIMIT,
            end: End::Well,
        })?;
        eprintln!("{name}: {:.1} s", counts.seconds);
        Ok((counts, std::fs::read_to_string(folder.join("stdout"))?))
    }

    fn forward(&self, model: &Path, picture: &Path) -> anyhow::Result<Row> {
        let (model, picture) = (model.display().to_string(), picture.display().to_string());
        let out = self.folder.join("edit.png").display().to_string();
        let edit = |steps: u64| {
            let steps = steps.to_string();
            let mut words = vec![
                "edit", "--device", "cuda:0", "--dtype", "bf16", "--model", &model,
            ];
            words.extend([
                "--height",
                PIXELS,
                "--width",
                PIXELS,
                "--num-inference-steps",
                &steps,
                "-o",
                &out,
                &picture,
                "make it red",
            ]);
            let (counts, _) = self.run(&format!("edit-{steps}"), &words)?;
            anyhow::Ok(counts)
        };
        // The first tunes and compiles.
        edit(STEPS[0])?;
        let [few, many] = [edit(STEPS[0])?, edit(STEPS[1])?];
        let forwards = (STEPS[1] - STEPS[0]) as f64;
        let each = |of: fn(&Counts) -> f64| (of(&many) - of(&few)) / forwards;
        Ok(Row {
            what: "frozen forward".into(),
            launches: each(|counts| counts.launches as f64),
            syncs: each(|counts| counts.syncs as f64),
            gib: many.card_bytes_peak as f64 / GIB,
        })
    }

    /// An iteration of a learner, divided by its pairs of sample and time.
    fn pair(&self, run_file: &Path, micro_batch: u32) -> anyhow::Result<Row> {
        let run_file = run_file.display().to_string();
        let micro = format!("learner.micro_batch_size={micro_batch}");
        let words = [
            "launch",
            &run_file,
            "--dry-run",
            "--json",
            "--set",
            &micro,
            "--set",
            "learner.device=cuda:0",
        ];
        self.run(&format!("step-{micro_batch}-tuning"), &words)?;
        let (counts, text) = self.run(&format!("step-{micro_batch}"), &words)?;
        let report: Value =
            serde_json::from_str(&text).context("launch --dry-run --json printed no JSON")?;
        let pairs = report["evaluations"]["theta"]
            .as_u64()
            .context("it says no pairs")? as f64;
        Ok(Row {
            what: format!("training pair, micro batch {micro_batch} ({pairs} pairs)"),
            launches: counts.launches as f64 / pairs,
            syncs: counts.syncs as f64 / pairs,
            gib: counts.card_bytes_peak as f64 / GIB,
        })
    }
}

fn report(root: &Path, model: &Model, rows: &[Row]) -> anyhow::Result<String> {
    let output = Command::new("git")
        .args(["log", "-1", "--format=%h %cs"])
        .current_dir(root)
        .output()?;
    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut cells = vec![
        ["what", "launches", "syncs", "GiB at most"]
            .map(String::from)
            .to_vec(),
    ];
    cells.extend(rows.iter().map(|row| {
        vec![
            row.what.clone(),
            format!("{:.0}", row.launches),
            format!("{:.1}", row.syncs),
            format!("{:.1}", row.gib),
        ]
    }));
    Ok(format!(
        "# {} at its published size on the driver double\n\nCommit {commit}, {PIXELS} x {PIXELS}, bf16, by `cargo xtask gpu double --{}`. GiB are of the whole \
         program, its context included, and so are launches and syncs of training.\n\n{}",
        model.name,
        model.kind,
        table::markdown(&cells)
    ))
}
