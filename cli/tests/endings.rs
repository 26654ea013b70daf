//! How launches end: with which exit code and which last words, and that the next launch goes on.

mod harness;

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use harness::{
    adapter, assets, retouch,
    run::{OUT, Run, launch_command, run_file, undisturbed},
    signal, wait_for, worker,
};
use serde_json::Value;

/// A run that has to be written down by whoever ends it: no checkpoint is scheduled.
const UNSCHEDULED: [&str; 2] = ["iterations=8", "learner.checkpoint_every=100"];
/// Of a launch that has nothing to compute; generous, since tests share their machine.
const AT_ONCE: Duration = Duration::from_secs(20);

fn code(run: &mut Run) -> Option<i32> {
    run.finish().code()
}

/// A judge of numbers that are none, in a folder of its own; gives the setting.
fn spoiled_judge(folder: &Path) -> String {
    let judge = folder.join("judge");
    copy_folder(&assets().join("judge"), &judge);
    spoil(&judge.join("model.safetensors"));
    let template = judge.join("template.txt");
    format!("reward.terms=[{{ path = {judge:?}, template = {template:?} }}]")
}

fn restore_judge(folder: &Path) {
    let sound = assets().join("judge/model.safetensors");
    fs::copy(sound, folder.join("judge/model.safetensors")).expect("our own file");
}

#[test]
fn a_run_that_fails_ends_with_its_reason_until_it_is_retried() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let judge = spoiled_judge(place.path());
    let mut run = Run::launch(&[&judge, "iterations=1"]);
    assert_eq!(code(&mut run), Some(1), "{}", run.logs());
    let reason = run.reason();
    for part in [
        "error: the run failed after iteration 0: ",
        "launch --retry",
    ] {
        assert!(reason.contains(part), "{part}\n{}", run.logs());
    }

    let begin = Instant::now();
    run.again(&[&judge, "iterations=1"]);
    assert_eq!(code(&mut run), Some(1), "{}", run.logs());
    assert_eq!(run.reason(), reason);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());

    restore_judge(place.path());
    let mut arguments = run_file(run.path(), &[&judge, "iterations=1"]);
    arguments.push("--retry".to_owned());
    run.child = launch_command(&arguments, run.path())
        .spawn()
        .expect("retouch starts");
    let report = run.finish_well();
    assert_eq!(report["state"], "finished");
}

#[test]
fn whatever_a_run_fails_of_is_the_last_line() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let judge = spoiled_judge(place.path());
    fails_of(
        "judge with numbers that are none",
        &[&judge],
        |_| {},
        "not finite",
    );

    let editor = place.path().join("editor");
    copy_folder(&assets().join("editor"), &editor);
    spoil(&editor.join("transformer/diffusion_pytorch_model.safetensors"));
    let editor = format!("model.path={}", editor.display());
    fails_of(
        "editor with numbers that are none",
        &[&editor],
        |_| {},
        "finite",
    );

    // Attempts that fail one after the other.
    let in_the_way = |run: &Path| {
        fs::write(run.join("adapters"), "a file in the way").expect("our own file");
    };
    fails_of("no place for adapters", &[], in_the_way, "adapters");
}

fn fails_of(what: &str, sets: &[&str], prepare: impl FnOnce(&Path), part: &str) {
    let sets = [sets, &["iterations=1"]].concat();
    let (mut run, _) = launch_expecting(&sets, prepare);
    assert_eq!(code(&mut run), Some(1), "{what}\n{}", run.logs());
    let reason = run.reason();
    for part in [
        "error: the run failed after iteration ",
        part,
        "launch --retry",
    ] {
        assert!(
            reason.contains(part),
            "{what}: {part}\n{reason}\n{}",
            run.logs()
        );
    }
}

/// The last numbers of a weight file are none any more.
fn spoil(weights: &Path) {
    let mut bytes = fs::read(weights).expect("weights");
    let last = bytes.len() - 4 * 64;
    for number in bytes[last..].chunks_exact_mut(4) {
        number.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(weights, bytes).expect("our own file");
}

#[test]
fn what_retrying_does_not_help_ends_the_launch_at_once() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut run = launch_expecting(&[&format!("cluster.listen={address}")], |_| {});
    refused(&mut run, 2, &format!("cannot listen on {address}"));

    let mut run = launch_expecting(&[], |folder| {
        fs::write(folder.join("run.db"), "no database ".repeat(1000)).expect("our own file");
    });
    refused(&mut run, 2, "run.db is corrupt");

    // Held until the launch has ended.
    let mut lock = None;
    let mut run = launch_expecting(&[], |folder| {
        let file = fs::File::create(folder.join("run.lock")).expect("our own file");
        file.lock().expect("nobody else has it");
        lock = Some(file);
    });
    refused(&mut run, 2, "another coordinator is running in this folder");

    let place = tempfile::tempdir().expect("a temporary folder");
    let judge = place.path().join("judge");
    copy_folder(&assets().join("judge"), &judge);
    let weights = judge.join("model.safetensors");
    let template = judge.join("template.txt");
    let term = format!("reward.terms=[{{ path = {judge:?}, template = {template:?} }}]");
    fs::write(&template, "no place for an image").expect("our own file");
    let mut run = launch_expecting(&[&term], |_| {});
    refused(&mut run, 2, "reward-worker-0 can't run: ");
    fs::write(&weights, "no weights").expect("our own file");
    let mut run = launch_expecting(&[&term], |_| {});
    refused(&mut run, 2, "reward.terms.path: ");
}

/// Launches into a folder that `prepare` has seen.
fn launch_expecting(sets: &[&str], prepare: impl FnOnce(&Path)) -> (Run, Instant) {
    let run = Run::prepared(
        |folder| {
            fs::create_dir_all(folder.join("run")).expect("our own folder");
            prepare(&folder.join("run"));
        },
        sets,
    );
    (run, Instant::now())
}

fn refused((run, begin): &mut (Run, Instant), expected: i32, part: &str) {
    assert_eq!(code(run), Some(expected), "{}", run.logs());
    assert!(run.reason().contains(part), "{part}\n{}", run.logs());
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("our own folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let (from, to) = entry
            .map(|entry| (entry.path(), to.join(entry.file_name())))
            .expect("a file");
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => drop(fs::copy(from, to).expect("our own file")),
        }
    }
}

#[test]
fn a_signal_has_the_last_iteration_written_down_and_the_next_launch_goes_on_from_it() {
    let straight = Run::launch(&UNSCHEDULED).finish_well();
    for (name, expected) in [("TERM", 75), ("INT", 130), ("HUP", 75)] {
        if name == "HUP" && hang_ups_are_ignored() {
            continue;
        }
        let mut run = Run::launch(&UNSCHEDULED);
        run.wait_for(|status| status["committed"].as_u64() >= Some(2));
        let begin = Instant::now();
        signal(name, i32::try_from(run.child.id()).expect("a process id"));
        assert_eq!(code(&mut run), Some(expected), "SIG{name}\n{}", run.logs());
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{:?}",
            begin.elapsed()
        );
        let reason = run.reason();
        let begins = format!("stopped by SIG{name}: iteration ");
        assert!(reason.starts_with(&begins), "{}", run.logs());
        let ends = " is written down; the same command goes on from it";
        assert!(reason.ends_with(ends), "{}", run.logs());
        let last: u64 = reason[begins.len()..reason.len() - ends.len()]
            .parse()
            .expect("an iteration");
        assert!(run.path().join(format!("run/checkpoints/{last}")).is_dir());

        run.again(&UNSCHEDULED);
        assert_eq!(adapter(&run.finish_well()), adapter(&straight), "SIG{name}");
        let said = run.said(OUT);
        assert!(
            said.contains(&format!("continuing after iteration {last}\n")),
            "{said}"
        );
        let shown = |iteration: u64| said.contains(&format!("iteration {iteration}/8"));
        assert!(!shown(last), "it was shown by the launch before\n{said}");
        assert!((last + 1..=8).all(shown), "{said}");
    }
}

/// Under `nohup`, for this process and those that it starts.
fn hang_ups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.expect("a mask").trim(), 16).expect("a number");
    mask & 1 != 0
}

/// As systemd and Slurm send it. `launch` then passes its own on, which must not be the second.
#[test]
fn a_signal_to_all_processes_has_the_last_iteration_written_down_too() {
    let mut run = Run::launch(&UNSCHEDULED);
    run.wait_for(|status| status["committed"].as_u64() >= Some(2));
    let launch = i32::try_from(run.child.id()).expect("a process id");
    let names = ["coordinator", "learner-0", "learner-1", "reward-worker-0"];
    let others = names.map(|name| run.process(name));
    for pid in [launch].into_iter().chain(others) {
        signal("TERM", pid);
    }
    assert_eq!(code(&mut run), Some(75), "{}", run.logs());
    let reason = run.reason();
    assert!(reason.contains(" is written down; "), "{}", run.logs());
}

#[test]
fn a_second_signal_ends_a_launch_at_once() {
    let mut run = Run::launch(&UNSCHEDULED);
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let pid = i32::try_from(run.child.id()).expect("a process id");
    // So that the first one alone can't end it.
    let coordinator = run.process("coordinator");
    signal("STOP", coordinator);
    signal("INT", pid);
    wait_for("the first signal is heard", run.path(), || {
        run.said(OUT)
            .contains("a second signal ends at once")
            .then_some(())
    });
    let begin = Instant::now();
    signal("INT", pid);
    assert_eq!(code(&mut run), Some(130), "{}", run.logs());
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    let gone = || !Path::new(&format!("/proc/{coordinator}")).exists();
    wait_for("no process outlives it", run.path(), || {
        gone().then_some(())
    });
}

#[test]
fn workers_that_a_signal_ended_are_started_again() {
    for names in [
        &["reward-worker-0"][..],
        &["rollout-worker-0", "rollout-worker-1"],
        &["learner-0", "learner-1"],
    ] {
        let mut run = Run::launch(&[]);
        run.wait_for(|status| status["committed"].as_u64() >= Some(1));
        for name in names {
            signal("TERM", run.process(name));
        }
        let report = run.finish_well();
        assert_eq!(adapter(&report), adapter(undisturbed()), "{names:?}");
    }
}

#[test]
fn a_role_without_workers_ends_the_launch_and_the_next_one_goes_on() {
    for (role, names) in [
        ("reward", &["reward-worker-0"][..]),
        ("rollout", &["rollout-worker-0", "rollout-worker-1"]),
        ("learner", &["learner-0", "learner-1"]),
    ] {
        let mut run = Run::launch(&UNSCHEDULED);
        run.wait_for(|status| status["committed"].as_u64() >= Some(1));
        for name in names {
            let drained = command(&run, &["drain", "RUN", name]);
            assert!(drained.status.success(), "{drained:?}");
        }
        assert_eq!(code(&mut run), Some(1), "{role}\n{}", run.logs());
        let reason = run.reason();
        for part in [
            format!("every {role} worker has left the run"),
            "is written down; the same command goes on from it".to_owned(),
        ] {
            assert!(reason.contains(&part), "{part}\n{}", run.logs());
        }
        run.again(&UNSCHEDULED);
        run.wait_for(|status| worker(status, names[0]).is_some_and(|w| w["state"] == "ready"));
        let stopped = command(&run, &["stop", "RUN"]);
        assert!(stopped.status.success(), "{stopped:?}");
        run.finish_well();
    }
}

/// A command on the run, whose folder stands for `RUN`.
fn command(run: &Run, words: &[&str]) -> Output {
    let folder = run.path().join("run");
    let mut command = retouch();
    for word in words {
        match *word {
            "RUN" => command.arg(&folder),
            word => command.arg(word),
        };
    }
    command
        .current_dir(harness::root())
        .output()
        .expect("retouch starts")
}

#[test]
fn a_run_is_reported_whenever_it_has_an_adapter_and_stopped_runs_go_on() {
    let mut run = Run::launch(&UNSCHEDULED);
    run.wait_for(|status| status["committed"].as_u64() >= Some(1));
    let early = command(&run, &["report", "RUN"]);
    let said = String::from_utf8_lossy(&early.stderr);
    assert_eq!(early.status.code(), Some(1), "{said}");
    assert!(said.contains("has no adapter yet"), "{said}");

    let written = command(&run, &["checkpoint", "RUN", "--json"]);
    let written: Value = serde_json::from_slice(&written.stdout).expect("JSON");
    assert!(
        written["message"]
            .as_str()
            .expect("words")
            .ends_with("is durable")
    );
    let made = command(&run, &["report", "RUN"]);
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success(), "{made:?}");
    assert!(said.contains("(of iteration "), "{said}");

    let stopped = command(&run, &["stop", "RUN"]);
    assert!(stopped.status.success(), "{stopped:?}");
    let report = run.finish_well();
    assert_eq!(report["state"], "stopped");
    assert_eq!(report["adapter_iteration"], report["iterations"]);
    assert!(
        run.said(OUT).contains("stopped after iteration"),
        "{}",
        run.logs()
    );

    run.again(&UNSCHEDULED);
    let report = run.finish_well();
    assert_eq!(report["state"], "finished");
    assert_eq!(report["iterations"], 8);
}

#[test]
fn a_run_goes_on_when_its_output_can_not_be_written() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let arguments = run_file(place.path(), &["iterations=1"]);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let mut child = launch_command(&arguments, place.path())
        .stdout(writer)
        .stderr(full)
        .spawn()
        .expect("retouch starts");
    let status = wait_for("the run ends", &place.path().join("run/logs"), || {
        child.try_wait().expect("our own child")
    });
    assert!(status.success(), "{status}");
    assert!(place.path().join("run/report.html").is_file());
}

#[test]
fn an_error_that_can_not_be_written_keeps_its_exit_code() {
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full")
    };
    for (words, expected) in [
        (&["launch", "missing.toml"][..], 2),
        (&["coordinator", "missing.toml"], 2),
        (&["status", "missing"], 3),
    ] {
        let status = retouch()
            .args(words)
            .stdout(full())
            .stderr(full())
            .status()
            .expect("retouch starts");
        assert_eq!(status.code(), Some(expected), "{words:?}");
    }
}
