//! The connections of each backend as text.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr as _;

use super::{
    super::table::{self, Cell},
    text::{hanging, indented},
};
use crate::{
    api::sockets::{BackendConnections, ConnectionStatus},
    duration,
};

/// A head for each backend, and a table below it, or lines if the terminal is too narrow for the table.
pub(super) fn of(all: &[BackendConnections], colours: bool, columns: usize) -> String {
    let mut text = String::new();
    for BackendConnections { service, version, backend, active, idle, list, .. } in all {
        let count = u64::from(*active) + u64::from(*idle);
        let head = format!("{service} {version} {backend}: {count} connections, {active} active, {idle} idle");
        let _ = write!(text, "\n{}", hanging(&head, columns));
        if list.is_empty() {
            continue;
        }
        let rows: Vec<Vec<Cell>> = list.iter().map(row).collect();
        let render = |colours| table::render(&["CLIENT", "SERVER", "STATE", "IDLE"], &rows, colours, None);
        let is_wide = render(false).lines().any(|line| line.width() + 2 > columns);
        for line in render(colours && !is_wide).lines() {
            text.push_str(&if is_wide { indented(line, columns) } else { format!("  {line}\n") });
        }
    }
    text
}

fn row(one: &ConnectionStatus) -> Vec<Cell> {
    let mut state = one.state.clone();
    if one.waiting {
        state.push_str(", not accepted");
    }
    let idle = match one.idle_ms {
        _ if one.active => "active".to_owned(),
        None => "?".to_owned(),
        Some(idle_ms) => duration::show_ms(idle_ms - idle_ms % 1_000),
    };
    vec![Cell::text(&one.client), Cell::text(&one.local), Cell::text(state), Cell::number(idle)]
}
