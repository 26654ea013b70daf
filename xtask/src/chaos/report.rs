//! What a campaign showed, for people and for programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    plan::Kind,
    run::{Failure, Outcome},
};

/// How much of a hash is shown.
const HASH_SHOWN: usize = 12;

/// All runs of one staleness with as many ranks.
#[derive(Debug, Default)]
struct Row {
    runs: usize,
    faults: BTreeMap<Kind, usize>,
    launches: usize,
    hashes: BTreeSet<String>,
    failures: usize,
    wall: Duration,
}

/// By staleness and ranks.
type Rows = BTreeMap<(u64, u64), Row>;

pub(crate) fn is_well(outcomes: &[Outcome]) -> bool {
    outcomes.iter().all(|outcome| outcome.failure.is_none())
}

/// One line, as soon as a run is over.
pub(crate) fn line(outcome: &Outcome) -> String {
    let faults: usize = outcome.faults.values().sum();
    let end = match (&outcome.failure, &outcome.end) {
        (Some(failure), _) => format!("FAILED: {}", failure.what),
        (None, Some(end)) => short(&end.adapter).to_owned(),
        (None, None) => String::new(),
    };
    format!(
        "{}: {faults} faults, {} launches, {:.1} s, {end}",
        name(outcome),
        outcome.launches,
        outcome.wall.as_secs_f64(),
    )
}

/// All runs.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from("staleness  ranks   runs");
    for kind in Kind::ALL {
        let _ = write!(text, "{:>6}", kind.as_str());
    }
    text += "  launches  failures  wall clock  hashes\n";
    for ((staleness, ranks), row) in rows(outcomes) {
        let _ = write!(text, "{staleness:>9}{ranks:>7}{:>7}", row.runs);
        for kind in Kind::ALL {
            let _ = write!(text, "{:>6}", row.faults.get(&kind).unwrap_or(&0));
        }
        let hashes: Vec<&str> = row.hashes.iter().map(|hash| short(hash)).collect();
        let _ = writeln!(
            text,
            "{:>10}{:>10}{:>10.0} s  {}",
            row.launches,
            row.failures,
            row.wall.as_secs_f64(),
            hashes.join(" ")
        );
    }
    text
}

/// Everything about a run that failed; nothing about others.
pub(crate) fn details(outcome: &Outcome) -> String {
    let Some(failure) = &outcome.failure else {
        return String::new();
    };
    let (story, logs) = (outcome.story.join("\n"), &failure.logs);
    let again = outcome.task.seed.map_or(String::new(), |seed| {
        let kinds: Vec<&str> = outcome.task.plan.kinds.iter().map(|k| k.as_str()).collect();
        let (staleness, kinds) = (outcome.task.staleness, kinds.join(","));
        format!("again: cargo xtask chaos --seed {seed} --staleness {staleness} --faults {kinds}\n")
    });
    format!(
        "=== {}: {}\n{story}\n{logs}{again}",
        name(outcome),
        failure.what
    )
}

pub(crate) fn json(outcomes: &[Outcome], left_out: &[String]) -> Value {
    let rows = rows(outcomes).into_iter().map(|((staleness, ranks), row)| {
        let faults = Kind::ALL.map(|kind| {
            let count = row.faults.get(&kind).unwrap_or(&0);
            (kind.as_str().to_owned(), json!(count))
        });
        json!({
            "staleness": staleness,
            "ranks": ranks,
            "runs": row.runs,
            "faults": Value::Object(faults.into_iter().collect()),
            "launches": row.launches,
            "hashes": row.hashes,
            "failures": row.failures,
            "wall_s": row.wall.as_secs_f64(),
        })
    });
    let failures = failures(outcomes).map(|(outcome, failure)| {
        json!({
            "seed": outcome.task.seed,
            "staleness": outcome.task.staleness,
            "ranks": outcome.task.plan.ranks,
            "what": failure.what,
            "story": outcome.story,
            "logs": failure.logs,
        })
    });
    json!({
        "well": is_well(outcomes),
        "left_out": left_out,
        "rows": rows.collect::<Vec<_>>(),
        "failures": failures.collect::<Vec<_>>(),
    })
}

fn rows(outcomes: &[Outcome]) -> Rows {
    let mut rows = Rows::new();
    for outcome in outcomes {
        let task = &outcome.task;
        let row = rows.entry((task.staleness, task.plan.ranks)).or_default();
        row.runs += 1;
        row.launches += outcome.launches;
        row.failures += usize::from(outcome.failure.is_some());
        row.wall += outcome.wall;
        let hash = outcome.end.as_ref().map(|end| end.adapter.clone());
        row.hashes.extend(hash);
        for (kind, count) in &outcome.faults {
            *row.faults.entry(*kind).or_default() += count;
        }
    }
    rows
}

fn failures(outcomes: &[Outcome]) -> impl Iterator<Item = (&Outcome, &Failure)> {
    let failure = |outcome: &'_ Outcome| outcome.failure.is_some();
    let failed = outcomes.iter().filter(move |outcome| failure(outcome));
    failed.filter_map(|outcome| Some((outcome, outcome.failure.as_ref()?)))
}

fn name(outcome: &Outcome) -> String {
    let (staleness, ranks) = (outcome.task.staleness, outcome.task.plan.ranks);
    match outcome.task.seed {
        Some(seed) => format!("seed {seed}, staleness {staleness}, ranks {ranks}"),
        None => format!("undisturbed, staleness {staleness}, ranks {ranks}"),
    }
}

fn short(hash: &str) -> &str {
    hash.get(..HASH_SHOWN).unwrap_or(hash)
}
