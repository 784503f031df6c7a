//! The columns of the table, and which of them fit. Pure.
#![forbid(unsafe_code)]

use unicode_width::UnicodeWidthStr as _;

use super::board::{Figures, Key, Progress, Row};

/// Columns between two cells.
pub(super) const GAP: usize = 2;
/// The operation is shown in a column if that has so much room.
const OPERATION_COLUMNS_MIN: usize = 30;

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    /// The service, the version or the backend.
    Name,
    /// New connections a second.
    Rate,
    /// Open connections.
    Live,
    /// The state of a backend; how many backends are ready.
    State,
    /// The share of new connections in the window.
    Got,
    /// The share that is intended.
    Wanted,
    /// Conditions.
    Conditions,
    /// Accept queues: length and limit.
    Queue,
    /// Connections so far.
    Opened,
    /// The operation that is under way.
    Operation,
}

impl Column {
    /// From left to right, which is also by importance: the last ones are dropped first.
    pub(super) const ALL: [Self; 10] = [
        Self::Name,
        Self::Rate,
        Self::Live,
        Self::State,
        Self::Got,
        Self::Wanted,
        Self::Conditions,
        Self::Queue,
        Self::Opened,
        Self::Operation,
    ];

    /// The title.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Name => "NAME",
            Self::Rate => "NEW/S",
            Self::Live => "LIVE",
            Self::State => "STATE",
            Self::Got => "GOT",
            Self::Wanted => "WANTED",
            Self::Conditions => "COND",
            Self::Queue => "QUEUE",
            Self::Opened => "OPENED",
            Self::Operation => "OPERATION",
        }
    }

    /// Whether its cells are numbers, to the right.
    pub(super) fn is_number(self) -> bool {
        !matches!(self, Self::Name | Self::State | Self::Operation)
    }

    /// The column to the right.
    pub(super) fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    /// The column to the left.
    pub(super) fn previous(self) -> Self {
        Self::ALL[(self as usize + Self::ALL.len() - 1) % Self::ALL.len()]
    }

    /// A cell.
    pub(super) fn cell(self, row: &Row) -> String {
        let Figures { rate, live, queue, wanted, got, conditions, opened, ready, backends, .. } = row.figures;
        match self {
            Self::Name => row.name.clone(),
            Self::Rate => rate.map_or_else(|| "-".to_owned(), short),
            Self::Live => live.to_string(),
            Self::State => match row.state {
                Some(state) => state.word().to_owned(),
                None => row.waits.map_or_else(|| format!("{ready}/{backends} ready"), |waits| waits.word().to_owned()),
            },
            Self::Got => got.map_or_else(|| "-".to_owned(), percent),
            Self::Wanted => percent(wanted),
            Self::Conditions if conditions == 0 => String::new(),
            Self::Conditions => conditions.to_string(),
            Self::Queue => queue.map_or_else(|| "-".to_owned(), |queue| format!("{}/{}", queue.length, queue.limit)),
            Self::Opened => opened.to_string(),
            Self::Operation => row.operation.as_ref().map(Progress::in_short).unwrap_or_default(),
        }
    }
}

/// `7.5`, `123`, `12,345`: with a fraction only if that says something.
pub(super) fn short(rate: f64) -> String {
    match rate {
        rate if rate < 0.05 => "0".to_owned(),
        rate if rate < 99.95 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    }
}

/// `12.5%`.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1}%", part * 100.0)
}

/// How far the name of a row is indented.
pub(super) fn indent(row: &Row, first: &Row) -> usize {
    let depth = |row: &Row| match row.key {
        Key::Service(_) => 0,
        Key::Version(..) => 1,
        Key::Backend(..) => 2,
    };
    2 * (depth(row) - depth(first).min(depth(row)))
}

/// The columns that fit, with their widths. The names are complete if they fit at all beside the rates.
pub(super) fn fitting(rows: &[&Row], columns: usize) -> Vec<(Column, usize)> {
    let width = |column: Column| {
        let cell = |row: &&Row| match column {
            Column::Name => indent(row, rows[0]) + row.name.width(),
            _ => column.cell(row).width(),
        };
        rows.iter().map(cell).max().unwrap_or(0).max(column.title().width())
    };
    // As wide as usual numbers, so that columns seldom move.
    let usual = |column: Column| match column {
        Column::Rate | Column::Got => 6,
        Column::Live => 5,
        Column::Queue => 7,
        _ => 0,
    };
    let rate = width(Column::Rate).max(usual(Column::Rate));
    let name_max = columns.saturating_sub(GAP + rate).max(1);
    let mut fitting = vec![(Column::Name, width(Column::Name).min(name_max))];
    let mut used = fitting[0].1;
    for column in Column::ALL.into_iter().skip(1) {
        let mut own = width(column).max(usual(column));
        let left = columns.saturating_sub(used + GAP);
        if column == Column::Operation {
            let any = rows.iter().any(|row| row.operation.is_some());
            if !any || left < own.min(OPERATION_COLUMNS_MIN) {
                break;
            }
            own = own.min(left);
        } else if own > left {
            break;
        }
        used += GAP + own;
        fitting.push((column, own));
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    #[test]
    fn columns_are_dropped_and_names_are_not_cut() {
        let board = fixture::board();
        let rows: Vec<&Row> = board.services.iter().map(|service| &service.row).collect();
        let shown = |columns| fitting(&rows, columns).into_iter().map(|(column, _)| column).collect::<Vec<_>>();
        for columns in 0..250 {
            let fitting = fitting(&rows, columns);
            let used = fitting.iter().map(|(_, width)| width + GAP).sum::<usize>() - GAP;
            assert!(used <= columns.max(1), "{columns}: {fitting:?}");
            assert!(Column::ALL.starts_with(&shown(columns)), "{columns}: the most important ones stay");
        }
        assert_eq!(shown(12), [Column::Name, Column::Rate]);
        assert_eq!(shown(250), Column::ALL);
        assert_eq!(fitting(&rows, 12)[0].1, "idle".len());
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.04, 7.46, 99.94, 99.96, 12_345.6].map(short);
        assert_eq!(shown, ["0", "0", "7.5", "99.9", "100", "12346"]);
        assert_eq!((percent(1.0), percent(0.125)), ("100.0%".to_owned(), "12.5%".to_owned()));
    }

    #[test]
    fn every_column_has_neighbours() {
        for column in Column::ALL {
            assert_eq!(column.next().previous(), column);
        }
    }
}
