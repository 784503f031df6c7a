//! How long each backend has listened on its ports, and which ranges of them it opens on demand.
//!
//! A range is opened on demand if the server opens a listener there for one connection and closes it after that. A backend
//! opens a range on demand if all of this holds:
//! - the range is one item of the list of ports (`30000-30009`, not `8080,8081`);
//! - the backend also listens on a port outside of the range, over which its clients learn which port to connect to;
//! - it has kept no listener of the range open for [`KEPT_MS`] since it started. One kept listener makes the range an
//!   ordinary one, even after it has closed;
//! - it has been ready for [`SETTLE_MS`] and listened on no port of the range, or has closed [`CLOSED_MIN`] listeners there.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Backend, Phase, Plan, Socket, Sockets, World,
    scope::{Facts, Scope},
};
use crate::{
    ids::{BackendIndex, SocketCookie},
    ports::{Port, PortMap},
};

/// A listener that has been open for this long, in milliseconds, does not serve a single connection only.
pub(super) const KEPT_MS: i64 = 2_000;
/// A backend that has been ready for this long, in milliseconds, has opened the listeners that it opens at its start.
pub(super) const SETTLE_MS: i64 = 1_000;
/// This many short-lived listeners are not a coincidence.
pub(super) const CLOSED_MIN: u32 = 3;

/// How a backend has used its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortHistory {
    /// Ports on which it has kept a listener open.
    kept: BTreeSet<Port>,
    /// By port: how many listeners it has closed that it did not keep open.
    closed: BTreeMap<Port, u32>,
    /// The ranges that it opens on demand, by their place among the ranges of its spec.
    on_demand: BTreeSet<usize>,
    /// Whether it has been able to serve since it became known.
    pub has_served: bool,
}

impl PortHistory {
    /// Resets the history, because the backend starts again.
    pub fn restart(&mut self) {
        *self = Self { has_served: self.has_served, ..Self::default() };
    }

    /// Whether it has closed a listener of this port or kept one open.
    pub(super) fn has(&self, port: Port) -> bool {
        self.kept.contains(&port) || self.closed.contains_key(&port)
    }

    /// Whether it has kept a listener of this port open.
    pub(super) fn has_kept(&self, port: Port) -> bool {
        self.kept.contains(&port)
    }
}

impl Backend {
    /// The items of its list of ports that are ranges.
    pub(super) fn ranges(&self) -> impl Iterator<Item = &[PortMap]> {
        // A client's request may contain any indices.
        self.spec.ranges.iter().map(|range| self.spec.ports.get(range.clone()).unwrap_or_default())
    }

    /// The ranges that it opens on demand at present.
    pub(super) fn on_demand(&self) -> impl Iterator<Item = &[PortMap]> {
        let is_ready = self.phase == Phase::Running && self.ready_since_ms.is_some();
        let ranges =
            self.ranges().enumerate().filter(move |(place, _)| is_ready && self.port_history.on_demand.contains(place));
        ranges.map(|(_, range)| range)
    }

    fn has_port_in_range(&self, port: Port) -> bool {
        self.ranges().flatten().any(|map| map.target_port() == port)
    }
}

impl World {
    /// Removes a socket that has closed, or is no longer steered.
    pub fn remove_socket(&mut self, cookie: SocketCookie, now_ms: i64) -> Option<Socket> {
        let socket = self.sockets.remove(&cookie)?;
        let opened_ms = self.opened_ms.remove(&cookie);
        if let Some(backend) = self.by_index_mut(socket.backend).filter(|backend| backend.phase == Phase::Running) {
            if was_kept(opened_ms, now_ms) {
                backend.port_history.kept.insert(socket.port);
            } else {
                *backend.port_history.closed.entry(socket.port).or_default() += 1;
            }
        }
        Some(socket)
    }

    /// Records which listeners are kept open, and which ranges are opened on demand.
    pub(super) fn note_ports(&mut self, scope: &Scope) {
        let Self { backends, sockets, opened_ms, now_ms, .. } = self;
        let in_scope = backends.values_mut().filter(|backend| scope.has_index(backend.index));
        let with_ranges: Vec<&mut Backend> = in_scope.filter(|backend| !backend.spec.ranges.is_empty()).collect();
        if with_ranges.is_empty() {
            return;
        }
        let sockets = Sockets::new(sockets.iter().filter(|(_, socket)| scope.has_index(socket.backend)));
        for backend in with_ranges {
            let own = sockets.of(backend.index);
            let kept = own.clone().filter(|(cookie, _)| was_kept(opened_ms.get(cookie).copied(), *now_ms));
            backend.port_history.kept.extend(kept.map(|(_, socket)| socket.port));
            let open: BTreeSet<Port> = own.map(|(_, socket)| socket.port).collect();
            let on_demand = backend.find_on_demand(&open, *now_ms);
            backend.port_history.on_demand = on_demand;
        }
    }
}

impl Backend {
    /// The places of the ranges that it opens on demand. A range stays one until the backend keeps a listener open there.
    fn find_on_demand(&self, open: &BTreeSet<Port>, now_ms: i64) -> BTreeSet<usize> {
        let history = &self.port_history;
        let has_settled = self.ready_since_ms.is_some_and(|since_ms| now_ms - since_ms >= SETTLE_MS);
        let is_on_demand = |place: usize, range: &[PortMap]| {
            let targets: BTreeSet<Port> = range.iter().map(PortMap::target_port).collect();
            if targets.is_empty() || targets.iter().any(|port| history.kept.contains(port)) {
                return false;
            }
            let closed: u32 = targets.iter().filter_map(|port| history.closed.get(port)).sum();
            let mut others = self.spec.ports.iter().map(PortMap::target_port).filter(|port| !targets.contains(port));
            let is_shown = has_settled && targets.is_disjoint(open) || closed >= CLOSED_MIN;
            history.on_demand.contains(&place) || is_shown && others.any(|port| open.contains(&port))
        };
        self.ranges().enumerate().filter(|(place, range)| is_on_demand(*place, range)).map(|(place, _)| place).collect()
    }
}

/// Whether a listener has been open for long. One whose opening was not reported may be as old as its server.
fn was_kept(opened_ms: Option<i64>, now_ms: i64) -> bool {
    opened_ms.is_none_or(|opened_ms| now_ms - opened_ms >= KEPT_MS)
}

/// Schedules a new plan for when more is known of a range: a backend has settled, or has kept a listener open.
pub(super) fn note_changes(facts: &Facts<'_>, plan: &mut Plan) {
    let later = |at_ms: i64| Some(at_ms).filter(|at_ms| *at_ms > facts.world.now_ms);
    let mut with_ranges: BTreeMap<BackendIndex, &Backend> = BTreeMap::new();
    for backend in facts.backends.iter().filter(|backend| !backend.spec.ranges.is_empty()) {
        let settled = backend.ready_since_ms.and_then(|since_ms| later(since_ms + SETTLE_MS));
        plan.changes_at(&backend.spec.service, settled);
        with_ranges.insert(backend.index, backend);
    }
    for (cookie, socket) in facts.sockets.iter().take_while(|_| !with_ranges.is_empty()) {
        let Some(backend) = with_ranges.get(&socket.backend) else { continue };
        let opened_ms = facts.world.opened_ms.get(cookie).filter(|_| backend.has_port_in_range(socket.port));
        plan.changes_at(&backend.spec.service, opened_ms.and_then(|opened_ms| later(opened_ms + KEPT_MS)));
    }
}
