//! Holding the clients of paused services: a process of ours listens beside the servers, in their reuseport group, and never accepts.
//! The handshakes complete, and the requests wait in the sockets. When the pause ends, the tables lead to the servers again and the
//! process is ended: the migrate program moves its queue to the servers by these tables.
//!
//! The process has an index of a backend, whose counters count the connections, and is no backend otherwise: the world has it as
//! something that lingers.

mod end;
mod told;

pub(crate) use told::words;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Child,
};

use pod_steer_ebpf::{FAMILY_V4, FAMILY_V6, NONE, SocketInfo};
use tracing::{info, warn};

use super::{
    control::Control,
    hold_process::{self, Wanted},
};
use crate::{
    ids::{BackendIndex, NetnsCookie, ServiceIndex, SocketCookie},
    kernel::{Cgroup, v6only},
    netns,
    process_set::{ProcessSet, open_netns},
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
    children: BTreeMap<BackendIndex, Child>,
    /// By service: the listeners that could not be opened, and why. Each is tried once in a pause.
    failed: BTreeMap<String, BTreeMap<Form, String>>,
    /// By service: the backlog of its listeners, if this daemon has opened them.
    backlogs: BTreeMap<String, u32>,
}

impl Control {
    /// A service is being paused: what failed in an earlier pause is tried again.
    pub(super) fn begin_holds(&mut self, service: &str) {
        self.orders.holds.failed.remove(service);
        self.ensure_holds(service);
    }

    /// Opens a listener beside those of the servers of a paused service, in each group that has none yet.
    pub(super) fn ensure_holds(&mut self, service: &str) {
        let Some(of_service) = self.services.index(service) else { return };
        self.lead_to_holds(service);
        let groups = self.world.groups(service, own_uid());
        if let Some(failed) = self.orders.holds.failed.get_mut(service) {
            failed.retain(|form, _| groups.contains_key(form));
        }
        let held = self.held_forms(service);
        let mut wanted: BTreeMap<NetnsCookie, Vec<Form>> = BTreeMap::new();
        for (form, group) in groups {
            let has_failed = self.orders.holds.failed.get(service).is_some_and(|failed| failed.contains_key(&form));
            if group.refused.is_none() && !has_failed && !held.contains(&form) {
                wanted.entry(form.netns_cookie).or_default().push(form);
            }
        }
        for (netns_cookie, forms) in wanted {
            if let Err(error) = self.open_hold((service, of_service), netns_cookie, &forms) {
                warn!(%service, %error, "clients cannot be held; their SYNs are discarded instead");
                let failed = self.orders.holds.failed.entry(service.to_owned()).or_default();
                failed.extend(forms.into_iter().map(|form| (form, error.clone())));
            }
        }
    }

    /// Clients of all ports of a service's servers are held, also of a server that came after the hold, or that an earlier daemon knew.
    fn lead_to_holds(&mut self, service: &str) {
        let fronts = self.world.fronts(service);
        let mut has_more = false;
        for hold in self.world.holds.values_mut().filter(|hold| hold.service == service) {
            for (target, ports) in &fronts {
                let known = hold.fronts.entry(*target).or_default();
                let before = known.len();
                known.extend(ports);
                has_more |= known.len() > before;
            }
        }
        if has_more {
            self.touch_service(service);
        }
    }

    fn held_forms(&self, service: &str) -> BTreeSet<Form> {
        let holds = self.world.holds.values().filter(|hold| hold.service == service);
        holds.flat_map(|hold| hold.sockets.values()).map(Form::from).collect()
    }

    /// Starts a process that holds clients in one network namespace.
    fn open_hold(
        &mut self,
        (service, of_service): (&str, ServiceIndex),
        netns_cookie: NetnsCookie,
        forms: &[Form],
    ) -> Result<(), String> {
        let places = self.places_of(std::iter::once(netns_cookie));
        let (netns, sets) = places.into_iter().next().ok_or("its network namespace is not known")?;
        let ns = open_netns(netns, &sets).map_err(|e| e.to_string())?;
        let index = self.new_index(service).map_err(|condition| condition.to_string())?;
        let path = self.hold_cgroup(index, of_service);
        fs::create_dir_all(&path).map_err(|e| format!("the cgroup `{}` cannot be made: {e}", path.display()))?;
        let started = netns::run_in(&ns, netns_cookie, hold_process::start);
        let opened = started.map_err(|e| format!("its process cannot be started: {e}")).and_then(|mut child| {
            let opened = self.open_in(index, service, &path, &mut child, forms);
            self.orders.holds.children.insert(index, child);
            opened
        });
        self.orders.holds.cgroups.insert(index, path);
        let added = opened.and_then(|failures| {
            let all_failed = failures.len() == forms.len();
            self.orders.holds.failed.entry(service.to_owned()).or_default().extend(failures);
            let sockets = self.sockets_of_hold(index);
            if sockets.is_empty() && !all_failed {
                return Err("the listeners of its process cannot be found".to_owned());
            }
            info!(%service, %index, listeners = sockets.len(), "holds clients");
            self.add_hold(index, service, sockets)
        });
        if !self.world.is_hold(index) {
            self.indices.free(index);
            self.end_process_of_hold(index);
        }
        added
    }

    /// Has the process open its listeners. Returns those that it could not open.
    fn open_in(
        &mut self,
        index: BackendIndex,
        service: &str,
        path: &Path,
        child: &mut Child,
        forms: &[Form],
    ) -> Result<Vec<(Form, String)>, String> {
        let attached = Cgroup::open(path).map_err(|e| e.to_string());
        attached.and_then(|cgroup| self.kernel.attach_backend(index, &cgroup).map_err(|e| crate::chain(&e)))?;
        let wanted: Vec<Wanted> =
            forms.iter().map(|form| Wanted { ip: form.ip, port: form.port.number, v6only: form.v6only }).collect();
        let opened = hold_process::open(child, path, &wanted);
        let opened = opened.map_err(|e| format!("its process did not open its listeners: {e}"))?;
        self.orders.holds.backlogs.insert(service.to_owned(), opened.backlog);
        let failures = forms.iter().zip(opened.failures).filter_map(|(form, failure)| {
            Some((*form, format!("a second listener on port {} was refused: {}", form.port, failure?)))
        });
        Ok(failures.collect())
    }

    /// The listeners of a process that holds clients.
    fn sockets_of_hold(&self, index: BackendIndex) -> Vec<FoundSocket> {
        let cgroup = self.orders.holds.cgroups.get(&index);
        cgroup.map(|path| ProcessSet::of_cgroup(path).listeners(|_| true)).unwrap_or_default()
    }

    /// Makes the listeners of a process members of the tables of its service.
    fn add_hold(&mut self, index: BackendIndex, service: &str, found: Vec<FoundSocket>) -> Result<(), String> {
        let mut sockets = BTreeMap::new();
        if found.is_empty() {
            return Ok(());
        }
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
            // Its queue moves by the same program as those of the servers.
            self.migration.attach(found.fd.as_fd()).map_err(|e| e.to_string())?;
            let registered = self.kernel.register_hold(found.cookie, &found.fd, info);
            registered.map_err(|e| crate::chain(&e))?;
            sockets.insert(found.cookie, socket_of(index, &found));
        }
        self.has_hold(index, service, sockets);
        Ok(())
    }

    fn has_hold(&mut self, index: BackendIndex, service: &str, sockets: BTreeMap<SocketCookie, Socket>) {
        let fronts = self.world.fronts(service);
        let ports = fronts.iter().flat_map(|(target, fronts)| fronts.iter().chain([target])).copied().collect();
        self.world.lingering.insert(index, Lingering { service: service.to_owned(), ports });
        self.world.holds.insert(index, Hold { service: service.to_owned(), sockets, fronts });
        if let Some(path) = self.orders.holds.cgroups.get(&index).cloned() {
            self.cgroups.watch_empty(&path);
        }
        self.touch_service(service);
    }
}

/// The user that our listeners belong to.
fn own_uid() -> u32 {
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
