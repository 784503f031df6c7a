//! `pod-steer status`

use std::fmt::Write as _;

use super::{
    Outcome,
    args::{StatusArgs, StatusFormat},
    block_on, decisions, print,
    table::{self, Cell},
    terminal,
};
use crate::{
    api::{
        client,
        types::{BackendStatus, ServiceStatus, Status},
    },
    ports,
    world::State,
};

/// Characters of a name that the narrow table shows.
const NAME_CHARS_MAX: usize = 20;

pub(super) fn status(args: &StatusArgs) -> Outcome {
    let status: Status = block_on(async { Ok(client::get(&args.socket.socket, "/v1/status").await?) })?;
    let colours = terminal::colours(&std::io::stdout());
    match args.output {
        StatusFormat::Json => print(&format!("{}\n", serde_json::to_string_pretty(&status)?)),
        StatusFormat::Table => print(&render(&status, false, colours)),
        StatusFormat::Wide => print(&render(&status, true, colours)),
    }
}

fn render(status: &Status, wide: bool, colours: bool) -> String {
    let mut text = String::new();
    if status.services.is_empty() {
        text.push_str("no services; label a container with pod-steer.service, or try `pod-steer exec`\n");
    } else {
        let mut head = vec!["SERVICE", "VERSION", "BACKEND", "SOCKETS", "WEIGHT", "SHARE", "LIVE", "STATE"];
        if wide {
            head.extend(["STEERED", "OPENED", "CLOSED", "MOVED-IN", "MOVED-OUT", "KIND", "ID", "PORTS", "NAMESPACE"]);
        }
        let rows: Vec<_> = status
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(move |backend| row(service, backend, wide)))
            .collect();
        text.push_str(&table::render(&head, &rows, colours));
    }
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let columns = if wide { usize::MAX } else { table::NARROW };
    let mut below = String::new();
    for service in &status.services {
        below.push_str(&decisions::lines(service, now_ms, columns, colours));
        for line in reasons(service) {
            let _ = writeln!(below, "{line}");
        }
    }
    if !below.is_empty() {
        let _ = write!(text, "\n{below}");
    }
    if wide {
        text.push_str(&notes(status));
    }
    if !status.problems.is_empty() {
        let title = if colours { "\x1b[1;33mproblems\x1b[0m" } else { "problems" };
        let _ = writeln!(text, "\n{title}");
        for problem in &status.problems {
            let _ = writeln!(text, "  {}: {}", problem.subject, problem.message);
        }
    }
    text
}

fn row(service: &ServiceStatus, backend: &BackendStatus, wide: bool) -> Vec<Cell> {
    let name = |text: &str| if wide { text.to_owned() } else { table::shortened(text, NAME_CHARS_MAX) };
    let state =
        serde_json::to_value(backend.state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let colour = match backend.state {
        State::Ready => "32",
        State::Unhealthy | State::NotSteered => "1;31",
        State::Stopping | State::Paused | State::Starting => "33",
        State::Created | State::Exited | State::Standby | State::Drained => "2",
    };
    let mut cells = vec![
        Cell::text(name(&service.name)),
        Cell::text(name(&backend.version)),
        Cell::text(name(&backend.name)),
        Cell::number(backend.sockets),
        Cell::number(backend.weight),
        Cell::number(format!("{:.1} %", backend.share * 100.0)),
        Cell::number(backend.live),
        Cell::text(state).coloured(colour),
    ];
    if wide {
        let namespaces: Vec<&str> = service.namespaces.iter().map(|namespace| namespace.id.as_str()).collect();
        let maps = ports::parse(&service.ports.join(",")).map(|maps| ports::compact(&maps));
        cells.extend([
            Cell::number(backend.steered),
            Cell::number(backend.opened),
            Cell::number(backend.closed),
            Cell::number(backend.moved_in),
            Cell::number(backend.moved_out),
            Cell::text(&backend.kind),
            Cell::text(backend.id.chars().take(12).collect::<String>()),
            Cell::text(maps.unwrap_or_else(|_| service.ports.join(","))),
            Cell::text(namespaces.join(",")),
        ]);
    }
    cells
}

/// What backends do without.
fn notes(status: &Status) -> String {
    let mut text = String::new();
    for service in &status.services {
        for (backend, note) in service.backends.iter().flat_map(|b| b.notes.iter().map(move |note| (&b.name, note))) {
            let _ = write!(text, "\n{} {backend}: {note}", service.name);
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// Why lookups did not end at a socket, if any did not.
fn reasons(service: &ServiceStatus) -> Vec<String> {
    let counters = &service.counters;
    let all = [
        (counters.refused_no_backend, "refused: no backend was left"),
        (counters.passed_no_backend, "passed to the kernel: no backend was left"),
        (counters.stale_slots, "slots skipped: their socket was gone, another was tried at once"),
        (counters.assign_eafnosupport, "slots skipped: an IPv6-only socket and an IPv4 client"),
        (counters.assign_esocktnosupport, "slots skipped: the socket no longer listened"),
        (counters.assign_eprototype, "slots skipped: the socket speaks another protocol"),
        (counters.assign_eexist, "lookups that another program had decided"),
        (counters.paused, "left to try again: the service was paused"),
        (counters.network_no_backend, "treated as any client: their network's version had no backend"),
        (counters.assign_other, "slots skipped for another reason"),
    ];
    all.into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{}: {count} {why}", service.name))
        .collect()
}
