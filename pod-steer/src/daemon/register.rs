//! Processes that listen already and become backends. Their descriptors are looked through beside the loop: there may be tens of
//! thousands.

use std::{collections::BTreeSet, fs::File};

use super::{
    Event,
    control::Control,
    deferred::Deferred,
    processes::{HeldListeners, parse},
};
use crate::{
    api::{
        Answer,
        types::{RegisterRequest, Registered},
    },
    ids::BackendId,
    labels::Spec,
    netns::{self, Netns},
    ports::{Port, PortMap},
    procs::{Listening, Process, ProcessId, process_id},
    world::{Followed, Kind, listed},
};

/// A process that is to be registered.
pub struct Registration {
    name: Option<String>,
    spec: Spec,
    found: Result<Found, String>,
    answer: Answer,
}

/// A process that has become a backend.
pub(super) struct AddedProcess {
    id: BackendId,
    process: ProcessId,
    sockets: usize,
}

/// What was found of it.
struct Found {
    process: ProcessId,
    uid: u32,
    ns: File,
    netns: Netns,
    held: HeldListeners,
}

impl Control {
    /// Looks at a process that is to be registered, and answers when that is done.
    pub(super) fn register(&self, request: RegisterRequest, answer: Answer) {
        let spec = match self.refuse_while_waiting().and_then(|()| parse(&request.backend)) {
            Ok(spec) => spec,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let targets: BTreeSet<Port> = spec.ports.iter().map(PortMap::target_port).collect();
        let ports = self.world.configured.listening_ports(&spec);
        let (pid, name) = (request.pid, request.backend.name);
        let look = move || Found::look(pid, &targets, &ports);
        self.effects.run_then(look, move |found| {
            let found =
                found.unwrap_or_else(|| Err(format!("process {pid} cannot be looked at; see the daemon's log")));
            Event::Registering(Box::new(Registration { name, spec, found, answer }))
        });
    }

    /// Makes it a backend.
    pub(super) fn registering(&mut self, registration: Registration) {
        let Registration { name, spec, found, answer } = registration;
        match found.and_then(|found| self.add_registered(name, spec, found)) {
            Ok(added) => self.deferred.push_back(Deferred::Register(added, answer)),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    fn add_registered(&mut self, name: Option<String>, spec: Spec, found: Found) -> Result<AddedProcess, String> {
        let Found { process, uid, ns, netns, held } = found;
        let index = self.new_index(&spec.service).map_err(|condition| condition.to_string())?;
        let pid = process.pid;
        let id = self.process_id("registered", pid);
        let mut backend = self.process_backend(&id, name, Kind::Registered { pid }, index, spec, netns);
        backend.process = Some(Followed { id: process, uid, holds_only: false });
        let sockets = held.sockets.len();
        self.add_process(backend, ns, held)?;
        Ok(AddedProcess { id, process, sockets })
    }

    /// Follows a process that has become a backend, if its claims hold.
    pub(super) fn follow_registered(&mut self, added: AddedProcess) -> Result<Registered, String> {
        let AddedProcess { id, process, sockets } = added;
        self.accepted(&id)?;
        self.watch_process(&id, process);
        Ok(Registered { id: id.into(), sockets })
    }
}

impl Found {
    /// `targets` are the ports of its service, `ports` those and the one of its health check.
    fn look(pid: i32, targets: &BTreeSet<Port>, ports: &BTreeSet<Port>) -> Result<Self, String> {
        let process = Process::open(pid).map_err(|e| format!("there is no process {pid}: {e}"))?;
        let uid = process.uid().map_err(|e| e.to_string())?;
        let ns =
            process.netns().map_err(|e| format!("the network namespace of process {pid} cannot be opened: {e}"))?;
        let netns = netns::identify(&ns).map_err(|e| format!("its network namespace cannot be identified: {e}"))?;
        let id = process_id(pid).map_err(|e| format!("process {pid} cannot be identified: {e}"))?;
        let held = HeldListeners::of(&process, ports)?;
        if held.sockets.iter().any(|socket| targets.contains(&socket.port())) {
            return Ok(Self { process: id, uid, ns, netns, held });
        }
        if !held.mptcp.is_empty() {
            return Err(format!(
                "process {pid} cannot be steered to: {}",
                super::holders::mptcp_condition(&held.mptcp)
            ));
        }
        Err(listens_elsewhere(&process, targets))
    }
}

/// Says that a process listens on none of these ports, and on which it listens.
fn listens_elsewhere(process: &Process, wanted: &BTreeSet<Port>) -> String {
    let mut found = BTreeSet::new();
    let _ = process.listeners(&mut Listening::default(), |socket| {
        found.insert(socket.port());
        false
    });
    let (pid, wanted) = (process.pid(), listed(wanted, "or"));
    if found.is_empty() {
        return format!(
            "process {pid} does not listen on port {wanted}, nor on any other; register the process that listens"
        );
    }
    let found = listed(&found, "and");
    format!("process {pid} listens on {found}, not on {wanted}; name the port on which it listens in the ports")
}
