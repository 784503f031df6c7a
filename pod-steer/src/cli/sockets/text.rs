//! The sockets as a table, if the terminal has room for all of it; otherwise as lines that wrap. Nothing is shortened.

use std::{collections::BTreeMap, fmt::Write as _};

use unicode_width::UnicodeWidthStr as _;

use super::{
    super::table::{self, Cell},
    connections,
};
use crate::{
    api::sockets::{OtherSocket, SocketNamespace, SocketProcess, SocketRole, SocketStatus, Sockets},
    text::visible,
};

/// The whole answer.
pub(super) fn of(found: &Sockets, colours: bool, columns: Option<usize>) -> String {
    let room = columns.unwrap_or(usize::MAX);
    let mut text = String::new();
    if found.sockets.is_empty() {
        text.push_str("no sockets: no backend listens\n");
    } else {
        let table = as_table(found, colours);
        let width = as_table(found, false).lines().map(|line| line.width()).max().unwrap_or_default();
        if width <= room { text.push_str(&table) } else { text.push_str(&as_lines(found, colours, room)) }
    }
    let connections = found.connections.as_ref().map(|all| connections::of(all, colours, room)).unwrap_or_default();
    text.push_str(&connections);
    let heads =
        ["Sockets without new connections:", "Other listeners on these ports, which pod-steer does not steer to:"];
    for (head, lines) in heads.into_iter().zip([without_clients(found), others(found)]) {
        if !lines.is_empty() {
            let _ = write!(text, "\n{}", hanging(head, room));
            lines.iter().for_each(|line| text.push_str(&indented(line, room)));
        }
    }
    let notes: Vec<String> =
        found.namespaces.iter().filter_map(turned_away).chain(found.unseen.iter().cloned()).collect();
    if !notes.is_empty() {
        text.push('\n');
        notes.iter().for_each(|line| text.push_str(&hanging(line, room)));
    }
    text
}

/// A line whose continuation is indented.
pub(super) fn hanging(line: &str, columns: usize) -> String {
    let lines = table::wrapped("    ", line, columns);
    lines.strip_prefix("    ").unwrap_or(&lines).to_owned()
}

/// The same below a head.
pub(super) fn indented(line: &str, columns: usize) -> String {
    let lines = table::wrapped("      ", line, columns);
    lines.strip_prefix("    ").unwrap_or(&lines).to_owned()
}

/// Why sockets get no new connections: a line for each version and reason.
fn without_clients(found: &Sockets) -> Vec<String> {
    let mut by_reason: BTreeMap<(&str, &str, &str), Vec<&SocketStatus>> = BTreeMap::new();
    for socket in &found.sockets {
        if let Some(why) = &socket.why {
            by_reason.entry((socket.service.as_str(), socket.version.as_str(), why.as_str())).or_default().push(socket);
        }
    }
    let line = |((service, version, why), sockets): ((&str, &str, &str), Vec<&SocketStatus>)| match sockets.as_slice() {
        [one] => format!("{service} {version} {} {}: {why}", one.backend, one.listens),
        more => format!("{service} {version}, {} sockets: {why}", more.len()),
    };
    by_reason.into_iter().map(line).collect()
}

fn others(found: &Sockets) -> Vec<String> {
    let ids: BTreeMap<u64, &str> = found.namespaces.iter().map(|own| (own.cookie, own.id.as_str())).collect();
    let line = |other: &OtherSocket| {
        let OtherSocket { services, ifindex, why, waiting, backlog, drops, .. } = other;
        let listens = bound(&other.listens, *ifindex);
        let queue = queue(Some(*waiting), Some(*backlog));
        let processes = match other.holders {
            Some(0) => String::new(),
            holders => format!("; {}", processes(&other.processes, holders)),
        };
        let place = ids.get(&other.netns_cookie).filter(|_| ids.len() > 1);
        let place = place.map(|id| format!("; namespace {id}")).unwrap_or_default();
        format!("{listens} (port of {}); queue {queue}; {drops} dropped{processes}{place}: {why}", services.join(", "))
    };
    found.others.iter().map(line).collect()
}

fn turned_away(namespace: &SocketNamespace) -> Option<String> {
    let SocketNamespace { id, overflows, drops, syn_drops, .. } = namespace;
    (overflows + drops + syn_drops > 0).then(|| {
        format!(
            "network namespace {id}, all listeners: {overflows} clients found an accept queue full; {drops} in all were dropped; \
             {syn_drops} SYNs found no room for half-open connections"
        )
    })
}

/// The ids of namespaces by their cookies, if the sockets are in several.
fn namespaces(found: &Sockets) -> Option<BTreeMap<u64, &str>> {
    let first = found.sockets.first()?.netns_cookie;
    let several = found.sockets.iter().any(|other| other.netns_cookie != first);
    several.then(|| found.namespaces.iter().map(|namespace| (namespace.cookie, namespace.id.as_str())).collect())
}

/// The id of the namespace of a socket.
fn namespace<'a>(ids: &BTreeMap<u64, &'a str>, socket: &SocketStatus) -> &'a str {
    ids.get(&socket.netns_cookie).copied().unwrap_or("unknown")
}

fn as_table(found: &Sockets, colours: bool) -> String {
    let ids = namespaces(found);
    let mut head =
        vec!["SERVICE", "VERSION", "BACKEND", "STATE", "LISTENS", "CLIENTS", "TABLE", "QUEUE", "DROPPED", "PROCESSES"];
    head.extend(ids.as_ref().map(|_| "NAMESPACE"));
    let rows: Vec<Vec<Cell>> = found
        .sockets
        .iter()
        .map(|socket| {
            let mut cells = vec![
                Cell::text(&socket.service),
                Cell::text(&socket.version),
                Cell::text(&socket.backend),
                Cell::text(socket.state.map_or("?", |state| state.word())),
                Cell::text(listens(socket)),
                Cell::text(ports(&socket.clients)),
                Cell::text(role(socket)).coloured(colour(socket.role)),
                Cell::number(queue(socket.waiting, socket.backlog)).coloured(if is_full(socket) { "1;31" } else { "" }),
                Cell::number(socket.drops.map_or("?".to_owned(), |drops| drops.to_string())),
                Cell::text(processes(&socket.processes, socket.holders)),
            ];
            cells.extend(ids.as_ref().map(|ids| Cell::text(namespace(ids, socket))));
            cells
        })
        .collect();
    table::render(&head, &rows, colours, None)
}

/// A head for each backend, and a line for each of its sockets.
fn as_lines(found: &Sockets, colours: bool, columns: usize) -> String {
    let ids = namespaces(found);
    let mut text = String::new();
    let mut last = None;
    for socket in &found.sockets {
        if last != Some(&socket.backend_id) {
            last = Some(&socket.backend_id);
            let state = socket.state.map(|state| format!(" ({})", state.word())).unwrap_or_default();
            let head = format!("{} {} {}{state}", socket.service, socket.version, socket.backend);
            let head = hanging(&head, columns);
            text.push_str(&if colours { format!("\x1b[1m{}\x1b[0m\n", head.trim_end()) } else { head });
        }
        let clients =
            if socket.clients.is_empty() { String::new() } else { format!(" for {}", ports(&socket.clients)) };
        let drops = socket.drops.map_or("?".to_owned(), |drops| drops.to_string());
        let place = ids.as_ref().map(|ids| format!("; namespace {}", namespace(ids, socket))).unwrap_or_default();
        let line = format!(
            "{}; {}{clients}; queue {}; {drops} dropped; {}{place}",
            listens(socket),
            role(socket),
            queue(socket.waiting, socket.backlog),
            processes(&socket.processes, socket.holders)
        );
        text.push_str(&indented(&line, columns));
    }
    text
}

fn listens(socket: &SocketStatus) -> String {
    let mut text = bound(&socket.listens, socket.ifindex);
    if socket.v6only == Some(true) {
        text.push_str(" (IPv6 only)");
    }
    if let Some(port) = socket.hidden_port {
        let _ = write!(text, " (hidden port {port})");
    }
    text
}

/// An address, and the device that the socket is bound to.
fn bound(listens: &str, ifindex: u32) -> String {
    if ifindex == 0 { listens.to_owned() } else { format!("{listens}%{ifindex}") }
}

/// Ports, of which neighbours are written as ranges.
fn ports(ports: &[u16]) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(*port) => *end = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let range = |(first, end): &(u16, u16)| if first == end { first.to_string() } else { format!("{first}-{end}") };
    if ranges.is_empty() { "-".to_owned() } else { ranges.iter().map(range).collect::<Vec<_>>().join(",") }
}

fn role(socket: &SocketStatus) -> String {
    let forwarded = if socket.forwarded { ", forwarded" } else { "" };
    format!("{}{forwarded}", socket.role.word())
}

fn colour(role: SocketRole) -> &'static str {
    match role {
        SocketRole::Table => "32",
        SocketRole::Reserve => "33",
        SocketRole::Withheld | SocketRole::None => "2",
    }
}

/// Whether no further connection fits in the accept queue (`sk_acceptq_is_full` in `include/net/sock.h`).
fn is_full(socket: &SocketStatus) -> bool {
    matches!((socket.waiting, socket.backlog), (Some(waiting), Some(backlog)) if waiting > backlog)
}

fn queue(waiting: Option<u32>, backlog: Option<u32>) -> String {
    match (waiting, backlog) {
        (Some(waiting), Some(backlog)) => format!("{waiting}/{backlog}"),
        _ => "?".to_owned(),
    }
}

fn processes(processes: &[SocketProcess], holders: Option<u32>) -> String {
    let Some(holders) = holders else { return "?".to_owned() };
    let mut list: Vec<String> =
        processes.iter().map(|process| format!("{}[{}]", visible(&process.name), process.pid)).collect();
    if let Some(more @ 1..) = (holders as usize).checked_sub(list.len()) {
        list.push(format!("{more} more"));
    }
    if list.is_empty() { "no process found".to_owned() } else { list.join(", ") }
}

#[cfg(test)]
mod tests;
