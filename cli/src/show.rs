//! Numbers, hashes and times for people.

use std::time::{SystemTime, UNIX_EPOCH};

use retouch_proto::{
    Iteration,
    metrics::Metric,
    status::{GroupCounts, IterationMetrics, PolicyStatus},
    task::TrainMetrics,
};

/// Eight heights of blocks between the lowest and the highest value.
pub(crate) fn sparkline(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let height = |value: f64| ((value - low) / (high - low).max(1e-12) * 7.0).round() as usize;
    values
        .iter()
        .map(|value| BLOCKS[height(*value).min(7)])
        .collect()
}

/// At most `count` values that stand for all: each the mean of its share, in order.
pub(crate) fn thinned(values: &[f64], count: usize) -> Vec<f64> {
    if values.len() <= count {
        return values.to_vec();
    }
    let border = |i: usize| i * values.len() / count;
    (0..count)
        .map(|i| {
            let share = &values[border(i)..border(i + 1)];
            share.iter().sum::<f64>() / share.len() as f64
        })
        .collect()
}

/// The first digits of a content hash, enough to tell versions apart.
pub(crate) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let unit = (0..UNITS.len() - 1).find(|&unit| bytes >> (10 * (unit + 1)) == 0);
    let unit = unit.unwrap_or(UNITS.len() - 1);
    match unit {
        0 => format!("{bytes} B"),
        _ => format!(
            "{:.1} {}",
            bytes as f64 / (1u64 << (10 * unit)) as f64,
            UNITS[unit]
        ),
    }
}

/// `9.3 s`, `12.5 min`, `3.1 h`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// `2026-11-24 20:30:04`, in UTC.
pub(crate) fn utc(unix_ms: u64) -> String {
    let (year, month, day) = date(unix_ms / 86_400_000);
    format!("{year:04}-{month:02}-{day:02} {}", clock(unix_ms))
}

/// `20:30:04`, in UTC.
pub(crate) fn clock(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}")
}

/// [`clock`] as of now.
pub(crate) fn clock_now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    clock(since.map_or(0, |since| since.as_millis() as u64))
}

/// The time now.
pub(crate) fn now_unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap_or_default().as_millis() as u64
}

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// The newest iteration that was trained, and its step's stages.
pub(crate) fn step_stages(
    history: &[IterationMetrics],
) -> Option<(Iteration, Vec<(&'static str, f64)>)> {
    let mut trained = history.iter().rev();
    let newest = trained.find(|metrics| metrics.train.is_some())?;
    Some((
        newest.iteration,
        newest.train.as_ref().map(TrainMetrics::stages)?,
    ))
}

/// A metric's value with as many digits as its unit deserves; `-` where the iteration has none.
pub(crate) fn measured(metric: &Metric, metrics: &IterationMetrics) -> String {
    let Some(value) = metric.value(metrics) else {
        return "-".to_owned();
    };
    match metric.unit {
        "s" => duration(value),
        "share" => format!("{:.0} %", 100.0 * value),
        "groups" | "pairs" | "candidates" | "rounds" => format!("{value:.0}"),
        _ => format!("{value:.4}"),
    }
}

/// `3:0123456789ab` is the policy after iteration 3; `base` is the bare base model.
pub(crate) fn policy(policy: &PolicyStatus) -> String {
    match &policy.version {
        Some(version) => format!("{}:{}", policy.iteration, short(version)),
        None => "base".to_owned(),
    }
}

/// The open groups by state: `1 queued, 2 sampling, ...`
pub(crate) fn group_counts(groups: &GroupCounts, separator: &str) -> String {
    let counts = [
        (groups.queued, "queued"),
        (groups.sampling, "sampling"),
        (groups.sampled, "sampled"),
        (groups.scoring, "scoring"),
        (groups.scored, "scored"),
        (groups.dropped, "dropped"),
    ];
    counts
        .map(|(count, state)| format!("{count} {state}"))
        .join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_spans_its_range() {
        assert_eq!(sparkline(&[0.0, 0.5, 1.0]), "▁▅█");
        assert_eq!(sparkline(&[2.0, 2.0]), "▁▁");
    }

    #[test]
    fn thinned_values_are_means_of_their_shares() {
        assert_eq!(thinned(&[1.0, 3.0, 5.0, 7.0], 2), [2.0, 6.0]);
        assert_eq!(thinned(&[1.0, 3.0, 5.0], 2), [1.0, 4.0]);
        assert_eq!(thinned(&[1.0], 2), [1.0]);
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(clock(951_827_696_789), "12:34:56");
        assert_eq!(utc(951_827_696_789), "2000-02-29 12:34:56");
        assert_eq!(utc(1_735_689_599_999), "2024-12-31 23:59:59");
    }

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(23_802_816_640), "22.2 GiB");
        assert_eq!(size(5 << 50), "5242880.0 GiB");
    }
}
