//! A traced choice by the names that operators use, as a line. Pure.

use std::net::SocketAddr;

use pod_steer_ebpf::{NONE, SWITCH_SIDE, TRACE_REASONS, Traced, Tuple};
use serde::Serialize;

use super::super::explain::Names;
use crate::{kernel::dry_run::address_of, text::visible};

/// A choice. Its JSON has these fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// When it was made.
    time: String,
    protocol: &'static str,
    /// The client.
    source: SocketAddr,
    /// Where it connects to.
    destination: SocketAddr,
    service: String,
    /// The backend that it gets, and the version of that one.
    version: Option<String>,
    backend: Option<String>,
    /// Cookie of the socket, which for a forwarded connection is the backend's listener.
    socket: Option<u64>,
    /// Index of the table that had the socket, its side, and the slot; no slot if it was found by the walk over all of the table's sockets.
    table: Option<u32>,
    side: Option<u32>,
    slot: Option<u32>,
    /// The way out, and what happened before.
    reason: &'static str,
    also: Vec<&'static str>,
}

impl Decision {
    /// Of a choice that was made at this time, in milliseconds since 1970.
    pub fn new(traced: &Traced, names: &Names, time_ms: i64) -> Self {
        let Traced { tuple, cookie, service, backend, table, entry, reasons, slots, .. } = *traced;
        let of_backend = (backend != NONE).then(|| names.backend(backend));
        let in_table = (table != NONE).then_some(table);
        let mut reasons = named(reasons);
        let time = jiff::Timestamp::from_millisecond(time_ms).unwrap_or_default();
        Self {
            time: time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
            protocol: "tcp",
            source: client(&tuple),
            destination: address_of(tuple.family, tuple.destination, u16::from_be(tuple.destination_port)),
            service: names.service(service),
            version: of_backend.as_ref().map(|backend| backend.version.clone()),
            backend: of_backend.map(|backend| backend.name),
            socket: (cookie != 0).then_some(cookie),
            table: in_table.map(|table| table >> 1),
            side: in_table.map(|table| table & SWITCH_SIDE),
            slot: in_table.and(entry.checked_sub(1)).filter(|_| slots != 0),
            reason: reasons.next().unwrap_or("unknown"),
            also: reasons.collect(),
        }
    }

    /// As a line for a person.
    pub fn line(&self) -> String {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let Self { time, protocol, source, destination, service, reason, .. } = self;
        let slot = self.slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string());
        let (version, backend) = (or_none(&self.version), or_none(&self.backend));
        let also: String = self.also.iter().map(|also| format!(", {also}")).collect();
        let line = format!(
            "{time}  {protocol}  {source} → {destination}  {service}  {version}  {backend}  slot {slot}  {reason}{also}\n"
        );
        visible(line.trim_end()).into_owned() + "\n"
    }
}

fn client(tuple: &Tuple) -> SocketAddr {
    address_of(tuple.family, tuple.source, u16::from_be(tuple.source_port))
}

/// The names of reasons: the way out comes first.
fn named(reasons: u32) -> impl Iterator<Item = &'static str> {
    TRACE_REASONS.into_iter().enumerate().filter(move |(bit, _)| reasons >> bit & 1 != 0).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::{FAMILY_V4, TRACE_BY_NETWORK, TRACE_REFUSED_NO_BACKEND, TRACE_STALE_SLOTS, TRACE_STEERED};

    use super::{super::super::explain::Backend, *};

    fn traced() -> Traced {
        let word = |text: &str| u32::from_ne_bytes(text.parse::<std::net::Ipv4Addr>().unwrap().octets());
        let tuple = Tuple {
            source: [word("203.0.113.5"), 0, 0, 0],
            destination: [word("10.0.0.1"), 0, 0, 0],
            source_port: 4711u16.to_be(),
            destination_port: 80u16.to_be(),
            family: FAMILY_V4,
            ..Tuple::default()
        };
        Traced { tuple, service: 3, backend: NONE, table: NONE, ..Traced::default() }
    }

    #[test]
    fn a_line_has_all_that_was_decided() {
        let mut names = Names::default();
        names.services.insert(3, "web".to_owned());
        let (name, version, service) = ("web-2".to_owned(), "v2".to_owned(), "web".to_owned());
        names.backends.insert(7, Backend { name, version, service, state: None });
        let reasons = TRACE_STEERED | TRACE_BY_NETWORK | TRACE_STALE_SLOTS;
        let steered = Traced { cookie: 17_296, backend: 7, table: 9, entry: 1, slots: 2, reasons, ..traced() };
        let steered = Decision::new(&steered, &names, 1_000_000_000_123);
        assert_eq!(
            steered.line(),
            "2001-09-09T01:46:40.123Z  tcp  203.0.113.5:4711 → 10.0.0.1:80  web  v2  web-2  slot 0  steered, by_network, stale_slots\n"
        );
        assert_eq!((steered.table, steered.side), (Some(4), Some(1)));
        // An entry after the slots is none, and a client may get nothing.
        let member = Traced { cookie: 1, backend: 8, table: 8, entry: 5, reasons: TRACE_STEERED, ..traced() };
        assert!(Decision::new(&member, &names, 0).line().ends_with("  web  unknown  backend 8  slot -  steered\n"));
        let refused = Decision::new(&Traced { reasons: TRACE_REFUSED_NO_BACKEND, ..traced() }, &names, 0);
        assert!(refused.line().ends_with("  web  -  -  slot -  refused_no_backend\n"));
        assert_eq!((refused.socket, refused.table, refused.also.len()), (None, None, 0));
    }

    #[test]
    fn each_reason_has_a_name() {
        assert_eq!(named(u32::MAX).collect::<Vec<_>>(), TRACE_REASONS);
        assert_eq!(named(0).count(), 0);
    }
}
