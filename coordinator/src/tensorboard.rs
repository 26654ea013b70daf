//! The run's numbers for TensorBoard: `events/` in the run folder, one file that has every step once.
//!
//! The format is a row of records, each its length, that length's checksum, an `Event` message and its checksum. Of
//! the message only what scalars need is written, by hand: `wall_time = 1` (double), `step = 2`, `file_version = 3`,
//! `summary = 5` with values of `tag = 1` and `simple_value = 2` (float), `session_log = 7` with `status = 1`.
//!
//! TensorBoard reads the files of a folder one after the other, so a step that is in two of them is drawn twice. A start
//! of the coordinator, and a rewind, therefore write the whole history into a new file, empty the one before it and
//! remove older ones. Its first event says that a session starts, upon which a TensorBoard that is running drops what it
//! has read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use retouch_proto::files::put_in_place;
use retouch_proto::metrics::METRICS;
use retouch_proto::status::IterationMetrics;

const VERSION: &str = "brain.Event:2";
const PREFIX: &str = "events.out.tfevents.";
const OURS: &str = ".retouch.";
/// TensorBoard reads every file with `tfevents` in its name, finished or not.
const UNFINISHED: &str = "retouch.partial";
/// `SessionLog.START`.
const SESSION_START: u64 = 1;
/// CRC-32C (Castagnoli), reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const MASK_DELTA: u32 = 0xa282_ead8;

/// The charts of a run. It goes on without them where they can't be written.
pub(crate) struct Charts {
    folder: PathBuf,
    file: Option<EventsFile>,
}

impl Charts {
    /// In that folder; nothing is written yet.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, file: None }
    }

    /// Whether there is a file to add to.
    pub(crate) fn are_open(&self) -> bool {
        self.file.is_some()
    }

    /// Begins anew with the committed iterations.
    pub(crate) fn begin(&mut self, history: &[IterationMetrics], now_ms: u64) {
        let created = EventsFile::create(&self.folder, history, now_ms);
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
    fn create(folder: &Path, history: &[IterationMetrics], now_ms: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let older = ours(folder)?;
        let unfinished = folder.join(UNFINISHED);
        let mut events = Self {
            file: File::create(&unfinished)?,
        };
        if let Err(error) = events.write_history(history, now_ms) {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        // Readers take files by name, and go on to later names only, whatever the clock says.
        let newest = older.iter().map(|(seconds, _)| *seconds).max().unwrap_or(0);
        let seconds = (now_ms / 1000).max(newest + 1);
        let name = format!("{PREFIX}{seconds}{OURS}{}", std::process::id());
        put_in_place(&unfinished, &folder.join(name))?;
        for (seconds, path) in older {
            match seconds == newest {
                // A TensorBoard that has read it looks for more in it first: without the file it would go no further.
                true => File::create(path).map(drop)?,
                false => fs::remove_file(path)?,
            }
        }
        Ok(events)
    }

    fn write_history(&mut self, history: &[IterationMetrics], now_ms: u64) -> io::Result<()> {
        let mut version = wall_time(now_ms);
        text_field(&mut version, 3, VERSION);
        self.write(&version)?;
        // At step 0, which needs no field: every step that was read before is dropped.
        let (mut start, mut session) = (wall_time(now_ms), Vec::new());
        number_field(&mut session, 1, SESSION_START);
        bytes_field(&mut start, 7, &session);
        self.write(&start)?;
        history
            .iter()
            .try_for_each(|metrics| self.add(metrics, now_ms))
    }

    fn add(&mut self, metrics: &IterationMetrics, now_ms: u64) -> io::Result<()> {
        let mut event = wall_time(now_ms);
        number_field(&mut event, 2, metrics.iteration.0.into());
        bytes_field(&mut event, 5, &summary(&scalars(metrics)));
        self.write(&event)
    }

    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let parts = [
            &length[..],
            &masked_checksum(&length).to_le_bytes(),
            event,
            &masked_checksum(event).to_le_bytes(),
        ];
        self.file.write_all(&parts.concat())
    }
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

fn summary(scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let mut scalar = Vec::new();
        text_field(&mut scalar, 1, tag);
        scalar.push(2 << 3 | 5);
        scalar.extend((*value as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &scalar);
    }
    summary
}

fn wall_time(now_ms: u64) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend((now_ms as f64 / 1e3).to_le_bytes());
    event
}

fn number_field(message: &mut Vec<u8>, field: u8, value: u64) {
    message.push(field << 3);
    varint(message, value);
}

fn text_field(message: &mut Vec<u8>, field: u8, value: &str) {
    bytes_field(message, field, value.as_bytes());
}

fn bytes_field(message: &mut Vec<u8>, field: u8, value: &[u8]) {
    message.push(field << 3 | 2);
    varint(message, value.len() as u64);
    message.extend(value);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Records that hold checksums themselves must not fool one: hence the rotation and the constant.
fn masked_checksum(bytes: &[u8]) -> u32 {
    checksum(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use retouch_proto::Iteration;
    use retouch_proto::task::TrainMetrics;

    use super::*;

    /// Takes the records of a file apart, checking every checksum.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let check = |of: &[u8], at: usize| {
                let told = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                assert_eq!(masked_checksum(of), told);
            };
            let event = &bytes[12..12 + length];
            check(&bytes[..8], 8);
            check(event, 12 + length);
            records.push(event.to_vec());
            bytes = &bytes[16 + length..];
        }
        records
    }

    fn metrics(iteration: u32) -> IterationMetrics {
        IterationMetrics {
            iteration: Iteration(iteration),
            scored: 1,
            reward_mean: 0.5,
            train: Some(TrainMetrics::default()),
            ..IterationMetrics::default()
        }
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // The check value of the polynomial's catalogue entry.
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(b""), 0);
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
        let mut events = EventsFile::create(folder.path(), &[metrics(1)], 1_500).unwrap();
        events.add(&metrics(300), 2_000).unwrap();
        let files = files(folder.path());
        assert_eq!(files.len(), 1);
        let bytes = fs::read(&files[0]).unwrap();
        let records = records(&bytes);
        assert_eq!(records.len(), 4);
        let time = |seconds: f64| [&[9][..], &seconds.to_le_bytes()].concat();
        assert_eq!(
            records[0],
            [time(1.5), b"\x1a\x0dbrain.Event:2".to_vec()].concat()
        );
        let session_start = vec![7 << 3 | 2, 2, 1 << 3, 1];
        assert_eq!(records[1], [time(1.5), session_start].concat());
        assert_eq!(records[2][..11], [time(1.5), vec![16, 1]].concat());
        assert_eq!(
            records[3][..12],
            [time(2.0), vec![16, 0xac, 2]].concat(),
            "300 takes two bytes"
        );
        let scalar = [
            &b"\x0a\x12\x0a\x0breward/mean\x15"[..],
            &0.5_f32.to_le_bytes(),
        ]
        .concat();
        let has = |record: &[u8]| record.windows(scalar.len()).any(|part| part == scalar);
        assert!(has(&records[2]) && has(&records[3]));
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
            let mut charts = Charts::new(folder.path().to_owned());
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
            assert_eq!(records.len(), 2 + history.len() + 1);
        }
    }

    #[test]
    fn charts_that_could_not_be_written_begin_anew() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("events");
        fs::write(&folder, "no folder").unwrap();
        let mut charts = Charts::new(folder.clone());
        charts.begin(&[], 1_000);
        charts.add(&metrics(1), 1_000);
        assert!(!charts.are_open());
        fs::remove_file(&folder).unwrap();
        charts.begin(&[metrics(1)], 1_000);
        assert!(charts.are_open());
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
            ("train", "x0_norm x0_norm_max grad_norm samples pairs"),
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
