//! The pages of text: a backend, the conditions, the keys. Pure.
#![forbid(unsafe_code)]

use ratatui::text::Line;

use super::{
    board::{Board, Row},
    columns::{percent, short},
    sample::WINDOW,
    style::Palette,
};
use crate::{
    api::types::{BackendStatus, ServiceStatus},
    cli::{decisions, status, table},
    condition::Condition,
};

/// The keys, and what they do.
const KEYS: [(&str, &str); 12] = [
    ("up, down, j, k", "select a row; scroll a text"),
    ("page up, page down", "the same by pages; home, end, g, G: to the first, to the last"),
    ("enter, right", "open the selected service or backend"),
    ("esc, left", "remove the filter; go back"),
    ("s, >, <", "sort by the next column, by the previous column"),
    ("r", "reverse the order"),
    ("/", "show only names with a text: enter keeps it, esc removes it"),
    ("c", "all conditions, with their remedies"),
    ("p, space", "stop asking the daemon, and go on"),
    ("ctrl-l", "draw the screen again"),
    ("ctrl-z", "suspend"),
    ("q, ctrl-c", "quit"),
];

/// Width of the names of facts.
const FACT_COLUMNS: usize = 16;

/// A backend: all that the daemon tells of it, its conditions, and what the lookups of its service came to.
pub(super) fn backend(board: &Board, service: &str, id: &str, palette: Palette, columns: usize) -> Vec<Line<'static>> {
    let Some((of, row, own)) = board.backend(service, id) else {
        return vec![Line::from("This backend is gone. Esc goes back.")];
    };
    let mut lines: Vec<Line<'static>> = Vec::new();
    for (name, value) in facts(of, row, own) {
        // The value goes on below its first line.
        let value = table::wrapped(&" ".repeat(FACT_COLUMNS), &value, columns);
        let value = value.get(FACT_COLUMNS..).unwrap_or_default();
        lines.extend(format!("{name:<FACT_COLUMNS$}{value}").lines().map(|line| Line::from(line.to_owned())));
    }
    lines.push(Line::default());
    lines.extend(conditions(&own.conditions, "Conditions", palette, columns));
    let mut ways = status::reasons(of);
    if ways.is_empty() {
        ways.push(format!("{service}: every lookup found a socket at once"));
    }
    section(&mut lines, &format!("Lookups of {service}"), palette);
    lines.extend(ways.iter().flat_map(|way| wrapped(way, columns)));
    let decided = decisions::lines(of, columns.saturating_sub(2));
    if !decided.is_empty() {
        section(&mut lines, &format!("Decisions about {service}"), palette);
        lines.extend(decided.lines().map(|line| Line::from(format!("  {line}"))));
    }
    lines
}

fn facts(of: &ServiceStatus, row: &Row, own: &BackendStatus) -> Vec<(&'static str, String)> {
    let figures = &row.figures;
    let bridge = own.bridge.as_ref().map(|bridge| format!("{} {}", bridge.name, bridge.addresses.join(", ")));
    let queue = figures.queue.map_or_else(
        || "not known".to_owned(),
        |queue| {
            let full = percent(queue.usage);
            format!(
                "{} of {} wait; the fullest is {full} full; {} packets dropped",
                queue.length, queue.limit, queue.drops
            )
        },
    );
    let got = figures.got.map_or_else(|| "no connections".to_owned(), percent);
    let rate = figures.rate.map_or_else(|| "-".to_owned(), short);
    let mut facts = vec![
        ("service", format!("{} {}, version {}", of.name, of.ports.join(","), own.version)),
        ("state", own.state.word().to_owned()),
        ("share", format!("{} wanted, {got} got in the last {} s", percent(own.share), WINDOW.as_secs())),
        ("weight", own.weight.to_string()),
        ("connections", format!("{rate} new/s, {} live", own.live)),
        ("so far", format!("{} steered, {} opened, {} closed", own.steered, own.opened, own.closed)),
        (
            "moved",
            format!(
                "{} in, {} out, {} half-open; {} were reset in the queue of a closed listener",
                own.moved_in, own.moved_out, own.moved_half_open, own.not_moved
            ),
        ),
        ("sockets", format!("{} listening", own.sockets)),
        ("accept queues", queue),
        ("kind", own.engine.as_ref().map_or_else(|| own.kind.clone(), |engine| format!("{} of {engine}", own.kind))),
        ("id", own.id.clone()),
    ];
    facts.extend(bridge.map(|bridge| ("bridge", bridge)));
    facts
}

/// All conditions that an operator has to act on.
pub(super) fn all_conditions(board: &Board, palette: Palette, columns: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for of in &board.conditions {
        lines.extend(condition(&format!("{}: ", of.subject), &of.condition, palette, columns));
    }
    if lines.is_empty() {
        lines.push(Line::from("There is no condition that needs you."));
    }
    lines
}

/// A title with conditions below it; nothing without conditions.
pub(super) fn conditions(all: &[Condition], title: &str, palette: Palette, columns: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if !all.is_empty() {
        lines.push(Line::styled(title.to_owned(), palette.title()));
        lines.extend(all.iter().flat_map(|one| condition("", one, palette, columns)));
    }
    lines
}

/// A condition, and its remedy in lines of its own.
fn condition(subject: &str, one: &Condition, palette: Palette, columns: usize) -> Vec<Line<'static>> {
    let mut lines = wrapped(&format!("{subject}{} ({})", one.message, reason(one)), columns);
    if let Some(first) = lines.first_mut() {
        *first = std::mem::take(first).style(palette.warning());
    }
    if !one.remedy.is_empty() {
        let remedy = table::wrapped("      ", &format!("→ {}", one.remedy), columns);
        let remedy = remedy.strip_prefix("  ").unwrap_or(&remedy);
        lines.extend(remedy.lines().map(|line| Line::from(line.to_owned())));
    }
    lines
}

fn reason(one: &Condition) -> String {
    serde_json::to_value(one.reason).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The keys.
pub(super) fn help(palette: Palette, columns: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled("Keys", palette.title())];
    for (keys, text) in KEYS {
        lines.push(Line::from(format!("  {keys:<20} {text}")));
    }
    section(&mut lines, "Columns", palette);
    let window = WINDOW.as_secs();
    for text in [
        "NEW/S: new connections a second since the last answer of the daemon.".to_owned(),
        "LIVE: connections that are open. OPENED: connections so far.".to_owned(),
        "STATE: of a backend; of services and versions, how many backends are ready.".to_owned(),
        format!(
            "GOT: the share of the service's new connections in the last {window} s. WANTED: the share that is intended."
        ),
        "COND: conditions that need an operator; c shows them.".to_owned(),
        "QUEUE: connections that wait to be accepted, and how many may.".to_owned(),
    ] {
        lines.extend(wrapped(&text, columns));
    }
    lines
}

fn section(lines: &mut Vec<Line<'static>>, title: &str, palette: Palette) {
    if lines.last().is_some_and(|line| line.width() > 0) {
        lines.push(Line::default());
    }
    lines.push(Line::styled(title.to_owned(), palette.title()));
}

/// Lines of a text, the first indented by two columns and the others by four.
fn wrapped(text: &str, columns: usize) -> Vec<Line<'static>> {
    let text = table::wrapped("    ", text, columns);
    let text = text.strip_prefix("  ").unwrap_or(&text);
    text.lines().map(|line| Line::from(line.to_owned())).collect()
}
