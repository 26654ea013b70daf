//! Whole runs.

use std::collections::HashMap;

use retouch_proto::config::{Preset, preset};
use retouch_proto::{ContentHash, RunConfig};

use super::faults::Faults;
use super::memory::Memory;
use super::random::Random;
use super::world::{Cast, Ended, World};
use crate::machine::prompts::DatasetRow;
use crate::machine::record::{Committed, Entry, Record};
use crate::store::Store;

const CAST: Cast = Cast {
    rollout: 3,
    reward: 2,
    learner: 2,
};

fn config(seed: u64) -> RunConfig {
    let mut config = preset(Preset::Tiny);
    config.seed = seed;
    config.iterations = 4;
    config.rollout.groups_per_iteration = 4;
    config.rollout.group_size = 3;
    config.filter.refill_rounds_max = (seed % 2) as u32;
    config.filter.ban = !seed.is_multiple_of(3);
    config.reward.permute = seed.is_multiple_of(5);
    config.learner.ranks = 2;
    config.learner.checkpoint_every = 3;
    config.cluster.rollout_workers = CAST.rollout as u32;
    config.cluster.reward_workers = CAST.reward as u32;
    config.cluster.heartbeat_ms = 1_000;
    config.cluster.lease_s = 20;
    config.cluster.attempts_max = 6;
    config.cluster.rank_grace_s = 8;
    config.cluster.report_wait_ms_max = 2_000;
    config.validate().expect("a valid configuration");
    config
}

fn rows() -> Vec<DatasetRow> {
    let row = |index| DatasetRow {
        prompt: format!("prompt {index}"),
        image: format!("images/{}.png", index % 5),
        requirement: "r".into(),
    };
    (0..12).map(row).collect()
}

fn simulate(config: &RunConfig, faults: Faults, seed: u64) -> Ended {
    World::new(config.clone(), rows(), CAST, faults, seed).run()
}

/// The final adapter of each configuration when nothing goes wrong.
#[derive(Default)]
struct Expected(HashMap<u64, ContentHash>);

impl Expected {
    fn adapter(&mut self, seed: u64) -> ContentHash {
        *self.0.entry(seed).or_insert_with(|| {
            let ended = simulate(&config(seed), Faults::none(), seed);
            assert_eq!(ended.outcome.failure, None);
            ended
                .outcome
                .ema_adapter
                .expect("a run ends with a checkpoint")
        })
    }
}

/// Runs many seeds and adds up what happened.
fn run_seeds(seeds: std::ops::Range<u64>, faults: fn(&mut Random) -> Faults) {
    let mut expected = Expected::default();
    let (mut steps, mut rewinds, mut restarts, mut virtual_ms, mut compared) = (0, 0, 0, 0, 0);
    for seed in seeds.clone() {
        let faults = faults(&mut Random::new(seed));
        let config = config(seed % 12);
        let named = format!("seed {seed}, {faults:?}");
        let harmless =
            faults.task_fails == 0.0 && faults.task_hangs == 0.0 && !faults.other_devices;
        let run = || simulate(&config, faults.clone(), seed);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
            .unwrap_or_else(|panic| panic!("{named}: {}", message(&panic)));
        let outcome = &ended.outcome;
        if harmless {
            assert_eq!(outcome.failure, None, "{named}");
        }
        if outcome.failure.is_none() && outcome.totals.groups_dropped == 0 && !faults.other_devices
        {
            let adapter = outcome.ema_adapter.expect("a run ends with a checkpoint");
            assert_eq!(
                adapter,
                expected.adapter(seed % 12),
                "another result than without faults: {named}"
            );
            compared += 1;
        }
        steps += ended.steps;
        rewinds += ended.rewinds;
        virtual_ms += ended.virtual_ms;
        restarts += ended.coordinator_starts + ended.worker_starts;
    }
    let count = seeds.end - seeds.start;
    println!(
        "{count} runs, {compared} compared with their fault-free run, {steps} events, {} virtual hours, \
         {restarts} process starts, {rewinds} rewinds",
        virtual_ms / 3_600_000,
    );
    assert!(
        compared * 10 > count * 8,
        "only {compared} of {count} runs could be compared"
    );
}

fn message(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_default()
}

#[test]
fn runs_end_with_the_same_adapter_whatever_goes_wrong() {
    run_seeds(0..2_500, Faults::some);
}

#[test]
fn what_cannot_change_the_result_never_fails_a_run() {
    run_seeds(10_000..12_500, Faults::harmless);
}

#[test]
fn one_rank_makes_the_same_adapter_as_two() {
    for seed in 0..12 {
        let mut one = config(seed);
        one.learner.ranks = 1;
        let cast = Cast {
            learner: 1,
            rollout: 1,
            reward: 1,
        };
        let ended = World::new(one, rows(), cast, Faults::none(), seed + 77).run();
        assert_eq!(
            ended.outcome.ema_adapter,
            Some(Expected::default().adapter(seed))
        );
    }
}

#[test]
fn stale_samples_are_allowed_up_to_the_limit() {
    for seed in 0..300 {
        let mut config = config(seed);
        config.rollout.staleness_max = 1 + (seed % 2) as u32;
        let ended = simulate(&config, Faults::harmless(&mut Random::new(seed)), seed);
        assert_eq!(ended.outcome.failure, None, "seed {seed}");
        assert_eq!(ended.outcome.iteration.0, 4);
    }
}

/// What the store gives back is what was written, to the last bit: whole simulated runs are
/// written to it, and it is compared with the plain data structure that the simulation used.
#[test]
fn the_store_gives_back_what_was_written() {
    for seed in 0..12 {
        let config = config(seed);
        let world = World::new(
            config.clone(),
            rows(),
            CAST,
            Faults::some(&mut Random::new(seed)),
            seed,
        );
        let mut ended = world.keep_entries().run();
        for share in [3, 2, 1] {
            let entries = &ended.recorded[..ended.recorded.len() / share];
            let mut memory = Memory::new();
            entries.iter().for_each(|entry| memory.write(entry));
            compare_with_store(&config, entries, memory.load());
        }
        compare_with_store(&config, &ended.recorded, ended.memory.load());
    }
}

fn compare_with_store(config: &RunConfig, entries: &[Entry], expected: Record) {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut store, record) = Store::open(folder.path(), config, "rows").expect("a new store");
    assert_eq!(
        (record.incarnation, record.committed),
        (1, Committed::START)
    );
    for batch in entries.chunks(7) {
        store.write(batch).expect("written");
    }
    drop(store);
    let (_, record) = Store::open(folder.path(), config, "rows").expect("the same store");
    assert_eq!(record.incarnation, 2);
    assert_eq!(comparable(record), comparable(expected));
}

/// A record as text, without what may differ: the incarnation, positions that nobody will go back
/// to, and the last digit of diagnostics that are kept as JSON.
fn comparable(mut record: Record) -> String {
    record.incarnation = 0;
    let checkpointed = record.checkpoint.committed.iteration;
    record
        .positions
        .retain(|(iteration, _)| *iteration > checkpointed);
    record.positions.sort();
    record.positions.dedup();
    record.banned.sort();
    let history: Vec<_> = record
        .history
        .drain(..)
        .map(|metrics| (metrics.iteration, metrics.kept, metrics.version))
        .collect();
    format!("{record:#?} {history:?}")
}
