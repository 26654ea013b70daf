//! The command line of `cargo xtask chaos`.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail, ensure};

use crate::chaos::{campaign::Campaign, place::Place, plan::Kind, report};

const USAGE: &str = "\
Small real runs through `retouch launch`, disturbed at seeded moments. Every run must end, and all runs of one
rollout.staleness_max must end with the same adapter, bit for bit, with one learner as with two: that of the
undisturbed runs that are made first.

usage: cargo xtask chaos [OPTIONS]

  --seeds N           so many seeds, each for every staleness [10]
  --from SEED         the first of them [1]
  --seed SEED         this seed alone, and its story while it happens
  --staleness N,N     values of rollout.staleness_max [0,1,2]
  --faults KIND,KIND  kinds of faults [all of them]:
                        kill, stop, term, hup, int  signals, to each process, to `launch` and to all at once (hup and
                                                    int to the latter two alone); `stop` continues seconds later
                        order                       stop, drain, pause and resume, restart, checkpoint; the coordinator
                                                    may be killed right after its answer
                        disk                        the run folder's disk is full for some seconds; needs the right to
                                                    mount (root, or a user namespace)
                        clock                       a wall clock is hours off or jumps; needs a C compiler
  --jobs N            runs at a time [2]
  --limit-s S         how long a run may go on after the last fault [180]
  --retouch PATH      the binary; it is built if this is not given
  --keep              keep the folders of failed runs in target/chaos
  --json              print the result as JSON, and everything else on stderr

A seed says which faults there are, and when they are in thousandths of the time that an undisturbed run takes; what
they meet there depends on the machine. So the same seed is the same attack, and may need some repetition.

examples:
  cargo xtask chaos --seeds 100                       all kinds of faults, 300 runs
  cargo xtask chaos --seed 17 --staleness 1 --keep    the story of one run
  cargo xtask chaos --seeds 20 --staleness 0 --faults kill,stop";

/// Set in the process that has file systems of its own.
const INSIDE: &str = "RETOUCH_CHAOS_INSIDE";

/// The command line, taken apart.
#[derive(Debug)]
struct Options {
    campaign: Campaign,
    retouch: Option<PathBuf>,
    json: bool,
}

pub(crate) fn run(root: &Path, arguments: &[String]) -> anyhow::Result<()> {
    if arguments
        .iter()
        .any(|word| word == "--help" || word == "-h")
    {
        println!("{USAGE}");
        return Ok(());
    }
    let options = parse(arguments)?;
    enter_own_file_systems();
    let mut left_out = Vec::new();
    let place = place(root, &options, &mut left_out)?;
    for what in &left_out {
        eprintln!("LEFT OUT: {what}");
    }
    let outcomes = options.campaign.make(&place, |outcome| {
        eprintln!("{}", report::line(outcome));
        eprint!("{}", report::details(outcome));
    });
    match report::is_well(&outcomes) || !options.campaign.keep {
        true => std::fs::remove_dir_all(&place.folder)?,
        false => eprintln!("kept: {}", place.folder.display()),
    }
    if options.json {
        println!("{:#}", report::json(&outcomes, &left_out));
    } else {
        print!("\n{}", report::table(&outcomes));
    }
    for what in &left_out {
        eprintln!("LEFT OUT: {what}");
    }
    ensure!(report::is_well(&outcomes), "some runs failed");
    Ok(())
}

/// What is mounted after this vanishes with the process, however that ends.
fn enter_own_file_systems() {
    let Ok(own) = std::env::current_exe() else {
        return;
    };
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let unshare = |options: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(options).arg("--mount");
        command
    };
    for options in [&[][..], &["--map-root-user"]] {
        let probe = unshare(options).arg("true").output();
        if probe.is_ok_and(|probe| probe.status.success()) {
            let mut command = unshare(options);
            command.arg(&own).args(std::env::args_os().skip(1));
            // It only returns if it fails, and then the disk is left out.
            let _ = command.env(INSIDE, "1").exec();
        }
    }
}

fn place(root: &Path, options: &Options, left_out: &mut Vec<String>) -> anyhow::Result<Place> {
    let folder = root
        .join("target/chaos")
        .join(std::process::id().to_string());
    std::fs::create_dir_all(&folder)?;
    let retouch = match &options.retouch {
        Some(retouch) => retouch.canonicalize(),
        None => build(root)?.canonicalize(),
    };
    let mut place = Place {
        retouch: retouch.context("can't find the binary")?,
        assets: root.join("assets/tiny"),
        folder,
        clock: None,
        disks: false,
    };
    let has = |kind| options.campaign.kinds.contains(&kind);
    if has(Kind::Clock)
        && let Err(error) = place.build_clock(&root.join("tools/chaos/clock.c"))
    {
        left_out.push(format!(
            "clocks stay right, as `cc` is needed to set them wrong: {error:#}"
        ));
    }
    let has_own = std::env::var_os(INSIDE).is_some();
    if has(Kind::Disk) {
        if !has_own {
            left_out
                .push("no disk is full: `unshare --mount` needs root or a user namespace".into());
        } else if let Err(error) = place.try_disks() {
            left_out.push(format!("no disk is full: {error:#}"));
        }
    }
    Ok(place)
}

fn build(root: &Path) -> anyhow::Result<PathBuf> {
    crate::cargo(&["build", "--workspace", "--bin", "retouch"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| root.join("target"), |folder| root.join(folder));
    Ok(target.join("debug/retouch"))
}

fn parse(arguments: &[String]) -> anyhow::Result<Options> {
    let mut options = Options {
        campaign: Campaign {
            staleness: vec![0, 1, 2],
            seeds: Vec::new(),
            kinds: Kind::ALL.to_vec(),
            jobs: 2,
            limit: Duration::from_secs(180),
            keep: false,
            aloud: false,
        },
        retouch: None,
        json: false,
    };
    let (mut from, mut count, mut single) = (1, 10, None);
    let campaign = &mut options.campaign;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} needs a value"))
        };
        match word.as_str() {
            "--seeds" => count = number(word, value()?)?,
            "--from" => from = number(word, value()?)?,
            "--seed" => single = Some(number(word, value()?)?),
            "--staleness" => {
                let values = value()?.split(',').map(|text| number(word, text));
                campaign.staleness = values.collect::<Result<_, _>>()?;
            }
            "--faults" => {
                let kinds = value()?.split(',').map(kind);
                campaign.kinds = kinds.collect::<Result<_, _>>()?;
            }
            "--jobs" => campaign.jobs = number(word, value()?)?.max(1) as usize,
            "--limit-s" => campaign.limit = Duration::from_secs(number(word, value()?)?),
            "--retouch" => options.retouch = Some(value()?.into()),
            "--keep" => campaign.keep = true,
            "--json" => options.json = true,
            _ => bail!("unknown option {word:?}\n\n{USAGE}"),
        }
    }
    campaign.aloud = single.is_some() && !options.json;
    campaign.seeds = match single {
        Some(seed) => vec![seed],
        None => (from..from + count).collect(),
    };
    Ok(options)
}

fn number(option: &str, text: &str) -> anyhow::Result<u64> {
    let number = text.parse();
    number.with_context(|| format!("{option} {text:?} is not a whole number"))
}

fn kind(name: &str) -> anyhow::Result<Kind> {
    let names = Kind::ALL.map(Kind::as_str).join(", ");
    Kind::from_name(name).with_context(|| format!("--faults {name:?} is not one of {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> anyhow::Result<Options> {
        let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
        parse(&words)
    }

    #[test]
    fn options_are_read() {
        let options = parsed("--seeds 3 --from 7 --staleness 0,2 --faults kill,disk --jobs 1");
        let campaign = options.expect("they are right").campaign;
        assert_eq!(campaign.seeds, [7, 8, 9]);
        assert_eq!(campaign.staleness, [0, 2]);
        assert_eq!(campaign.kinds, [Kind::Kill, Kind::Disk]);
        let one = parsed("--seed 5").expect("it is right").campaign;
        assert_eq!((one.seeds, one.aloud), (vec![5], true));
    }

    #[test]
    fn wrong_options_are_named() {
        for (line, part) in [
            ("--seeds x", "\"x\" is not a whole number"),
            ("--faults fire", "\"fire\" is not one of kill, stop"),
            ("--seed", "--seed needs a value"),
            ("--nonsense", "unknown option \"--nonsense\""),
        ] {
            let error = parsed(line).expect_err(line).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
