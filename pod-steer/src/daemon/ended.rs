//! What becomes of a backend whose processes have ended: its listeners may live on, held by others.

use std::path::Path;

use tracing::{info, warn};

use super::{
    Event,
    control::Control,
    holders::{Holders, Refused},
};
use crate::{
    cgroups,
    condition::{Condition, Reason},
    holders::Stranger,
    ids::{BackendId, BackendIndex, NetnsCookie, SocketCookie},
    ports::Port,
    procs::{Process, ProcessId},
    sys,
    world::{Backend, Followed, Kind, Phase, World},
};

/// How a backend has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Its container has, and can be started again.
    Died,
    /// It is gone.
    Removed,
}

impl Control {
    /// The processes of a backend have ended. While a socket of it listens, another process holds it, and clients are
    /// given to it until that process is found.
    pub(super) fn ended(&mut self, id: &str, how: Ending) {
        let Some(backend) = self.world.backends.get(id) else { return };
        let (index, netns) = (backend.index, backend.netns);
        // What was closed on the way has been reported before.
        self.read_ring();
        let own = self.world.sockets.iter().filter(|(_, socket)| socket.backend == index);
        let own: Vec<SocketCookie> = own.map(|(cookie, _)| *cookie).collect();
        if !own.is_empty() {
            let live = self.kernel.listening_in_turn();
            let closed: Vec<SocketCookie> = own.into_iter().filter(|cookie| !live.contains(cookie)).collect();
            closed.into_iter().for_each(|cookie| self.forget_socket(cookie));
            self.touch_backend(index);
        }
        let left = self.world.sockets.values().any(|socket| socket.backend == index);
        // A process that was not started by us may have been replaced by one that has a listener of its own.
        let replaced = matches!(backend_kind(self.world.backends.get(id)), Some(Kind::Registered { .. }));
        let Some(netns) = netns.filter(|_| left || replaced) else { return self.conclude(id, how) };
        self.holders.ending.insert(id.into(), how);
        self.holders.watching = true;
        self.holders.look_at(netns.cookie);
    }

    /// A backend has ended, and no listener of it is held by another process.
    fn conclude(&mut self, id: &str, how: Ending) {
        self.holders.ending.remove(id);
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        match how {
            Ending::Died => {
                backend.is_now(Phase::Exited);
                backend.disconnected();
                backend.end_condition(Reason::EngineCheckFails);
                self.checks.ended(backend);
                let index = backend.index;
                self.places.has_died(index);
                self.counted.stop_search(id);
                self.forget_sockets(index);
                if let Some(backend) = self.world.backends.get(id)
                    && let Err(error) = self.store.put(backend)
                {
                    warn!(error = %crate::chain(&error), "a restart will have to find this container again");
                }
                self.touch_backend(index);
            }
            Ending::Removed => {
                self.exec_over(id);
                self.remove(id);
            }
        }
    }

    /// A backend that has ended runs again: its former listeners are not its own any more.
    pub(super) fn runs_again(&mut self, id: &str) {
        if let Some(how) = self.holders.ending.get(id).copied() {
            self.conclude(id, how);
        }
    }

    /// Concludes what has ended and has no listener left.
    pub(super) fn conclude_ended(&mut self) {
        let over = |id: &&BackendId| {
            !self.world.backends.get(*id).is_some_and(|backend| has_listener(&self.world, &self.holders, backend))
        };
        let over: Vec<BackendId> = self.holders.ending.keys().filter(over).cloned().collect();
        for id in over {
            if let Some(how) = self.holders.ending.get(&id).copied() {
                self.conclude(&id, how);
            }
        }
        // A process that has only kept the listener open is no backend without it.
        let idle = |backend: &&Backend| {
            backend.process.is_some_and(|process| process.holds_only)
                && !has_listener(&self.world, &self.holders, backend)
        };
        let idle: Vec<BackendId> =
            self.world.backends.values().filter(idle).map(|backend| backend.id.clone()).collect();
        for id in idle {
            self.conclude(&id, Ending::Removed);
        }
    }

    /// A backend of which only the socket activator is left is over: the activator keeps its listener, and gets no clients.
    pub(super) fn release_activator(&mut self, id: &str) {
        let Some(index) = self.world.backends.get(id).map(|backend| backend.index) else { return };
        self.forget_sockets(index);
        self.touch_backend(index);
        self.conclude(id, Ending::Removed);
    }

    /// The holders of listeners in a namespace cannot be found: its ended backends are removed.
    pub(super) fn conclude_unheld(&mut self, netns_cookie: NetnsCookie) {
        let ending: Vec<BackendId> = self.holders.ending.keys().cloned().collect();
        for id in ending {
            let here = self.world.backends.get(&id).and_then(|b| b.netns).is_none_or(|n| n.cookie == netns_cookie);
            if let Some(how) = self.holders.ending.get(&id).copied().filter(|_| here) {
                self.conclude(&id, how);
            }
        }
    }

    /// No backend holds a listener of this one. If no process was found, it may be in transit to another process, in the
    /// queue of a unix socket: it is given clients as before, and looked for again.
    pub(super) fn held_by_strangers(
        &mut self,
        cookie: SocketCookie,
        port: Port,
        index: BackendIndex,
        mut strangers: Vec<Stranger>,
    ) {
        let Some(backend) = self.world.by_index(index) else { return };
        // The processes of a container whose cgroup is not known have not been looked at, and may be these.
        let runs = !self.holders.ending.contains_key(&backend.id);
        if matches!(backend.kind, Kind::Container { .. }) && runs && self.places.path(index).is_none() {
            return;
        }
        let uid = backend.process.map(|process| process.uid);
        // Prefer a process of the same user, then one that has replaced it to one that held the listener before, then the oldest:
        // for a server with workers, that is the master.
        let was_before =
            |stranger: &Stranger| backend.process.is_some_and(|p| p.succeeded_by(stranger.process).holds_only);
        strangers.sort_by_key(|stranger| {
            (uid.is_some_and(|uid| uid != stranger.uid), was_before(stranger), stranger.process.start)
        });
        let may = strangers.iter().position(|stranger| self.may_follow(backend, cookie, stranger));
        // Its socket activator would wait for clients to start it again, and it was told to stop.
        let is_over =
            |at: &usize| backend.phase == Phase::Stopping && has_activated(backend, cookie, strangers[*at].process);
        if may.as_ref().is_some_and(is_over) {
            self.forget_socket(cookie);
            return self.touch_backend(index);
        }
        if let Some(at) = may {
            let stranger = strangers.swap_remove(at);
            return self.follow(&backend.id.clone(), cookie, stranger);
        }
        let Some(stranger) = strangers.first() else { return };
        let pid = stranger.process.pid;
        let message = format!(
            "process {pid} ({}), which is not managed, holds its listener on port {port}, and no process of it does: clients are \
             not given to it",
            stranger.name
        );
        let remedy = format!("register that process (pod-steer register --pid {pid} ...), or end it");
        self.refuse(cookie, index, Condition::new(Reason::ListenerOfOtherProcess, message, remedy));
    }

    /// A listener that was never registered is on a port of registered processes that have ended, and no backend holds it. If a
    /// process of the same user does, that has replaced them.
    pub(super) fn replaced_by(
        &mut self,
        cookie: SocketCookie,
        netns_cookie: NetnsCookie,
        port: Port,
        strangers: &[Stranger],
    ) {
        let ended = self.holders.ending.keys().filter_map(|id| self.world.backends.get(id));
        let replaced = |backend: &&Backend| {
            let here = backend.netns.is_some_and(|netns| netns.cookie == netns_cookie);
            here && matches!(backend.kind, Kind::Registered { .. })
                && self.world.configured.listening_ports(&backend.spec).contains(&port)
        };
        let of_same_user = |backend: &Backend| {
            let uid = backend.process.map(|process| process.uid);
            let stranger = strangers.iter().find(|stranger| uid == Some(stranger.uid))?;
            let pid = stranger.process.pid;
            let message = format!(
                "the process that was registered has ended, and process {pid} ({}) listens on port {port} by a listener of its \
                 own, which is not registered: clients are not given to it",
                stranger.name
            );
            let remedy = format!("register it (pod-steer register --pid {pid} ...)");
            Some((backend.index, Condition::new(Reason::ListenerOfOtherProcess, message, remedy)))
        };
        let refused: Vec<(BackendIndex, Condition)> = ended.filter(replaced).filter_map(of_same_user).collect();
        for (index, condition) in refused {
            self.refuse(cookie, index, condition);
        }
    }

    /// Whether what a backend was goes on in this process, which holds the very socket that was registered.
    fn may_follow(&self, backend: &Backend, cookie: SocketCookie, stranger: &Stranger) -> bool {
        match (&backend.kind, backend.process) {
            (Kind::Registered { .. }, process) => process.is_some(),
            // One that ran in its cgroup has left it, or the socket activator still has the socket; any other was passed it.
            (Kind::Exec, process) => {
                process.is_some_and(|process| process.id == stranger.process)
                    || self.holders.seats.get(&cookie).is_some_and(|seat| seat.pid == stranger.process.pid)
                    || has_activated(backend, cookie, stranger.process)
            }
            _ => false,
        }
    }

    fn follow(&mut self, id: &str, cookie: SocketCookie, stranger: Stranger) {
        let Stranger { process, uid, name, socket } = stranger;
        let ended = self.holders.ending.remove(id);
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        let activator = has_activated(backend, cookie, process);
        let before = backend.process;
        let unknown = Followed { id: process, uid, holds_only: false };
        backend.process = Some(match (before, &backend.kind) {
            (None, _) => unknown,
            (Some(before), Kind::Registered { .. }) => before.succeeded_by(process),
            (Some(before), _) if activator => before.succeeded_by(process),
            (Some(before), _) => Followed { id: process, ..before },
        });
        let (service, backend_name, index) = (backend.spec.service.clone(), backend.name.clone(), backend.index);
        if let Err(error) = self.store.put(backend) {
            warn!(error = %crate::chain(&error), "a restart will not know which process holds the listeners of this backend");
        }
        self.holders.seats.insert(cookie, socket.seat);
        if self.holders.refused.contains_key(&cookie) {
            self.register_found(index, socket);
        }
        if before.is_none_or(|before| before.id != process) || ended.is_some() {
            info!(%service, backend = %backend_name, pid = process.pid, %name, "its listener is held by another process, which is followed");
            self.tell(&service, &backend_name, "followed", &format!("process {} ({name})", process.pid));
            self.watch_process(id, process);
        }
        self.clear_refusal(index);
        self.touch_backend(index);
    }

    /// Takes a listener that only a process of no backend holds out of the socket map.
    fn refuse(&mut self, cookie: SocketCookie, index: BackendIndex, condition: Condition) {
        let was_registered = self.world.sockets.contains_key(&cookie)
            || self.holders.refused.get(&cookie).is_some_and(|refused| refused.was_registered);
        self.forget_socket(cookie);
        self.touch_backend(index);
        let Some(backend) = self.world.by_index_mut(index) else { return };
        let netns = backend.netns;
        // A container is what its engine says: it does not live on as a process outside.
        if !matches!(backend.kind, Kind::Container { .. }) || !self.holders.ending.contains_key(&backend.id) {
            let netns_cookie = netns.map(|netns| netns.cookie).unwrap_or_default();
            self.holders.refused.insert(cookie, Refused { netns_cookie, index, was_registered });
        }
        backend.set_condition(condition);
    }

    /// Clears the condition of a backend once no listener of it is held by another process.
    pub(super) fn clear_refusals(&mut self) {
        let has = |backend: &&Backend| {
            backend.conditions.contains_key(&Reason::ListenerOfOtherProcess) && backend.phase == Phase::Running
        };
        let having: Vec<BackendIndex> = self.world.backends.values().filter(has).map(|backend| backend.index).collect();
        having.into_iter().for_each(|index| self.clear_refusal(index));
    }

    fn clear_refusal(&mut self, index: BackendIndex) {
        if !self.holders.refused.values().any(|refused| refused.index == index)
            && let Some(backend) = self.world.by_index_mut(index)
            && backend.end_condition(Reason::ListenerOfOtherProcess)
        {
            self.touch_backend(index);
        }
    }

    /// The last process of the cgroup of an `exec` is gone: it has ended, or gone to another cgroup.
    pub(super) fn exec_empty(&mut self, id: &str, cgroup: &Path) {
        let Some(backend) = self.world.backends.get(id) else { return };
        let (service, name) = (backend.spec.service.clone(), backend.name.clone());
        let outside = backend.process.map(|process| process.id).filter(|process| is_outside(*process, cgroup));
        let Some(process) = outside else { return self.ended(id, Ending::Removed) };
        info!(%service, backend = %name, pid = process.pid, "it has left its cgroup, and is followed as a process");
        self.tell(&service, &name, "followed", &format!("process {}, which has left its cgroup", process.pid));
        self.watch_process(id, process);
        self.holders.watching = true;
        if let Some(netns) = backend_netns(self.world.backends.get(id)) {
            self.holders.look_at(netns);
        }
    }

    /// A process that is followed has ended.
    pub(super) fn process_ended(&mut self, id: &str, process: ProcessId) {
        let Some(backend) = self.world.backends.get(id) else { return };
        let follows = backend.process.is_some_and(|followed| followed.id == process);
        let has_cgroup = self.places.path(backend.index).is_some_and(|path| !cgroups::is_empty(path));
        if follows && !has_cgroup {
            self.ended(id, Ending::Removed);
        }
    }

    /// Reports the end of a process.
    pub(super) fn watch_process(&self, id: &str, process: ProcessId) {
        let id = BackendId::from(id);
        self.effects.send_later(async move {
            let wait =
                async || sys::readable(Process::of(process).map(Process::into_pidfd)?)?.readable().await.map(drop);
            // One that cannot be held has ended.
            if let Err(error) = wait().await {
                tracing::debug!(%error, %id, pid = process.pid, "cannot wait for a process");
            }
            Event::Ended { id, process }
        });
    }
}

/// Whether a listener of a backend is registered, or is refused to another process.
fn has_listener(world: &World, holders: &Holders, backend: &Backend) -> bool {
    holders.refused.values().any(|refused| refused.index == backend.index)
        || world.sockets.values().any(|socket| socket.backend == backend.index)
}

/// Whether a process is the socket activator of a backend, such as systemd: the backend did not make the socket, and the process is older.
fn has_activated(backend: &Backend, cookie: SocketCookie, process: ProcessId) -> bool {
    let is_older = |former: Followed| former.id != process && former.succeeded_by(process).holds_only;
    backend.inherited.contains(&cookie) && backend.process.is_some_and(is_older)
}

fn backend_kind(backend: Option<&Backend>) -> Option<&Kind> {
    Some(&backend?.kind)
}

fn backend_netns(backend: Option<&Backend>) -> Option<NetnsCookie> {
    Some(backend?.netns?.cookie)
}

/// Whether a process lives, and not in this cgroup or below it.
pub(super) fn is_outside(process: ProcessId, cgroup: &Path) -> bool {
    let Some(name) = cgroup.file_name().and_then(|name| name.to_str()) else { return false };
    let path = Process::of(process).and_then(|process| process.cgroup());
    path.is_ok_and(|path| path.split('/').all(|part| part != name))
}
