//! The walk through the tables of a rule: each entry that is tried, and why it is declined.

use std::net::IpAddr;

use pod_steer_ebpf::{
    DAEMON_COOKIE, Destination, FALLBACK_PASS, FAMILY_V4, FAMILY_V6, NONE, Order, OwnListener, Packet, Rule, RuleKey,
    SWITCH_HAS_SOURCES, Slot, SocketInfo, V6_ONLY, WAY_FORWARD, first_entry, hash, is_on_link, table_index,
};
use serde::Serialize;

use super::{Tables, bytes, rule_for};
use crate::address::{ANY_ADDRESS, address_bytes, address_from_bytes};

/// Index of the loopback device, the first of every namespace.
const LOOPBACK: u32 = 1;

/// How the programs come to their choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The rule, and what it is for.
    pub rule: Option<(RuleKey, Rule)>,
    /// The switch of its service.
    pub switch: u32,
    /// The tables that were walked, in order.
    pub visited: Vec<Visited>,
    /// The result.
    pub verdict: Verdict,
}

/// A table that was walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visited {
    /// Its index, without the side.
    pub table: u32,
    /// Number of bits of the client's network, if it is the table of one.
    pub network_bits: Option<u32>,
    /// Its header.
    pub header: Slot,
    /// The entries that were tried, in order, each with the reason if it was declined.
    pub tries: Vec<Try>,
}

/// An entry that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// Its number in the table.
    pub entry: u32,
    /// Its part of the table.
    pub role: Role,
    /// Its content.
    pub slot: Slot,
    /// Why it was declined; `None` if it was taken.
    pub declined: Option<Declined>,
}

/// A part of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The slots that hashes select.
    Slot,
    /// The sockets that serve.
    Member,
    /// The sockets that serve only while no member does.
    Reserve,
    /// The sockets that never serve.
    Withheld,
}

impl Role {
    /// The part of the table with this header that an entry is in; `None` for the header and what is behind the table.
    pub fn of(header: &Slot, entry: u32) -> Option<Self> {
        let (members, reserve) = header.counts();
        let ends = [
            (header.backend, Self::Slot),
            (members, Self::Member),
            (reserve, Self::Reserve),
            (header.slots, Self::Withheld),
        ];
        let mut end = 1u32;
        ends.into_iter().find_map(|(count, role)| {
            end = end.saturating_add(count);
            (entry != 0 && entry < end).then_some(role)
        })
    }
}

/// Why an entry was declined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Declined {
    /// Its socket has closed.
    Gone,
    /// It takes no packets of the client's family.
    OtherFamily,
    /// Its backend is in another network namespace, and no program forwards packets of this device.
    NotForwarded,
    /// Its backend has no address of the client's family, or none that is known.
    NoDestination,
    /// It listens on another address of its container.
    OtherAddress,
    /// The server could not answer this client: the host has no address on the backend's link.
    NoGateway,
}

impl Declined {
    /// The reason, behind the name of a backend.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Gone => "its socket has closed",
            Self::OtherFamily => "its socket takes no packets of this address family",
            Self::NotForwarded => "it has its own network namespace, and no program forwards packets of this device",
            Self::NoDestination => "no address of this family is known of its container",
            Self::OtherAddress => "it listens on another address of its container",
            Self::NoGateway => "it could not answer: the host has no address on its link",
        }
    }
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule is for it: the kernel's own lookup decides.
    Unclaimed,
    /// It gets a socket of this namespace.
    Socket {
        /// The socket's cookie.
        cookie: u64,
        /// Index of its backend.
        backend: u32,
    },
    /// It is rewritten, and goes to a backend's container.
    Forwarded {
        /// Cookie of the backend's listener.
        cookie: u64,
        /// Index of the backend.
        backend: u32,
        /// The container's address, in network byte order.
        address: [u32; 4],
        /// The listener's port, in host byte order.
        port: u16,
    },
    /// The service is paused: a listener discards it.
    Paused {
        /// Cookie of that listener.
        cookie: u64,
    },
    /// It gets a listener that its backend has opened on demand, and that is in no table yet.
    OnDemand {
        /// The socket's cookie.
        cookie: u64,
        /// Index of its backend.
        backend: u32,
    },
    /// No backend is left, and the kernel's own lookup decides (`fallback = pass`).
    PassedNoBackend,
    /// The same, because no daemon runs and no withheld socket listens.
    PassedNoDaemon,
    /// No backend is left: the client is refused.
    Refused,
}

/// Computes the choice for a packet. `device` is the device by which it comes, if a program there forwards packets.
pub fn path(tables: &impl Tables, packet: &Packet, device: Option<u32>) -> Path {
    let is_forwarded = |device: &u32| {
        tables.is_forwarded(packet.local_port as u16)
            && (*device == LOOPBACK || !is_on_link(packet.family, &packet.remote, &packet.local))
    };
    if let Some(device) = device.filter(is_forwarded) {
        // A program of a device looks at a packet's own device, not at its VRF.
        let packet = Packet { ifindex: device, ..*packet };
        let at_device = choice(tables, &packet, Some(device));
        if let Verdict::Forwarded { .. } = at_device.verdict {
            return at_device;
        }
    }
    choice(tables, packet, None)
}

fn choice(tables: &impl Tables, packet: &Packet, device: Option<u32>) -> Path {
    let Some((key, rule)) = rule_for(tables, packet) else {
        return Path { rule: None, switch: 0, visited: Vec::new(), verdict: Verdict::Unclaimed };
    };
    let switch = tables.switch(rule.service);
    let mut walk = Walk { tables, packet, rule: &rule, switch, device, visited: Vec::new() };
    let verdict = walk.choose().unwrap_or_else(|| walk.without_backend());
    Path { rule: Some((key, rule)), switch, visited: walk.visited, verdict }
}

struct Walk<'a, T> {
    tables: &'a T,
    packet: &'a Packet,
    rule: &'a Rule,
    switch: u32,
    /// The device whose program chooses; `None` if `sk_lookup` does.
    device: Option<u32>,
    visited: Vec<Visited>,
}

impl<T: Tables> Walk<'_, T> {
    fn is_v4(&self) -> bool {
        self.packet.family == u32::from(FAMILY_V4)
    }

    /// The table of the client's network, then that of the rule.
    fn choose(&mut self) -> Option<Verdict> {
        let index = table_index(self.rule.table, self.switch);
        if self.switch & SWITCH_HAS_SOURCES != 0
            && let Some((bits, own)) = self.tables.network(index, &self.packet.remote)
            && let Some(verdict) = self.visit(own, Some(bits), 0)
        {
            return Some(verdict);
        }
        self.visit(self.rule.table, None, self.rule.slots)
    }

    /// `hint` is the number of slots that the rule expects; with 0, the table's header is read first.
    fn visit(&mut self, table: u32, network_bits: Option<u32>, hint: u32) -> Option<Verdict> {
        let tables = self.tables;
        let entries = tables.table(table_index(table, self.switch));
        let header = entries.first().copied().unwrap_or_default();
        self.visited.push(Visited { table, network_bits, header, tries: Vec::new() });
        let hash = hash(tables.seed(), self.packet, self.rule);
        let mut tried = false;
        if hint != 0 {
            let first = first_entry(hash, hint);
            tried = entries.get(first as usize).is_some_and(|slot| slot.slots == hint);
            if tried && let Some(verdict) = self.offer(&entries, first) {
                return Some(verdict);
            }
        }
        let mut order = Order::of_table(&header, hash, tried)?;
        (0..order.steps()).find_map(|step| {
            let entry = order.entry(step)?;
            self.offer(&entries, entry)
        })
    }

    fn offer(&mut self, entries: &[Slot], entry: u32) -> Option<Verdict> {
        let slot = *entries.get(entry as usize)?;
        let offered = if self.device.is_some() { self.pick(&slot) } else { self.assign(&slot) };
        if let Some(visited) = self.visited.last_mut() {
            let role = Role::of(&visited.header, entry).unwrap_or(Role::Slot);
            visited.tries.push(Try { entry, role, slot, declined: offered.err() });
        }
        offered.ok()
    }

    /// As `sk_lookup` does (`pod-steer-ebpf/src/lookup.rs`).
    fn assign(&self, slot: &Slot) -> Result<Verdict, Declined> {
        if slot.way() == WAY_FORWARD {
            return Err(Declined::NotForwarded);
        }
        self.listens(slot.cookie)?;
        Ok(local(slot))
    }

    /// Whether a socket of this namespace can be assigned to the packet.
    fn listens(&self, cookie: u64) -> Result<(), Declined> {
        if !self.tables.is_listening(cookie) {
            return Err(Declined::Gone);
        }
        let is_other = self.tables.socket(cookie).is_some_and(|socket| match socket.family {
            FAMILY_V6 => self.is_v4() && socket.v6only == V6_ONLY,
            _ => !self.is_v4(),
        });
        if is_other { Err(Declined::OtherFamily) } else { Ok(()) }
    }

    /// As the programs of devices do (`pod-steer-ebpf/src/forward/syn.rs`).
    fn pick(&self, slot: &Slot) -> Result<Verdict, Declined> {
        if slot.way() != WAY_FORWARD {
            let is_pause = slot.backend == NONE;
            return if is_pause || self.tables.is_listening(slot.cookie) {
                Ok(local(slot))
            } else {
                Err(Declined::Gone)
            };
        }
        let backend = slot.index();
        let destination = self.tables.destination(backend).ok_or(Declined::NoDestination)?;
        let address = if self.is_v4() { [destination.v4, 0, 0, 0] } else { destination.v6 };
        if destination.ingress_cookie != self.tables.netns() || address == [0; 4] {
            return Err(Declined::NoDestination);
        }
        if !self.tables.is_listening(slot.cookie) {
            return Err(Declined::Gone);
        }
        let socket = self.tables.socket(slot.cookie).unwrap_or_default();
        if !takes(&socket, self.is_v4(), bytes(&address)) {
            return Err(Declined::OtherAddress);
        }
        if !self.can_answer(&destination) {
            return Err(Declined::NoGateway);
        }
        let port = if socket.hidden_port == 0 { socket.port } else { socket.hidden_port };
        Ok(Verdict::Forwarded { cookie: slot.cookie, backend, address, port })
    }

    /// Whether the server's answer finds the client (`forward/local.rs`, `hand_over`).
    fn can_answer(&self, destination: &Destination) -> bool {
        let is_on_link = self.device == Some(destination.device);
        if self.device != Some(LOOPBACK) && !is_on_link {
            return true;
        }
        let client = &self.packet.remote;
        let is_loopback =
            if self.is_v4() { client[0].to_ne_bytes()[0] == 127 } else { *client == [0, 0, 0, 1u32.to_be()] };
        let gateway = if self.is_v4() { [destination.gateway_v4, 0, 0, 0] } else { destination.gateway_v6 };
        !(is_on_link || is_loopback) || gateway != [0; 4]
    }

    /// As the end of `steer` does when no table has a socket.
    fn without_backend(&self) -> Verdict {
        if let Some((cookie, backend)) = self.on_demand() {
            return Verdict::OnDemand { cookie, backend };
        }
        if self.rule.fallback == FALLBACK_PASS {
            return Verdict::PassedNoBackend;
        }
        let entries = self.tables.table(table_index(self.rule.table, self.switch));
        let header = entries.first().copied().unwrap_or_default();
        let is_withheld = |entry: u32| Role::of(&header, entry) == Some(Role::Withheld);
        let withholds =
            (0..).zip(entries.iter()).any(|(at, slot)| is_withheld(at) && self.tables.is_listening(slot.cookie));
        let has_daemon = self.tables.is_listening(DAEMON_COOKIE);
        if has_daemon || withholds { Verdict::Refused } else { Verdict::PassedNoDaemon }
    }

    /// The newest listener of the only backend that may serve the client.
    fn on_demand(&self) -> Option<(u64, u32)> {
        let Rule { only, target, .. } = *self.rule;
        if only == NONE {
            return None;
        }
        let key = |addr, family| OwnListener {
            netns_cookie: self.tables.netns(),
            addr,
            backend: only,
            port: target,
            family,
            pad: 0,
        };
        let family = self.packet.family as u8;
        let keys = [key(bytes(&self.packet.local), family), key(ANY_ADDRESS, family), key(ANY_ADDRESS, FAMILY_V6)];
        let cookie = keys.iter().find_map(|key| self.tables.newest(key))?;
        self.listens(cookie).ok().map(|()| (cookie, only))
    }
}

/// A socket of this namespace, or the listener of a pause.
fn local(slot: &Slot) -> Verdict {
    let Slot { cookie, backend, .. } = *slot;
    if slot.waits() { Verdict::Paused { cookie } } else { Verdict::Socket { cookie, backend } }
}

/// Whether a socket takes packets for this address of its container, by the addresses that the kernel has of it in both families. An IPv6
/// socket that is bound to one address has an IPv4 address too: that which it maps, or one that no client can have.
fn takes(socket: &SocketInfo, is_v4: bool, address: [u8; 16]) -> bool {
    let bound = match (socket.family == FAMILY_V4, is_v4) {
        (true, false) => return true,
        (false, true) => match address_from_bytes(socket.family, socket.addr).to_canonical() {
            IpAddr::V4(mapped) => address_bytes(mapped.into()),
            IpAddr::V6(v6) => v6.octets(),
        },
        _ => socket.addr,
    };
    bound == ANY_ADDRESS || bound == address
}
