//! The metrics of `pod-steer metrics` without a daemon: the kernel keeps the counters, and whose they are. It refuses this process every
//! write, since each map is opened for reading only.

use std::{collections::BTreeMap, fs::File, path::Path};

use pod_steer_ebpf::{
    BackendCounters, NOTE_BACKEND, NOTE_BACKEND_TOTALS, NOTE_SERVICE, NOTE_SERVICE_TOTALS, NOTE_TOTALS,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    api::{
        metrics::{
            content::{Backends, Counted, add_namespaces, add_outcomes, add_services, finished, with_unseen},
            measured::{Lost, Queues},
            page::Page,
            totals::{BackendTotals, ServiceTotals, Totals},
        },
        types::ServiceCountersStatus,
    },
    ids::{BackendIndex, ServiceIndex, SocketCookie},
    kernel::{Counters, KernelError, Notes, check_readable, registered},
    listening::{self, Listener, TurnedAway},
    netns,
    ports::PortMap,
    world::{Backend, Kind},
};

/// The part of a backend's note that its names need.
#[derive(Deserialize)]
pub(super) struct Noted {
    pub id: String,
    pub name: String,
    pub spec: NotedSpec,
}

#[derive(Deserialize)]
pub(super) struct NotedSpec {
    pub service: String,
    pub version: String,
    #[serde(default)]
    pub ports: Vec<PortMap>,
}

/// The page of the state that is pinned below this directory, in OpenMetrics; `None` if there is none.
///
/// # Errors
///
/// The state is of another release, or a map of it is missing.
pub(super) fn page(dir: &Path) -> Result<Option<String>, KernelError> {
    if !check_readable(dir)? {
        return Ok(None);
    }
    let (counters, notes) = (Counters::open(dir)?, Notes::open(dir)?);
    let mut page = Page::default();
    let mut own = OwnNamespace::look(&registered(dir)?);
    let mut drops = parsed::<BackendTotals>(&notes, NOTE_BACKEND_TOTALS);
    let mut backends = Backends::default();
    // A note that a daemon had not written to its end is left out.
    for (index, backend) in parsed::<Backend>(&notes, NOTE_BACKEND) {
        let Backend { id, name, spec, kind, .. } = &backend;
        let counter = counters.backend(BackendIndex(index));
        let mut drops = drops.remove(&index).filter(|drops| drops.id == **id).unwrap_or_default();
        let listeners = own.listeners.remove(&BackendIndex(index)).unwrap_or_default();
        let mut queues = None;
        for Listener { cookie, waiting, backlog, drops: now, .. } in listeners {
            queues.get_or_insert(Queues::default()).add(waiting, backlog);
            drops.see(cookie.map_or(0, |cookie| cookie.0), now);
        }
        let drops = drops.drops();
        let BackendCounters { steered, opened, closed, moved_in, moved_out, moved_half_open, not_moved, .. } = counter;
        let counts = [steered, opened, closed, moved_in, moved_out, moved_half_open, not_moved, drops];
        let counts = with_unseen(counts, matches!(kind, Kind::Registered { .. }));
        // A daemon would count the others in its processes.
        let connections = (!backend.has_uncounted_connections()).then(|| held(&counter));
        backends.add(&spec.service, &spec.version, name, Counted { counts, connections, queues }, None);
    }
    backends.add_to(&mut page);
    let names: BTreeMap<u32, String> = notes
        .read(NOTE_SERVICE)
        .into_iter()
        .filter_map(|(index, name)| Some((index, String::from_utf8(name).ok()?)))
        .collect();
    let outcomes: Vec<(&str, ServiceCountersStatus)> =
        names.iter().map(|(index, name)| (name.as_str(), counters.service(ServiceIndex(*index)).into())).collect();
    add_outcomes(&mut page, &outcomes);
    let services = parsed::<ServiceTotals>(&notes, NOTE_SERVICE_TOTALS).into_iter();
    let services = services.filter(|(index, own)| names.get(index) == Some(&own.service)).map(|(_, own)| own);
    add_services(&mut page, &services.collect::<Vec<_>>());
    add_namespaces(&mut page, &own.turned_away);
    let totals = parsed::<Totals>(&notes, NOTE_TOTALS).remove(&0).unwrap_or_default();
    let lost = Lost { events: counters.events_lost(), descriptions: counters.descriptions_lost() };
    Ok(Some(finished(page, &totals, lost, false)))
}

/// The accept queues of this process's own network namespace, which is that of most backends. Without a daemon, those of others are not read.
#[derive(Default)]
struct OwnNamespace {
    listeners: BTreeMap<BackendIndex, Vec<Listener>>,
    turned_away: BTreeMap<String, TurnedAway>,
}

impl OwnNamespace {
    /// Looks for the listeners of backends. What cannot be read is left out.
    fn look(registered: &BTreeMap<SocketCookie, BackendIndex>) -> Self {
        let mut found = Self::default();
        let Ok(ns) = File::open("/proc/self/ns/net") else { return found };
        let Ok(netns) = netns::identify(&ns) else { return found };
        for listener in listening::listeners(&ns, netns.cookie).unwrap_or_default() {
            if let Some(index) = listener.cookie.and_then(|cookie| registered.get(&cookie)) {
                found.listeners.entry(*index).or_default().push(listener);
            }
        }
        if let Ok(turned_away) = listening::turned_away(&ns, netns.cookie)
            && !found.listeners.is_empty()
        {
            found.turned_away.insert(netns.to_string(), turned_away);
        }
        found
    }
}

/// Connections that a backend holds. Signed, because its counters are not read in one instant.
fn held(own: &BackendCounters) -> u64 {
    let signed = |count: u64| count.cast_signed();
    let moved =
        signed(own.moved_in) - signed(own.moved_in_closed) - signed(own.moved_out) + signed(own.moved_out_closed);
    (signed(own.opened) - signed(own.closed) + moved).max(0).unsigned_abs()
}

/// The notes of a kind that can be parsed.
pub(super) fn parsed<T: DeserializeOwned>(notes: &Notes, kind: u32) -> BTreeMap<u32, T> {
    let notes = notes.read(kind).into_iter();
    notes.filter_map(|(index, text)| Some((index, serde_json::from_slice(&text).ok()?))).collect()
}
