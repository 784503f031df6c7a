//! Where the backends stand that were not chosen.

use std::collections::{BTreeMap, BTreeSet};

use pod_steer_ebpf::{NONE, Slot};
use serde::Serialize;

use super::{Declined, Path, Role, Tables, Verdict};

/// Why a backend was not chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum Standing {
    /// It was tried first, and declined.
    Declined {
        /// The reason.
        reason: Declined,
    },
    /// It serves this client too, and the hash selected another slot.
    OtherSlot {
        /// Its slots.
        slots: u32,
        /// All slots of the table.
        of: u32,
    },
    /// It serves only while no other socket does.
    Reserve,
    /// Clients must not reach it.
    Withheld {
        /// It listens on a port of the kernel's choice.
        hidden: bool,
    },
    /// The client's network has a table of its own, and it is not in that one.
    OtherNetwork,
    /// The service is paused.
    Paused,
    /// It listens, but no table of this rule has its socket.
    NotInTable,
    /// It has no listening socket.
    NotListening,
}

/// Where each of these backends stands that was not chosen. `sockets` has the cookies of each backend's listening sockets.
pub fn standing(tables: &impl Tables, path: &Path, sockets: &BTreeMap<u32, BTreeSet<u64>>) -> BTreeMap<u32, Standing> {
    let (chosen, is_paused) = match path.verdict {
        Verdict::Socket { backend, .. } | Verdict::Forwarded { backend, .. } | Verdict::OnDemand { backend, .. } => {
            (backend, false)
        }
        Verdict::Paused { .. } => (NONE, true),
        _ => (NONE, false),
    };
    let by_table: Vec<BTreeMap<u32, Part>> =
        path.visited.iter().map(|visited| parts(tables, path, visited.table)).collect();
    // The table that decided, and that of the rule, which a table of a network hides.
    let decided = by_table.last();
    let of_rule = path.rule.as_ref().map(|(_, rule)| parts(tables, path, rule.table)).unwrap_or_default();
    let all = sockets.keys().filter(|backend| **backend != chosen);
    let stands = all.map(|backend| {
        let declined = path.visited.iter().flat_map(|visited| &visited.tries);
        let mut declined = declined.filter(|tried| !tried.slot.waits() && tried.slot.index() == *backend);
        let stands = match decided.and_then(|parts| parts.get(backend)) {
            _ if is_paused => Standing::Paused,
            _ if let Some(reason) = declined.find_map(|tried| tried.declined) => Standing::Declined { reason },
            Some(Part { slots, of, role: Role::Slot | Role::Member, .. }) => {
                Standing::OtherSlot { slots: *slots, of: *of }
            }
            Some(Part { role: Role::Reserve, .. }) => Standing::Reserve,
            Some(Part { role: Role::Withheld, hidden, .. }) => Standing::Withheld { hidden: *hidden },
            None if of_rule.contains_key(backend) => Standing::OtherNetwork,
            None if sockets.get(backend).is_some_and(|own| own.iter().any(|cookie| tables.is_listening(*cookie))) => {
                Standing::NotInTable
            }
            None => Standing::NotListening,
        };
        (*backend, stands)
    });
    stands.collect()
}

/// What a table has of a backend.
struct Part {
    /// The best part of the table that one of its sockets is in.
    role: Role,
    slots: u32,
    of: u32,
    hidden: bool,
}

/// What one side of a table has of each backend.
fn parts(tables: &impl Tables, path: &Path, table: u32) -> BTreeMap<u32, Part> {
    let entries = tables.table(pod_steer_ebpf::table_index(table, path.switch));
    let header = entries.first().copied().unwrap_or_default();
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    for (at, slot) in (0..).zip(entries.iter()) {
        let Some(role) = Role::of(&header, at).filter(|_| !slot.waits()) else { continue };
        let is_hidden = |slot: &Slot| tables.socket(slot.cookie).is_some_and(|socket| socket.hidden_port != 0);
        let part = parts.entry(slot.index()).or_insert(Part { role, slots: 0, of: header.backend, hidden: false });
        part.role = part.role.min(role);
        part.slots += u32::from(role == Role::Slot);
        part.hidden |= role == Role::Withheld && is_hidden(slot);
    }
    parts
}
