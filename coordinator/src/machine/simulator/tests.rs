//! Whole runs.

use retouch_proto::RunConfig;

use super::campaign::{Campaign, Expected};
use super::memory::Memory;
use super::scenario::{Cast, Scenario};
use super::seat::AtWrite;
use super::world::World;
use crate::machine::record::{Committed, Entry, Record};
use crate::store::Store;

/// Half of the seeds have only faults that cannot change the result: these must end with the
/// undisturbed run's adapter, and so must all others whose groups all got through.
#[test]
fn runs_end_with_the_same_adapter_whatever_goes_wrong() {
    let campaign = Campaign {
        seeds: 0..4_000,
        workers: None,
        threads: 2,
    };
    let tally = campaign
        .run(|_| ())
        .unwrap_or_else(|failure| panic!("\n{failure}"));
    println!("{tally}");
    assert_eq!(tally.runs, 4_000);
    assert!(
        tally.compared * 10 > tally.runs * 6,
        "only {} of {} runs could be compared",
        tally.compared,
        tally.runs
    );
    assert!(
        tally.strikes.iter().all(|count| *count > 100),
        "every kind of fault strikes: {:?}",
        tally.strikes
    );
}

/// Before and after every single write of a run, the coordinator is killed once.
#[test]
fn a_coordinator_killed_around_any_write_changes_nothing() {
    for variant in [0, 9] {
        let mut expected = Expected::default();
        let mut scenario = Scenario::undisturbed(variant);
        let writes = World::new(scenario.clone()).run().tally.writes;
        assert!(writes > 30, "{writes} writes");
        for write in 1..=writes {
            for when in [AtWrite::Before, AtWrite::After] {
                scenario.seed = write;
                let mut world = World::new(scenario.clone());
                world.seat.dies_at = Some((write, when));
                let ended = world.run();
                // With another seed a run may write in fewer batches.
                let starts = ended.tally.coordinator_starts;
                assert!(starts == 2 || ended.tally.writes < write, "write {write}");
                assert_eq!(
                    ended.outcome.ema_adapter,
                    expected.adapter(variant),
                    "killed {when:?} write {write} of {writes}"
                );
            }
        }
    }
}

#[test]
fn one_rank_makes_the_same_adapter_as_two() {
    for variant in 0..12 {
        let mut one = Scenario::undisturbed(variant);
        one.seed += 77;
        one.config.learner.ranks = 1;
        one.cast = Cast {
            learner: 1,
            rollout: 1,
            reward: 1,
            late: 0,
        };
        assert_eq!(
            World::new(one).run().outcome.ema_adapter,
            Expected::default().adapter(variant)
        );
    }
}

/// What the store gives back is what was written, to the last bit: whole simulated runs are
/// written to it, and it is compared with the plain data structure that the simulation used.
#[test]
fn the_store_gives_back_what_was_written() {
    for seed in 0..12 {
        let scenario = Scenario::of(seed, None);
        let config = scenario.config.clone();
        let mut ended = World::new(scenario).run();
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
    // Of a run that is over checkpoints need not be whole; here nobody wrote any.
    let over = RunConfig {
        iterations: 0,
        ..config.clone()
    };
    let (_, record) = Store::open(folder.path(), &over, "rows").expect("the same store");
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
    record.policies.dedup();
    let history: Vec<_> = record
        .history
        .drain(..)
        .map(|metrics| (metrics.iteration, metrics.kept, metrics.version))
        .collect();
    format!("{record:#?} {history:?}")
}

/// The entries of a run on which much went wrong, and in which a poisoned row was given up.
pub(crate) fn recorded_run() -> (RunConfig, Vec<Entry>) {
    let mut scenario = Scenario::undisturbed(1);
    scenario.faults = Scenario::of(2, None).faults;
    let config = scenario.config.clone();
    (config, World::new(scenario).run().recorded)
}
