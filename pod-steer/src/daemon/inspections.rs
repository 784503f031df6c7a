//! What only a descriptor tells of a socket, and the migrate program for its reuseport group.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use tracing::debug;

use super::{Event, control::Control, pace::Taken};
use crate::{
    ids::{BackendId, SocketCookie},
    procs::{FoundSocket, Seat},
};

/// What a look at a socket found; the kernel programs cannot see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Where it was found.
    pub seat: Seat,
    /// The user that it belongs to.
    pub uid: u32,
    /// It takes IPv6 clients only.
    pub v6only: bool,
    /// Its queue will be handed on when it closes.
    pub migrates: bool,
}

/// The looks at sockets that are under way: one at a time for each backend, at all its sockets that are new, since each
/// look goes through everything that the backend's processes have open.
#[derive(Default)]
pub(super) struct Inspections {
    /// By backend, cookies of the sockets that are still to be looked at.
    due: HashMap<BackendId, BTreeSet<SocketCookie>>,
    /// Backends that are being looked at.
    under_way: BTreeSet<BackendId>,
    /// The time that looks at each backend have taken: one that opens sockets without end keeps no CPU busy.
    taken: Taken,
}

impl Inspections {
    pub fn add(&mut self, cookie: SocketCookie, id: &str) {
        self.due.entry(id.into()).or_default().insert(cookie);
    }

    /// The backends that can be looked at now.
    fn ready(&self, now: Instant) -> Vec<BackendId> {
        let can = |id: &&BackendId| !self.under_way.contains(*id) && self.taken.waits_until(id, now).is_none();
        self.due.keys().filter(can).cloned().collect()
    }

    /// When a look is due that waits for its time.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let waiting = self.due.keys().filter(|id| !self.under_way.contains(*id));
        waiting.filter_map(|id| self.taken.waits_until(id, now)).min()
    }

    /// A look that took so long is over.
    fn over(&mut self, id: &str, took: Duration, now: Instant) {
        if let Some(id) = self.under_way.take(id) {
            self.taken.take(id.into(), took, now);
        }
    }
}

impl Control {
    /// Looks at new sockets beside the loop: what only a descriptor can tell, and the migrate program for their groups.
    /// Clients are given to them before that.
    pub(super) fn inspect_due(&mut self) {
        if self.inspections.due.is_empty() {
            return;
        }
        for id in self.inspections.ready(Instant::now()) {
            if let Some(due) = self.inspections.due.remove(&id) {
                self.inspect(id, due);
            }
        }
    }

    fn inspect(&mut self, id: BackendId, due: BTreeSet<SocketCookie>) {
        let Some(processes) = self.world.backends.get(&id).map(|backend| self.processes_of(backend)) else { return };
        self.inspections.under_way.insert(id.clone());
        let migration = self.migration.clone();
        let mut found: BTreeMap<SocketCookie, Option<Inspection>> = due.iter().map(|cookie| (*cookie, None)).collect();
        let failed = Event::Inspected { id: id.clone(), found: found.clone(), took: Duration::ZERO };
        self.effects.run(failed, move || {
            // It may have waited for a thread.
            let begun = Instant::now();
            // None is kept: a backend may have more sockets than we may open files.
            let look = |socket: &FoundSocket| {
                if due.contains(&socket.cookie) {
                    let migrates = socket.reuseport && migration.attach(socket.fd.as_fd()).is_ok();
                    found.insert(
                        socket.cookie,
                        Some(Inspection { seat: socket.seat, uid: socket.uid, v6only: socket.v6only, migrates }),
                    );
                }
                false
            };
            processes.listeners(look);
            Event::Inspected { id, found, took: begun.elapsed() }
        });
    }

    pub(super) fn inspected(&mut self, id: &str, found: BTreeMap<SocketCookie, Option<Inspection>>, took: Duration) {
        self.inspections.over(id, took, Instant::now());
        for (cookie, found) in found {
            let Some(socket) = self.world.sockets.get_mut(&cookie) else { continue };
            let (netns_cookie, index) = (socket.netns_cookie, socket.backend);
            // Of one that was not seen it is believed that it is as most are, unless more is known.
            let v6only = found.map(|found| found.v6only).or(socket.v6only).unwrap_or(false);
            if socket.v6only != Some(v6only) {
                socket.v6only = Some(v6only);
                self.kernel.note_v6only(cookie, v6only);
                self.touch_backend(index);
            }
            if let Some(found) = &found {
                self.note_user(cookie, found.uid);
            }
            match found {
                Some(found) => drop(self.holders.seats.insert(cookie, found.seat)),
                // It listens, and no process of the backend has it: who holds it must be known at once.
                None => self.holders.look_closely_at(netns_cookie),
            }
            if !found.is_some_and(|found| found.migrates) {
                debug!(%cookie, "its queue will not be handed on when it closes");
            }
        }
    }

    /// Attaches the migrate program again, by one socket of each reuseport group: any member of a group can detach it, one that is not
    /// managed too.
    pub(super) fn renew_migration(&mut self) {
        let mut groups = BTreeSet::new();
        for (cookie, socket) in &self.world.sockets {
            let port = socket.hidden_port.unwrap_or(socket.port);
            let is_first = groups.insert((socket.netns_cookie, socket.ip, port, socket.ifindex));
            if let Some(backend) = self.world.by_index(socket.backend).filter(|_| is_first) {
                self.inspections.add(*cookie, &backend.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_at_a_backend_that_take_long_wait() {
        let (mut inspections, start) = (Inspections::default(), Instant::now());
        let ms = Duration::from_millis;
        inspections.add(SocketCookie(1), "a");
        inspections.add(SocketCookie(2), "b");
        assert_eq!(inspections.ready(start).len(), 2);
        inspections.due.clear();
        inspections.under_way.insert("a".into());
        inspections.add(SocketCookie(3), "a");
        assert_eq!((inspections.ready(start), inspections.due(start)), (vec![], None));
        inspections.over("a", ms(110), start);
        assert_eq!((inspections.ready(start), inspections.due(start)), (vec![], Some(start + ms(40))));
        inspections.add(SocketCookie(4), "b");
        assert_eq!(inspections.ready(start), [BackendId::from("b")]);
        assert_eq!(inspections.ready(start + ms(41)).len(), 2);
    }
}
