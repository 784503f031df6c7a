//! Holding the clients of paused services: a process of ours listens beside the servers, in their reuseport group, and never accepts.
//! The handshakes complete, and the requests wait in the sockets. When the pause ends, the tables lead to the servers again and the
//! process is ended: the migrate program moves its queue to the servers by these tables.
//!
//! The process has an index of a backend, whose counters count the connections, and is no backend otherwise: the world has it as
//! something that lingers.

mod end;
mod keep;
mod open;
mod told;

pub(super) use end::descriptors;
pub use keep::Kept;
pub use open::OpenedHold;
pub(crate) use told::words;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Child,
};

use open::Opening;
use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, NONE, SocketInfo};

use super::{control::Control, operations::GivenOrder};
use crate::{
    ids::{BackendIndex, SocketCookie},
    kernel::v6only,
    listening::Listener,
    procs::{FoundSocket, address_bytes},
    world::{Form, Hold, Lingering, Socket},
};

/// How the names of the cgroups begin, beside those of `exec`. The index of the process and that of its service follow.
pub(super) const PREFIX: &str = "held-";

/// The processes that hold clients, beside what the world has of them.
#[derive(Default)]
pub(super) struct Holds {
    cgroups: BTreeMap<BackendIndex, PathBuf>,
    /// Those that this daemon has started, to be waited for.
    children: BTreeMap<BackendIndex, Vec<Child>>,
    /// Those that are being started beside the loop.
    opening: BTreeMap<BackendIndex, Opening>,
    /// Those whose second process is being started beside the loop.
    keeping: BTreeSet<BackendIndex>,
    /// Orders that wait until the listeners of their services are open.
    waiting: Vec<GivenOrder>,
    /// By service: the listeners that have been opened since its pause began.
    opened: BTreeMap<String, BTreeSet<Form>>,
    /// By service: the listeners that could not be opened, and why. Each is tried once in a pause.
    failed: BTreeMap<String, BTreeMap<Form, String>>,
    /// By service: the backlog of its listeners, if this daemon has opened them.
    backlogs: BTreeMap<String, u32>,
}

impl Control {
    /// Clients of all ports of a service's servers are held, also of a server that came after the hold, or that an earlier daemon knew.
    fn lead_to_holds(&mut self, service: &str) {
        let fronts = self.world.fronts(service);
        let mut has_more = false;
        for (index, hold) in self.world.holds.iter_mut().filter(|(_, hold)| hold.service == service) {
            let before = hold.fronts.clone();
            for (target, ports) in &fronts {
                hold.fronts.entry(*target).or_default().extend(ports);
            }
            if hold.fronts != before {
                has_more = true;
                self.store.put_hold(*index, &hold.maps());
            }
        }
        if has_more {
            self.touch_service(service);
        }
    }

    /// The listeners of a service that hold its clients, and those that are being opened.
    fn held_forms(&self, service: &str) -> BTreeSet<Form> {
        let holds = self.world.holds.values().filter(|hold| hold.service == service);
        let open = holds.flat_map(|hold| hold.sockets.values()).map(Form::from);
        let opening = self.orders.holds.opening.values().filter(|opening| opening.service == service);
        open.chain(opening.flat_map(|opening| opening.forms.iter().copied())).collect()
    }

    /// The cgroup of the process with this index.
    pub(super) fn hold_path(&self, index: BackendIndex) -> Option<PathBuf> {
        self.orders.holds.cgroups.get(&index).cloned()
    }

    /// Whether an order waits until clients of a service can be held.
    pub(super) fn awaits_holds(&self, service: &str) -> bool {
        self.orders.holds.waiting.iter().any(|given| given.service == service)
    }

    /// Whether this index belongs to a process that holds clients, or is about to.
    pub(super) fn is_of_hold(&self, index: BackendIndex) -> bool {
        self.world.is_hold(index) || self.orders.holds.opening.contains_key(&index)
    }

    /// Whether this may be a listener that is about to hold clients, and is not registered yet.
    pub(super) fn may_be_opening(&self, listener: &Listener) -> bool {
        let mut forms = self.orders.holds.opening.values().flat_map(|opening| &opening.forms);
        listener.uid == own_uid() && forms.any(|form| form.ip == listener.ip && form.port == listener.port)
    }

    /// Makes the listeners of a process members of the tables of its service.
    fn add_hold(&mut self, index: BackendIndex, service: &str, found: Vec<FoundSocket>) -> Result<(), String> {
        let mut sockets = BTreeMap::new();
        for found in found {
            let family = if found.bound.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
            let info = SocketInfo {
                netns_cookie: found.netns_cookie.0,
                addr: address_bytes(found.bound.ip()),
                backend: index.0,
                table: NONE,
                port: found.bound.port(),
                proto: found.port().proto.number(),
                family,
                service: NONE,
                v6only: v6only(found.v6only),
                users: SocketInfo::HOLDS,
                ifindex: found.ifindex,
                ..SocketInfo::default()
            };
            let registered = self.kernel.register_hold(found.cookie, &found.fd, info);
            registered.map_err(|e| crate::chain(&e))?;
            sockets.insert(found.cookie, socket_of(index, &found));
        }
        self.store.remove_hold(index);
        self.has_hold(index, service, sockets);
        Ok(())
    }

    fn has_hold(&mut self, index: BackendIndex, service: &str, sockets: BTreeMap<SocketCookie, Socket>) {
        // An earlier daemon may have known backends that are gone.
        let mut fronts = Hold::fronts_of(&self.store.hold(index));
        for (target, ports) in self.world.fronts(service) {
            fronts.entry(target).or_default().extend(ports);
        }
        let ports = fronts.iter().flat_map(|(target, fronts)| fronts.iter().chain([target])).copied().collect();
        let opened = self.orders.holds.opened.entry(service.to_owned()).or_default();
        opened.extend(sockets.values().map(Form::from));
        self.world.lingering.insert(index, Lingering { service: service.to_owned(), ports });
        let hold = Hold { service: service.to_owned(), sockets, fronts };
        self.store.put_hold(index, &hold.maps());
        self.world.holds.insert(index, hold);
        if let Some(path) = self.orders.holds.cgroups.get(&index).cloned() {
            self.cgroups.watch_empty(&path);
        }
        self.touch_service(service);
    }
}

/// The user that our listeners belong to.
pub(super) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn socket_of(index: BackendIndex, found: &FoundSocket) -> Socket {
    Socket {
        backend: index,
        netns_cookie: found.netns_cookie,
        ip: found.bound.ip(),
        port: found.port(),
        hidden_port: None,
        v6only: Some(found.v6only),
        ifindex: found.ifindex,
        uid: Some(found.uid),
    }
}
