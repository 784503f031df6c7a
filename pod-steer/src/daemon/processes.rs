//! Backends without a container engine: commands started by `pod-steer exec`, each in a cgroup of its own, and
//! processes adopted by `pod-steer register`.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use tracing::info;

use super::{
    control::Control,
    deferred::Deferred,
    ended::Ending,
    exec_cgroups::{ExecCgroup, undo},
};
use crate::{
    api::{
        Answer, Peer,
        types::{BackendRequest, ExecRequest, Registered, UnloadedBody},
    },
    cgroups::{self, below},
    clock::wall_ms,
    condition,
    ids::BackendId,
    ids::{BackendIndex, SocketCookie},
    kernel::Cgroup,
    labels::{self, Spec},
    listening, netns,
    ports::Port,
    process_set::ProcessSet,
    procs::{FoundSocket, Listening, Process, process_id},
    text::Name,
    world::{Backend, Followed, Kind, Network, Phase},
};

/// A command that is about to be executed and has become a backend; its process waits for the answer.
pub(super) struct AddedExec {
    id: BackendId,
    path: PathBuf,
    cgroup: Cgroup,
    process: Process,
    sockets: usize,
}

impl Control {
    /// Makes the asking process a backend: whatever it executes next is steered to.
    pub(super) fn exec(&mut self, request: ExecRequest, peer: Peer, answer: Answer) {
        match self.add_exec(request, peer) {
            Ok(added) => self.deferred.push_back(Deferred::Exec(Box::new(added), answer)),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    fn add_exec(&mut self, request: ExecRequest, peer: Peer) -> Result<AddedExec, String> {
        self.refuse_while_waiting()?;
        let spec = parse(&request.backend)?;
        let (pid, uid) = (peer.cred.pid.as_raw_nonzero().get(), peer.cred.uid.as_raw());
        let process = peer.hold().map_err(|e| format!("process {pid} cannot be held: {e}"))?;
        let ns =
            process.netns().map_err(|e| format!("the network namespace of process {pid} cannot be opened: {e}"))?;
        let netns = netns::identify(&ns).map_err(|e| format!("its network namespace cannot be identified: {e}"))?;
        let index = self.new_index(&spec.service).map_err(|condition| condition.to_string())?;
        let inherited = HeldListeners::of(&process, &self.world.configured.listening_ports(&spec))?;
        let sockets = inherited.sockets.len();
        let ExecCgroup { id, path, below_caller } = self.make_exec_cgroup(&process)?;
        let mut backend = self.process_backend(&id, request.backend.name, Kind::Exec, index, spec, netns);
        backend.process = process_id(pid).map(|id| Followed { id, uid, holds_only: false }).ok();
        backend.exec_cgroup = below_caller;
        let opened = Cgroup::open(&path).map_err(|e| unusable(&path, &e));
        let added = opened.and_then(|cgroup| self.add_process(backend, ns, inherited).map(|()| cgroup));
        let cgroup = added.inspect_err(|_| below::remove(&path))?;
        Ok(AddedExec { id, path, cgroup, process, sockets })
    }

    /// Moves the process of a new backend to its cgroup, once the kernel has its ports.
    pub(super) fn start_exec(&mut self, added: AddedExec) -> Result<Registered, String> {
        let AddedExec { id, path, cgroup, process, sockets } = added;
        let index = self.accepted(&id).inspect_err(|_| below::remove(&path))?;
        self.places.set(index, path.clone(), None);
        let pid = process.pid().to_string();
        let made = self
            .kernel
            .attach_backend(index, &cgroup)
            .map_err(|e| crate::chain(&e))
            .and_then(|()| fs::write(path.join("cgroup.procs"), pid).map_err(|e| unusable(&path, &e)))
            // A process that has taken its pid meanwhile is no part of the backend.
            .and_then(|()| process.uid().map(drop).map_err(|e| e.to_string()));
        if let Err(error) = made {
            self.places.retire(path);
            self.remove(&id);
            return Err(error);
        }
        self.cgroups.watch_empty(&path);
        // It may have ended before the watch stood.
        if cgroups::is_empty(&path) {
            self.cgroup_empty(&path);
        }
        Ok(Registered { id: id.into(), sockets })
    }

    pub(super) fn process_id(&self, kind: &str, pid: i32) -> BackendId {
        let free = |id: &BackendId| !self.world.backends.contains_key(id);
        (0..).map(|n| format!("{kind}-{pid}-{n}").into()).find(free).unwrap_or_default()
    }

    pub(super) fn process_backend(
        &self,
        id: &str,
        name: Option<String>,
        kind: Kind,
        index: BackendIndex,
        spec: Spec,
        netns: netns::Netns,
    ) -> Backend {
        Backend {
            name: name.unwrap_or_else(|| id.to_owned()),
            created_ms: wall_ms(),
            seen: self.world.next_seen(),
            seen_after: Some(self.orders.ledger.next_operation() - 1),
            phase: Phase::Running,
            network: Network::Host,
            netns: Some(netns),
            ..Backend::new(id, kind, index, spec)
        }
    }

    /// Adds a new backend with the listeners that it has. Once the kernel has it, [`Control::accepted`] says whether its claims hold.
    pub(super) fn add_process(&mut self, backend: Backend, ns: fs::File, held: HeldListeners) -> Result<(), String> {
        let netns = backend.netns.ok_or("its network namespace is not known")?;
        let asks = self.world.asks_who_listens(netns.cookie, &backend.spec);
        let listening = asks.then(|| listening::listeners(&ns, netns.cookie)).transpose();
        let listening = listening.map_err(|e| format!("who listens in its network namespace cannot be read: {e}"))?;
        let (id, index) = (backend.id.clone(), backend.index);
        self.store.put(&backend).map_err(|e| crate::chain(&e))?;
        self.world.backends.insert(id.clone(), backend);
        // One that belongs to another backend stays with that as long as it lives; a look says so.
        self.holders.look_at(netns.cookie);
        let own: BTreeSet<SocketCookie> = held.sockets.iter().map(|socket| socket.cookie).collect();
        for socket in held.sockets {
            if !self.world.sockets.contains_key(&socket.cookie) {
                self.register_inherited(index, socket);
            }
        }
        self.tell_left_out();
        if let Some(mut listening) = listening {
            listening.retain(|listener| !listener.cookie.is_some_and(|cookie| own.contains(&cookie)));
            self.note_listeners(netns.cookie, listening);
        }
        self.namespace_seen(netns, ns);
        self.touch_backend(index);
        Ok(())
    }

    /// Whether the claims of a new backend hold; else it is removed. Called after a reconcile only.
    pub(super) fn accepted(&mut self, id: &str) -> Result<BackendIndex, String> {
        let index = self.world.backends.get(id).map(|backend| backend.index).ok_or("it has ended")?;
        let Some(conditions) = self.plan.conditions.get(&index) else { return Ok(index) };
        let refused = condition::joined(conditions);
        self.remove(id);
        Err(refused)
    }

    pub(super) fn adopt_registered(&mut self, backend: &Backend, pid: i32) {
        // The pid may belong to another process by now: the namespace must at least be the same.
        let followed = backend.process.map(|process| process.id);
        let same = followed.or_else(|| process_id(pid).ok()).filter(|id| {
            let netns = Process::of(*id).and_then(|process| process.netns()).and_then(|ns| netns::identify(&ns)).ok();
            netns.is_some() && netns == backend.netns
        });
        match same {
            Some(process) => self.watch_process(&backend.id, process),
            None => self.ended(&backend.id, Ending::Removed),
        }
    }

    /// Undoes everything: programs, links, maps, pins, groups, cgroups and files.
    pub(super) fn unload(&mut self) -> Result<UnloadedBody, String> {
        let asleep = super::asleep(&self.world.decisions, &self.world.backends);
        self.end_pause_holder();
        detach_registered(self.world.backends.values());
        // A link that is held open would go on steering after its pin is gone.
        self.kernel.release();
        if self.firewall.is_open() {
            crate::firewall::remove();
        }
        let done = undo(&self.pins.dir, self.cgroups.mount());
        let done = done.map_err(|error| format!("not everything could be removed ({error})"))?;
        self.store.remove_all();
        info!(?done, ?asleep, "unloaded");
        Ok(UnloadedBody { asleep, ..done.into() })
    }
}

/// Takes the migrate program off the groups of adopted processes, which have no cgroup of their own.
pub fn detach_registered<'a>(backends: impl IntoIterator<Item = &'a Backend>) {
    for backend in backends {
        let Kind::Registered { pid } = backend.kind else { continue };
        let process = backend.process.map(|process| process.id).or_else(|| process_id(pid).ok());
        for socket in (ProcessSet { process, ..ProcessSet::default() }).listeners(|_| true) {
            let _ = crate::kernel::QueueMigration::detach(&socket.fd);
        }
    }
}

/// The listeners that a process has on the ports of its backend.
pub(super) struct HeldListeners {
    pub sockets: Vec<FoundSocket>,
    /// Ports on which it listens by MPTCP.
    pub mptcp: BTreeSet<Port>,
}

impl HeldListeners {
    /// Looks through its descriptors.
    pub fn of(process: &Process, ports: &BTreeSet<Port>) -> Result<Self, String> {
        let sockets = process.listeners(&mut Listening::default(), |socket| ports.contains(&socket.port()));
        let sockets =
            sockets.map_err(|e| format!("the descriptors of process {} cannot be read: {e}", process.pid()))?;
        let (mptcp, sockets): (Vec<_>, Vec<_>) = sockets.into_iter().partition(|socket| socket.mptcp);
        Ok(Self { sockets, mptcp: mptcp.iter().map(|socket| socket.port()).collect() })
    }
}

fn unusable(cgroup: &Path, error: &io::Error) -> String {
    format!("the cgroup {} cannot be used: {error}", cgroup.display())
}

pub(crate) fn parse(request: &BackendRequest) -> Result<Spec, String> {
    if let Some(name) = &request.name {
        Name::Backend.check(name)?;
    }
    let checked = labels::spec_from_flags(
        &request.service,
        &request.ports,
        request.version.as_deref().unwrap_or("unversioned"),
        request.weight.unwrap_or(labels::WEIGHT_DEFAULT),
        request.options,
    );
    checked.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
