//! Who does what: a pure function from a problem to a solution.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use retouch_proto::WorkerId;

/// Tasks of one role and the workers that could take one now.
pub(super) struct Problem<'a> {
    /// In the order of their importance.
    pub tasks: Vec<TaskNeed<'a>>,
    /// In any order.
    pub workers: Vec<WorkerLoad<'a>>,
}

/// A task that needs a worker.
pub(super) struct TaskNeed<'a> {
    /// Workers that failed it before.
    pub avoid: &'a [WorkerId],
}

/// A worker that could take a task.
pub(super) struct WorkerLoad<'a> {
    /// Who it is.
    pub id: &'a WorkerId,
    /// Tasks it could take.
    pub free: u32,
    /// Tasks it has.
    pub running: u32,
}

/// One task for one worker, both as indices into the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// Index of the task.
    pub task: usize,
    /// Index of the worker.
    pub worker: usize,
}

/// Gives each task in turn to the least loaded worker that it does not avoid; ties go to the
/// first name, so that the solution does not depend on the order of the workers.
pub(super) fn solve(problem: &Problem<'_>) -> Vec<Placement> {
    let mut free: BinaryHeap<_> = problem
        .workers
        .iter()
        .enumerate()
        .filter(|(_, worker)| worker.free > 0)
        .map(|(index, worker)| Reverse((worker.running, worker.id, index, worker.free)))
        .collect();
    let mut placements = Vec::new();
    for (task, need) in problem.tasks.iter().enumerate() {
        if free.is_empty() {
            break;
        }
        let mut avoided = Vec::new();
        while let Some(Reverse((running, id, worker, slots))) = free.pop() {
            if need.avoid.contains(id) {
                avoided.push(Reverse((running, id, worker, slots)));
                continue;
            }
            placements.push(Placement { task, worker });
            if slots > 1 {
                free.push(Reverse((running + 1, id, worker, slots - 1)));
            }
            break;
        }
        free.extend(avoided);
    }
    placements
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<WorkerId> {
        names
            .iter()
            .map(|name| WorkerId::new(*name).unwrap())
            .collect()
    }

    fn solved(tasks: &[&[WorkerId]], workers: &[(&WorkerId, u32, u32)]) -> Vec<(usize, usize)> {
        let tasks = tasks.iter().map(|avoid| TaskNeed { avoid }).collect();
        let load = |&(id, free, running): &(_, _, _)| WorkerLoad { id, free, running };
        let workers = workers.iter().map(load).collect();
        let placements = solve(&Problem { tasks, workers });
        placements
            .iter()
            .map(|placement| (placement.task, placement.worker))
            .collect()
    }

    #[test]
    fn the_least_loaded_worker_is_taken() {
        let ids = ids(&["a", "b"]);
        let placed = solved(&[&[], &[], &[]], &[(&ids[0], 2, 1), (&ids[1], 2, 0)]);
        assert_eq!(placed, [(0, 1), (1, 0), (2, 1)]);
    }

    #[test]
    fn more_tasks_than_slots_leave_the_last_ones_waiting() {
        let ids = ids(&["a"]);
        assert_eq!(solved(&[&[], &[]], &[(&ids[0], 1, 0)]), [(0, 0)]);
        assert_eq!(solved(&[&[]], &[(&ids[0], 0, 3)]), []);
    }

    #[test]
    fn avoided_workers_stay_free_for_other_tasks() {
        let ids = ids(&["a", "b"]);
        let placed = solved(&[&ids[..1], &[]], &[(&ids[0], 1, 0), (&ids[1], 1, 5)]);
        assert_eq!(placed, [(0, 1), (1, 0)]);
        assert_eq!(solved(&[&ids[..]], &[(&ids[0], 1, 0), (&ids[1], 1, 0)]), []);
    }
}
