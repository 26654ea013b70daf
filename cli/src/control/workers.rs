//! The table of workers, in as many columns as there is room for.

use retouch_proto::status::WorkerStatus;

use crate::{
    fit::{cut, width},
    show::{duration, policy},
};

/// Names are cut to this before a column is left out for them.
const NAME_WIDTH: usize = 20;

/// A column of the table.
#[derive(Clone, Copy)]
pub(super) struct Column {
    pub(super) name: &'static str,
    width_min: usize,
    side: Side,
    value: fn(&WorkerStatus) -> String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

const NAME: Column = column("worker", NAME_WIDTH, Side::Left, |worker| {
    worker.id.to_string()
});

/// Those beside the name.
const COLUMNS: [Column; 8] = [
    column("role", 14, Side::Left, |worker| {
        worker.role.as_str().to_owned()
    }),
    column("state", 8, Side::Left, |worker| worker.state.to_string()),
    column("device", 10, Side::Left, |worker| worker.device.clone()),
    column("load", 5, Side::Right, |worker| {
        format!("{}/{}", worker.busy, worker.slots)
    }),
    column("done", 6, Side::Right, |worker| worker.done.to_string()),
    column("failed", 6, Side::Right, |worker| worker.failed.to_string()),
    column("policy", 16, Side::Left, |worker| {
        worker.policy.as_ref().map_or("-".to_owned(), policy)
    }),
    column("seen", 9, Side::Right, |worker| {
        duration(worker.last_seen_ms as f64 / 1e3)
    }),
];

/// Which go first where there is no room. The state stays: it says who is lost.
const LEAVE: [&str; 7] = ["failed", "done", "device", "role", "policy", "load", "seen"];

const fn column(
    name: &'static str,
    width_min: usize,
    side: Side,
    value: fn(&WorkerStatus) -> String,
) -> Column {
    Column {
        name,
        width_min,
        side,
        value,
    }
}

/// The columns that fit, with their widths.
pub(super) struct Table {
    pub(super) columns: Vec<(Column, usize)>,
}

impl Table {
    /// For these workers on a line of that many columns.
    pub(super) fn fitting(workers: &[WorkerStatus], room: usize) -> Self {
        let widest = |column: &Column| {
            let values = workers.iter().map(|worker| width(&(column.value)(worker)));
            values.max().unwrap_or(0).max(column.name.len())
        };
        let longest = widest(&NAME);
        let others = COLUMNS.iter();
        let mut columns: Vec<(Column, usize)> = others
            .map(|column| (*column, widest(column).max(column.width_min)))
            .collect();
        let left_for_name = |columns: &[(Column, usize)]| {
            let others: usize = columns.iter().map(|(_, width)| 1 + width).sum();
            room.saturating_sub(others)
        };
        for leaving in LEAVE {
            if left_for_name(&columns) >= longest.min(NAME_WIDTH) {
                break;
            }
            columns.retain(|(column, _)| column.name != leaving);
        }
        let name = left_for_name(&columns).min(longest.max(NAME.width_min));
        columns.insert(0, (NAME, name));
        Self { columns }
    }

    /// The names of the columns, as wide as they are.
    pub(super) fn header(&self) -> Vec<String> {
        let columns = self.columns.iter();
        columns
            .map(|(column, width)| column.cell(column.name, *width))
            .collect()
    }

    /// A worker's values, as wide as their columns.
    pub(super) fn row(&self, worker: &WorkerStatus) -> Vec<String> {
        let columns = self.columns.iter();
        columns
            .map(|(column, width)| column.cell(&(column.value)(worker), *width))
            .collect()
    }
}

impl Column {
    fn cell(&self, text: &str, columns: usize) -> String {
        let text = cut(text, columns);
        let space = " ".repeat(columns - width(&text));
        match self.side {
            Side::Left => text + &space,
            Side::Right => space + &text,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use retouch_proto::WorkerId;

    use super::*;
    use crate::control::status::tests::sample;

    /// Forty workers with names as schedulers make them.
    pub(in crate::control) fn many() -> Vec<WorkerStatus> {
        let worker = sample().workers.remove(2);
        let name = |number| format!("rollout-worker.pool-a.cluster.example.org-{number:03}");
        let numbers = 0..40;
        numbers
            .map(|number| WorkerStatus {
                id: WorkerId::new(name(number)).expect("a name"),
                ..worker.clone()
            })
            .collect()
    }

    #[test]
    fn columns_leave_and_names_are_cut_until_a_row_fits() {
        let names = |room| -> Vec<&str> {
            let table = Table::fitting(&many(), room);
            let row = table.row(&many()[7]).join(" ");
            assert!(width(&row) <= room, "{room}: {row}");
            assert_eq!(table.header().join(" ").len(), row.chars().count());
            table
                .columns
                .iter()
                .map(|(column, _)| column.name)
                .collect()
        };
        assert_eq!(names(usize::MAX - 1).len(), 9);
        assert_eq!(
            names(80),
            ["worker", "role", "state", "load", "policy", "seen"]
        );
        assert_eq!(names(60), ["worker", "state", "load", "seen"]);
        assert_eq!(names(30), ["worker", "state"]);
    }

    #[test]
    fn long_names_are_whole_where_there_is_room_and_differ_where_there_is_not() {
        let workers = many();
        let table = Table::fitting(&workers, usize::MAX);
        assert!(table.row(&workers[7])[0].starts_with(workers[7].id.as_str()));
        for room in [80, 60] {
            let table = Table::fitting(&workers, room);
            let mut names: Vec<String> = workers.iter().map(|w| table.row(w).remove(0)).collect();
            names.dedup();
            assert_eq!(names.len(), workers.len(), "{names:?}");
        }
    }
}
