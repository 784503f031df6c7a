//! The answer for a person: the choice, how it came about, and where the other backends stand. Lines have 80 columns at most, as far as
//! names allow.

use std::{collections::BTreeSet, fmt::Write as _};

use unicode_width::UnicodeWidthStr as _;

use super::{
    answer::{Answer, Chosen, Ports, RuleText, Table, Tried},
    names::Backend,
};
use crate::{
    explain::{Declined, Role, Standing},
    text::visible,
};

const COLUMNS: usize = 80;

/// Writes an answer.
pub fn of(answer: &Answer) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, line: &str| text.push_str(&wrapped(indent, line));
    let Answer { source, destination, device, .. } = answer;
    let service = answer.service.as_deref().unwrap_or_default();
    match &answer.ports[..] {
        [_, _, ..] => {
            let all: u32 = answer.ports.iter().map(|ports| ports.count).sum();
            line(0, &format!("{source} → {destination}: the client's port decides; of {all} ports:"));
            for Ports { choice, count } in &answer.ports {
                line(2, &format!("{count:>4}  {}", chosen(choice, service)));
            }
        }
        ports => {
            let any = if ports.is_empty() { "" } else { " (any port)" };
            line(0, &format!("{source}{any} → {destination}: {}", chosen(&answer.choice, service)));
        }
    }
    let program = if answer.device_forwards { ", whose program forwards packets" } else { "" };
    line(2, &format!("comes by {device}{program}"));
    match answer.programs_before {
        0 => {}
        1 => line(2, "1 lookup program of others runs before ours, and may choose first"),
        more => line(2, &format!("{more} lookup programs of others run before ours, and may choose first")),
    }
    match &answer.rule {
        Some(own) => line(2, &format!("rule of service {service}: {}", rule(own))),
        None => line(2, "no rule is for this destination"),
    }
    for table in &answer.tables {
        line(2, &header(table));
        // With many ports of the client, each selects its own slot.
        if answer.ports.len() < 2 {
            for said in tries(table, answer.rule.as_ref()) {
                line(4, &said);
            }
        }
    }
    if !answer.counters.is_empty() {
        let counters: Vec<String> = answer.counters.iter().map(|(name, count)| format!("{name} {count}")).collect();
        line(2, &format!("a real packet would count: {}", counters.join(", ")));
    }
    match &answer.difference {
        None => line(2, "the programs' dry run and the tables agree"),
        Some(other) => line(2, &format!("DIFFERENCE: the programs chose this, and the tables lead to {other}")),
    }
    if !answer.others.is_empty() && answer.ports.len() < 2 {
        line(0, "Not chosen:");
        for other in &answer.others {
            let state = other.backend.state.filter(|state| !state.could_serve() || is_silent(&other.standing));
            let state = state.map(|state| format!(" (state: {})", state.word())).unwrap_or_default();
            line(2, &format!("{}: {}{state}", named(&other.backend), standing(&other.standing)));
        }
    }
    text
}

/// Whether the reason does not tell what an operator has decided.
fn is_silent(standing: &Standing) -> bool {
    matches!(standing, Standing::Withheld { .. } | Standing::NotInTable | Standing::NotListening | Standing::Reserve)
}

fn named(Backend { name, version, .. }: &Backend) -> String {
    format!("{name} ({version})")
}

fn chosen(choice: &Chosen, service: &str) -> String {
    let of = |backend: &Backend| format!("{} (service {service}, version {})", backend.name, backend.version);
    match choice {
        Chosen::Socket { backend, socket } => format!("{}, socket {socket}", of(backend)),
        Chosen::Forwarded { backend, socket, to } => format!("{}, socket {socket}, forwarded to {to}", of(backend)),
        Chosen::Held { asleep: true } => format!("service {service} sleeps: held until its containers serve"),
        Chosen::Held { asleep: false } => format!("service {service} is paused: held until the pause ends"),
        Chosen::Paused => format!("service {service} is paused: discarded, and the client tries again"),
        Chosen::Refused => format!("refused: service {service} has no backend for this client"),
        Chosen::Dropped => format!("dropped, and the client tries again (service {service})"),
        Chosen::Passed { reason } => format!("left to the kernel's own lookup: {reason}"),
    }
}

fn rule(RuleText { port, address, device, client_bits, revision }: &RuleText) -> String {
    let mut text = format!("port {port}, ");
    let _ = match address {
        Some(address) => write!(text, "address {address}"),
        None => write!(text, "every address"),
    };
    if let Some(device) = device {
        let _ = write!(text, ", device {device}");
    }
    if *client_bits != 0 {
        let _ = write!(text, ", slot by the first {client_bits} bits of the client's address");
    }
    let _ = write!(text, "; by decision {revision}");
    text
}

fn header(table: &Table) -> String {
    let Table { table: index, side, slots, members, reserve, withheld, .. } = table;
    let whose = table.network.as_ref().map_or_else(|| "of the rule".to_owned(), |network| format!("of {network}"));
    let mut text =
        format!("table {index} {whose}, side {side}: {} of {}", counted(*slots, "slot"), counted(*members, "socket"));
    for (count, word) in [(reserve, "in reserve"), (withheld, "withheld")] {
        if *count != 0 {
            let _ = write!(text, ", {count} {word}");
        }
    }
    text
}

fn counted(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// What was tried in a table. Of a socket that is tried more than once, the first try counts.
fn tries(table: &Table, rule: Option<&RuleText>) -> Vec<String> {
    if table.members == 0 {
        return vec!["it has no socket".to_owned()];
    }
    let mut seen = BTreeSet::new();
    let first = table.tries.iter().filter(|tried| seen.insert((tried.socket, tried.declined.is_some())));
    first
        .enumerate()
        .map(|(number, tried)| {
            let Tried { entry, role, backend, socket, declined } = tried;
            let place = match (role, number) {
                (Role::Slot, 0) => format!("slot {} (hash of {})", entry - 1, hashed(rule)),
                (Role::Slot, _) => format!("next slot {}", entry - 1),
                (Role::Member, _) => "then every socket of the table".to_owned(),
                (Role::Reserve | Role::Withheld, _) => "then the reserve".to_owned(),
            };
            let whose = backend.as_ref().map_or_else(|| "the pause".to_owned(), named);
            let outcome = declined.map_or("taken", Declined::reason);
            format!("{place}: {whose}, socket {socket}: {outcome}")
        })
        .collect()
}

fn hashed(rule: Option<&RuleText>) -> &'static str {
    match rule {
        Some(rule) if rule.client_bits != 0 => "the client's address",
        _ => "addresses and ports",
    }
}

fn standing(standing: &Standing) -> String {
    match *standing {
        Standing::Declined { reason } => format!("tried first, but {}", reason.reason()),
        Standing::OtherSlot { slots, of } => format!("serves too ({slots} of {of} slots); the hash selected another"),
        Standing::Reserve => "in reserve: serves only while no other socket is left".to_owned(),
        Standing::Withheld { hidden: true } => "withheld, as another user's listener behind a hidden port".to_owned(),
        Standing::Withheld { hidden: false } => "withheld: drained, or its version has no share".to_owned(),
        Standing::OtherNetwork => "not in the table of the client's network".to_owned(),
        Standing::Paused => "the service is paused".to_owned(),
        Standing::NotInTable => "listens, but is not in the tables of this rule".to_owned(),
        Standing::NotListening => "has no listening socket".to_owned(),
    }
}

/// A line, broken at spaces. What follows the first part is indented by two more columns.
fn wrapped(indent: usize, line: &str) -> String {
    let mut text = String::new();
    let mut width = 0;
    let line = visible(line);
    // The number at the beginning of a line is aligned.
    let body = line.trim_start();
    let lead = " ".repeat(indent + line.len() - body.len());
    for word in body.split(' ') {
        if text.is_empty() {
            text = format!("{lead}{word}");
            width = lead.len() + word.width();
        } else if width + 1 + word.width() > COLUMNS {
            let _ = write!(text, "\n{}{word}", " ".repeat(indent + 2));
            width = indent + 2 + word.width();
        } else {
            let _ = write!(text, " {word}");
            width += 1 + word.width();
        }
    }
    text + "\n"
}
