//! The run's numbers for TensorBoard: `events/` in the run folder, one file that has every step once.
//!
//! TensorBoard reads the files of a folder one after the other, so a step that is in two of them is drawn twice. A start
//! of the coordinator, and a rewind, therefore write the whole history into a new file, empty the one before it and
//! remove older ones. Its first event says that a session starts, upon which a TensorBoard that is running drops what it
//! has read.
//!
//! Pictures are a run of their own to TensorBoard, in the folder `samples` below, so that whoever draws them need not be
//! the coordinator, through which no bulk bytes pass (A4).

mod event;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use retouch_proto::files::put_in_place;
use retouch_proto::metrics::METRICS;
use retouch_proto::status::IterationMetrics;
use toml::{Table, Value};

pub use self::event::Picture;
use self::event::{Event, Setting};

const PREFIX: &str = "events.out.tfevents.";
const OURS: &str = ".retouch.";
/// TensorBoard reads every file with `tfevents` in its name, finished or not.
const UNFINISHED: &str = "retouch.partial";
/// The folder of the pictures, and so the name of their run.
const PICTURES: &str = "samples";

/// The charts of a run. It goes on without them where they can't be written.
pub(crate) struct Charts {
    folder: PathBuf,
    /// The resolved run file.
    run_file: String,
    file: Option<EventsFile>,
}

impl Charts {
    /// In that folder, of a run with this resolved run file; nothing is written yet.
    pub(crate) fn new(folder: PathBuf, run_file: String) -> Self {
        Self {
            folder,
            run_file,
            file: None,
        }
    }

    /// Whether there is a file to add to.
    pub(crate) fn are_open(&self) -> bool {
        self.file.is_some()
    }

    /// Begins anew with the committed iterations.
    pub(crate) fn begin(&mut self, history: &[IterationMetrics], now_ms: u64) {
        let created = EventsFile::create(&self.folder, &self.run_file, history, now_ms);
        self.keep(created);
    }

    /// Adds a committed iteration.
    pub(crate) fn add(&mut self, metrics: &IterationMetrics, now_ms: u64) {
        let added = self.file.take().map(|mut file| {
            let added = file.add(metrics, now_ms);
            added.map(|()| file)
        });
        if let Some(added) = added {
            self.keep(added);
        }
    }

    fn keep(&mut self, written: io::Result<EventsFile>) {
        let written = written.inspect_err(|error| {
            let folder = self.folder.display();
            tracing::warn!(%error, "no TensorBoard file can be written in {folder}");
        });
        self.file = written.ok();
    }
}

/// One file of scalars, written as iterations are committed.
struct EventsFile {
    file: File,
}

impl EventsFile {
    /// Begins a file with the iterations so far, which takes the place of all older ones.
    fn create(
        folder: &Path,
        run_file: &str,
        history: &[IterationMetrics],
        now_ms: u64,
    ) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let older = ours(folder)?;
        let unfinished = folder.join(UNFINISHED);
        let mut events = Self {
            file: File::create(&unfinished)?,
        };
        if let Err(error) = events.write_history(run_file, history, now_ms) {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        let newest = older.iter().map(|(seconds, _)| *seconds).max().unwrap_or(0);
        put_in_place(&unfinished, &folder.join(next_name(&older, now_ms)))?;
        for (seconds, path) in older {
            match seconds == newest {
                // A TensorBoard that has read it looks for more in it first: without the file it would go no further.
                true => File::create(path).map(drop)?,
                false => fs::remove_file(path)?,
            }
        }
        Ok(events)
    }

    fn write_history(
        &mut self,
        run_file: &str,
        history: &[IterationMetrics],
        now_ms: u64,
    ) -> io::Result<()> {
        self.write(&Event::version(now_ms))?;
        self.write(&Event::session_start(now_ms))?;
        // Markdown shows indented lines as they are.
        let lines: String = run_file
            .lines()
            .map(|line| format!("    {line}\n"))
            .collect();
        self.write(&Event::text("run_file", &lines, now_ms))?;
        self.write(&Event::settings(&settings(run_file), now_ms))?;
        history
            .iter()
            .try_for_each(|metrics| self.add(metrics, now_ms))
    }

    fn add(&mut self, metrics: &IterationMetrics, now_ms: u64) -> io::Result<()> {
        let step = metrics.iteration.0;
        self.write(&Event::scalars(step, &scalars(metrics), now_ms))
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        self.file.write_all(&event.record())
    }
}

/// Adds pictures to the run's `events` folder, in a file of their own.
///
/// # Errors
/// If it can't be written.
pub fn add_pictures(events: &Path, pictures: &[Picture], now_ms: u64) -> io::Result<()> {
    let folder = events.join(PICTURES);
    fs::create_dir_all(&folder)?;
    let events = pictures
        .iter()
        .map(|picture| Event::picture(picture, now_ms));
    let records = std::iter::once(Event::version(now_ms)).chain(events);
    let unfinished = folder.join(UNFINISHED);
    let written: Vec<u8> = records.flat_map(|event| event.record()).collect();
    fs::write(&unfinished, written)?;
    put_in_place(
        &unfinished,
        &folder.join(next_name(&ours(&folder)?, now_ms)),
    )
}

/// Readers take files by name, and go on to later names only, whatever the clock says.
fn next_name(older: &[(u64, PathBuf)], now_ms: u64) -> String {
    let newest = older.iter().map(|(seconds, _)| *seconds).max().unwrap_or(0);
    let seconds = (now_ms / 1000).max(newest + 1);
    format!("{PREFIX}{seconds}{OURS}{}", std::process::id())
}

/// The files that earlier starts wrote, with the second in their names.
fn ours(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let second = name.to_str().and_then(|name| {
            let (second, _) = name.strip_prefix(PREFIX)?.split_once(OURS)?;
            second.parse().ok()
        });
        found.extend(second.map(|second| (second, entry.path())));
    }
    Ok(found)
}

/// Everything about an iteration that is a number, by tag.
fn scalars(metrics: &IterationMetrics) -> Vec<(String, f64)> {
    let table = METRICS.iter();
    let mut scalars: Vec<(String, f64)> = table
        .filter_map(|metric| Some((metric.tag(), metric.value(metrics)?)))
        .collect();
    // `reward/mean` and others are taken, and a term may have any name.
    let terms = metrics.reward_terms.iter();
    scalars.extend(terms.map(|(name, mean)| (format!("reward/term_{name}"), *mean)));
    scalars
}

/// Every field of a run file that has one value, as `section.field`.
fn settings(run_file: &str) -> Vec<(String, Setting)> {
    let mut found = Vec::new();
    if let Ok(table) = run_file.parse::<Table>() {
        collect("", &table, &mut found);
    }
    found
}

fn collect(section: &str, table: &Table, found: &mut Vec<(String, Setting)>) {
    for (key, value) in table {
        let key = format!("{section}{key}");
        let setting = match value {
            Value::Table(fields) => {
                collect(&format!("{key}."), fields, found);
                continue;
            }
            Value::Integer(number) => Setting::Number(*number as f64),
            Value::Float(number) => Setting::Number(*number),
            Value::Boolean(is_on) => Setting::Switch(*is_on),
            Value::String(text) => Setting::Text(text.clone()),
            Value::Array(_) | Value::Datetime(_) => Setting::Text(value.to_string()),
        };
        found.push((key, setting));
    }
}

#[cfg(test)]
mod tests {
    use retouch_proto::Iteration;
    use retouch_proto::task::TrainMetrics;

    use super::event::tests::records;
    use super::*;

    fn metrics(iteration: u32) -> IterationMetrics {
        IterationMetrics {
            iteration: Iteration(iteration),
            scored: 1,
            reward_mean: 0.5,
            train: Some(TrainMetrics::default()),
            ..IterationMetrics::default()
        }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn a_file_begins_with_its_version_and_has_a_record_for_each_iteration() {
        let folder = tempfile::tempdir().unwrap();
        let mut events =
            EventsFile::create(folder.path(), "seed = 7", &[metrics(1)], 1_500).unwrap();
        events.add(&metrics(300), 2_000).unwrap();
        let files = files(folder.path());
        assert_eq!(files.len(), 1);
        let bytes = fs::read(&files[0]).unwrap();
        let records = records(&bytes);
        assert_eq!(records.len(), 6);
        let time = |seconds: f64| [&[9][..], &seconds.to_le_bytes()].concat();
        assert_eq!(
            records[0],
            [time(1.5), b"\x1a\x0dbrain.Event:2".to_vec()].concat()
        );
        let session_start = vec![7 << 3 | 2, 2, 1 << 3, 1];
        assert_eq!(records[1], [time(1.5), session_start].concat());
        assert_eq!(records[4][..11], [time(1.5), vec![16, 1]].concat());
        assert_eq!(
            records[5][..12],
            [time(2.0), vec![16, 0xac, 2]].concat(),
            "300 takes two bytes"
        );
        let scalar = [
            &b"\x0a\x12\x0a\x0breward/mean\x15"[..],
            &0.5_f32.to_le_bytes(),
        ]
        .concat();
        let has = |record: &[u8]| record.windows(scalar.len()).any(|part| part == scalar);
        assert!(has(&records[4]) && has(&records[5]));
    }

    #[test]
    fn every_step_is_written_once_over_all_starts() {
        let folder = tempfile::tempdir().unwrap();
        let foreign = folder.path().join("events.out.tfevents.1.host");
        fs::write(&foreign, "another program's").unwrap();
        fs::write(folder.path().join(UNFINISHED), "cut short").unwrap();
        let mut last = foreign.clone();
        // In one second, and after the clock was set back.
        for (history, now_ms) in [(0, 5_000), (1, 5_000), (2, 3_000)] {
            let history: Vec<_> = (1..=history).map(metrics).collect();
            let mut charts = Charts::new(folder.path().to_owned(), String::new());
            charts.begin(&history, now_ms);
            charts.add(&metrics(history.len() as u32 + 1), now_ms);
            assert!(charts.are_open());
            let files = files(folder.path());
            let (newest, others) = files.split_last().unwrap();
            assert_eq!(others[0], foreign);
            assert!(others.len() <= 2 && *newest > last, "{files:?}");
            for emptied in &others[1..] {
                assert_eq!((emptied, fs::metadata(emptied).unwrap().len()), (&last, 0));
            }
            last = newest.clone();
            let records = records(&fs::read(&last).unwrap());
            assert_eq!(records.len(), 4 + history.len() + 1);
        }
    }

    #[test]
    fn charts_that_could_not_be_written_begin_anew() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("events");
        fs::write(&folder, "no folder").unwrap();
        let mut charts = Charts::new(folder.clone(), String::new());
        charts.begin(&[], 1_000);
        charts.add(&metrics(1), 1_000);
        assert!(!charts.are_open());
        fs::remove_file(&folder).unwrap();
        charts.begin(&[metrics(1)], 1_000);
        assert!(charts.are_open());
    }

    #[test]
    fn every_setting_of_the_run_file_is_named() {
        let run_file = "seed = 7\n[rollout]\nsolver = \"dpm2\"\nguidance_scale = 2.5\n[reward]\npermute = true\n\
                        [[reward.terms]]\nname = \"edit\"\n";
        let found = settings(run_file);
        let value = |key: &str| {
            found
                .iter()
                .find(|(other, _)| other == key)
                .map(|(_, value)| value)
        };
        assert_eq!(value("seed"), Some(&Setting::Number(7.0)));
        assert_eq!(value("rollout.solver"), Some(&Setting::Text("dpm2".into())));
        assert_eq!(value("rollout.guidance_scale"), Some(&Setting::Number(2.5)));
        assert_eq!(value("reward.permute"), Some(&Setting::Switch(true)));
        assert!(
            matches!(value("reward.terms"), Some(Setting::Text(text)) if text.contains("edit"))
        );
    }

    #[test]
    fn pictures_lie_in_files_of_their_own_with_rising_names() {
        let folder = tempfile::tempdir().unwrap();
        let picture = |step| Picture {
            tag: "heldout/pairs".to_owned(),
            step,
            size: (1, 1),
            png: vec![1, 2, 3],
        };
        // In one second, and after the clock was set back.
        add_pictures(folder.path(), &[picture(10), picture(20)], 5_000).unwrap();
        add_pictures(folder.path(), &[picture(30)], 5_000).unwrap();
        add_pictures(folder.path(), &[picture(40)], 1_000).unwrap();
        let files = files(&folder.path().join(PICTURES));
        let counts = files
            .iter()
            .map(|file| records(&fs::read(file).unwrap()).len());
        assert_eq!(counts.collect::<Vec<_>>(), [3, 2, 2]);
    }

    #[test]
    fn every_reward_term_has_a_curve() {
        let reward_terms = [("mean".to_owned(), 0.25)].into();
        let metrics = IterationMetrics {
            reward_terms,
            ..metrics(1)
        };
        let scalars = scalars(&metrics);
        assert!(scalars.contains(&("reward/term_mean".to_owned(), 0.25)));
        assert!(scalars.contains(&("reward/mean".to_owned(), 0.5)));
    }

    /// Users' dashboards name them.
    #[test]
    fn tags_stay_what_they_are() {
        let top = ["100", "75", "50", "25", "10"].map(|percent| (percent.to_owned(), 0.5));
        let metrics = IterationMetrics {
            reward_top: top.into(),
            ..metrics(1)
        };
        let tags: Vec<String> = scalars(&metrics).into_iter().map(|(tag, _)| tag).collect();
        let sections = [
            (
                "reward",
                "mean std std_in_group zero_std_ratio judge_entropy",
            ),
            ("reward", "top_100 top_75 top_50 top_25 top_10"),
            ("groups", "drawn kept filter_rate dropped banned_total"),
            ("seconds", "collect train iteration"),
            (
                "train",
                "policy_loss kl_div old_kl_div old_deviate old_deviate_max",
            ),
            (
                "train",
                "x0_norm x0_norm_max grad_norm learning_rate samples pairs",
            ),
            (
                "step_seconds",
                "data_wait prepare v_old v_ref forward backward",
            ),
            ("step_seconds", "all-reduce optimizer checkpoint publish"),
        ];
        for (section, names) in sections {
            for name in names.split(' ') {
                assert!(
                    tags.contains(&format!("{section}/{name}")),
                    "{section}/{name}"
                );
            }
        }
        assert_eq!(tags.len(), METRICS.len());
    }
}
