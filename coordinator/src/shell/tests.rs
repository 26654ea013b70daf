//! A shell whose record has no room.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command as Process;

use retouch_dataset::Row;

use super::*;
use crate::store::Reader;
use crate::store::fixture::{MadeUpRun, ROWS};

/// A shell as a coordinator starts it.
fn shell(folder: &Path, run: &MadeUpRun) -> (Shell, Handle) {
    let (store, record) = Store::open(folder, &run.config, ROWS).unwrap();
    let row = |index| Row {
        prompt: format!("prompt {index}"),
        images: vec!["a.png".into()],
        requirement: String::new(),
        target: None,
    };
    let rows = (0..100).map(row).collect();
    let config = run.config.clone();
    let start = |now_ms| Machine::new(config, rows, record, now_ms);
    let charts = Charts::new(folder.join("events"), String::new());
    Shell::new(start, store, charts).unwrap()
}

/// Pauses and resumes, each with an event, until nothing is let out any more; gives the answer that is held.
fn fill(shell: &mut Shell) -> oneshot::Receiver<Result<Controlled, String>> {
    for turn in 0..10_000 {
        let (sender, mut answer) = oneshot::channel();
        let command = match turn % 2 {
            0 => Command::Pause,
            _ => Command::Resume,
        };
        shell.apply(Request::Control(command, sender));
        assert!(shell.let_out().unwrap().is_none());
        if shell.full_disk.is_some() {
            assert!(answer.try_recv().is_err(), "it is not recorded");
            return answer;
        }
        answer.try_recv().unwrap().unwrap();
    }
    panic!("there was room for everything");
}

/// While the disk is full and after there is space again.
fn check(shell: &mut Shell, run_folder: &Path, make_room: impl FnOnce(&mut Shell)) {
    let mut answer = fill(shell);
    let (sender, mut status) = oneshot::channel();
    shell.apply(Request::Status(sender));
    let stalls = status.try_recv().unwrap().stalls;
    let cause = stalls.first().map_or("", |stall| stall.cause.as_str());
    assert!(
        cause.contains("run.db can't be written: its disk is full"),
        "{cause}"
    );
    let (sender, mut events) = oneshot::channel();
    shell.apply(Request::Events(0, sender));
    events.try_recv().unwrap();
    assert!(shell.patience() <= FULL_RETRY);

    make_room(shell);
    assert!(shell.let_out().unwrap().is_none());
    assert!(
        answer.try_recv().is_err(),
        "it is tried again after a while"
    );
    if let Some(full) = &mut shell.full_disk {
        full.tried = full.tried.checked_sub(FULL_RETRY).unwrap();
    }
    assert!(shell.let_out().unwrap().is_none());
    answer.try_recv().unwrap().unwrap();
    assert!(shell.full_disk.is_none());
    // Nothing was lost, and nothing came twice.
    let recorded = Reader::open(run_folder)
        .unwrap()
        .last_events(10_000)
        .unwrap();
    let numbers: Vec<u64> = recorded.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(recorded.last(), shell.events.back());
}

#[test]
fn without_room_nothing_is_let_out_and_nothing_is_lost() {
    let run = MadeUpRun::new();
    let (mut shell, _handle) = shell(run.path(), &run);
    shell.let_out().unwrap();
    shell.store.limit_pages(1);
    check(&mut shell, run.path(), |shell| {
        shell.store.limit_pages(1_000_000)
    });
}

#[test]
fn without_room_answers_do_not_pile_up_and_a_process_that_is_told_to_end_ends() {
    let run = MadeUpRun::new();
    let (mut shell, _handle) = shell(run.path(), &run);
    shell.let_out().unwrap();
    shell.store.limit_pages(1);
    let answer = fill(&mut shell);
    let try_again = |shell: &mut Shell| {
        let full = shell.full_disk.as_mut().unwrap();
        full.tried = full.tried.checked_sub(FULL_RETRY).unwrap();
        shell.let_out()
    };
    let answers = |shell: &Shell| {
        let answers = shell.held.rest.iter();
        let answers = answers.filter(|output| matches!(output, Output::Controlled(..)));
        answers.count()
    };
    assert!(try_again(&mut shell).unwrap().is_none());
    assert_eq!((answers(&shell), shell.waiting.len()), (1, 1));
    drop(answer);
    assert!(try_again(&mut shell).unwrap().is_none());
    assert_eq!((answers(&shell), shell.waiting.len()), (0, 0));
    // Nothing is to be written down, so the machine has nothing to wait for.
    shell.apply(Request::Suspend);
    let ended = try_again(&mut shell);
    assert!(
        matches!(ended, Err(StoreError::DiskFull { .. })),
        "{ended:?}"
    );
}

/// A file system with this much room; none where that may not be mounted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(kib: u32) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let size = format!("size={kib}k");
        let mounted = Process::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(at.path())
            .status();
        match mounted.is_ok_and(|status| status.success()) {
            true => Some(Self(at)),
            false => {
                eprintln!("SKIPPED: no tmpfs can be mounted here, so no disk was really full");
                None
            }
        }
    }

    /// Takes all room but this much.
    fn fill(&self, but_kib: usize) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[1; 1 << 10]).is_ok() {}
        let len = filler.metadata().unwrap().len();
        let room = (but_kib as u64) << 10;
        filler.set_len(len.saturating_sub(room)).unwrap();
    }

    fn run_folder(&self) -> std::path::PathBuf {
        let folder = self.0.path().join("run");
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn filler(&self) -> std::path::PathBuf {
        self.0.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Process::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.unwrap().success());
    }
}

#[test]
fn a_run_waits_for_space_on_a_disk_that_is_full() {
    let Some(disk) = SmallDisk::mount(4_096) else {
        return;
    };
    let (run, folder) = (MadeUpRun::new(), disk.run_folder());
    let (mut shell, _handle) = shell(&folder, &run);
    shell.let_out().unwrap();
    disk.fill(64);
    check(&mut shell, &folder, |_| {
        fs::remove_file(disk.filler()).unwrap()
    });
}

#[test]
fn a_start_on_a_full_disk_says_so_and_a_later_one_is_as_the_first() {
    let Some(disk) = SmallDisk::mount(1_024) else {
        return;
    };
    let (run, folder) = (MadeUpRun::new(), disk.run_folder());
    for but_kib in [0, 4, 8, 16, 40] {
        disk.fill(but_kib);
        let error = Store::open(&folder, &run.config, ROWS)
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(error, StoreError::DiskFull { .. }),
            "{but_kib}: {error:?}"
        );
        fs::remove_file(disk.filler()).unwrap();
    }
    let (_, record) = Store::open(&folder, &run.config, ROWS).unwrap();
    assert_eq!((record.incarnation, record.event_sequence), (1, 0));
}
