//! How a hold ends, and how another daemon takes it over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Child,
    thread,
};

use tracing::{debug, info, warn};

use super::{PREFIX, open::listeners_of, socket_of};
use crate::{
    cgroups,
    daemon::{control::Control, exec_cgroups::base_cgroup},
    ids::{BackendIndex, ServiceIndex},
    kernel::Cgroup,
    world::Hold,
};

impl Control {
    /// Where a process that holds clients is.
    pub(super) fn hold_cgroup(&self, index: BackendIndex, service: ServiceIndex) -> PathBuf {
        base_cgroup(self.cgroups.mount(), &self.pins.dir).join(format!("{PREFIX}{index}-{service}"))
    }

    /// Whether clients of a service are to be held now.
    pub(in crate::daemon) fn holds_clients(&self, service: &str) -> bool {
        let decision = self.world.decisions.get(service);
        decision.is_some_and(|decision| decision.paused && !decision.is_pause_over(self.world.now_ms))
    }

    /// Clients of paused services are held, also after the holding processes have died or another listener has come.
    pub(in crate::daemon) fn keep_holds(&mut self) {
        self.keep_processes();
        let paused = self.world.decisions.keys().filter(|service| self.holds_clients(service));
        for service in paused.cloned().collect::<Vec<_>>() {
            self.ensure_holds(&service);
        }
    }

    /// Ends the processes whose services are no longer paused: the kernel moves their queues.
    pub(in crate::daemon) fn leave_holds(&mut self) {
        // Not while a table may still lead there. Other services' changes, which may be refused for ever, do not matter.
        let is_left = |hold: &Hold| {
            let Some(service) = self.services.index(&hold.service) else { return true };
            let mut sockets = hold.sockets.keys();
            self.is_in_force(&hold.service) && !sockets.any(|cookie| self.kernel.may_lead_to(service, *cookie))
        };
        let over = self.world.holds.iter().filter(|(_, hold)| !self.wants_holds(&hold.service) && is_left(hold));
        for index in over.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.end_hold(index);
        }
    }

    fn end_hold(&mut self, index: BackendIndex) {
        let Some(hold) = self.world.holds.remove(&index) else { return };
        let held = self.live(index);
        if self.world.decisions.get(&hold.service).is_some_and(|decision| decision.paused) {
            for cookie in hold.sockets.keys() {
                // Without a table the queue moves nowhere.
                self.kernel.strand(*cookie);
            }
            warn!(service = %hold.service, held, "the pause has lasted as long as it may; its clients are refused");
            let detail = format!("its time is over; {held} held clients are refused");
            self.tell(&hold.service, "", "pause-over", &detail);
        } else {
            info!(service = %hold.service, held, "held clients go to the servers");
        }
        self.forget_hold(index, &hold);
        self.end_process_of_hold(index);
    }

    fn forget_hold(&mut self, index: BackendIndex, hold: &Hold) {
        for cookie in hold.sockets.keys() {
            self.kernel.forget_hold(*cookie);
        }
        if !self.world.holds.values().any(|other| other.service == hold.service) {
            self.orders.holds.failed.remove(&hold.service);
        }
        self.orders.sleepers.end_watch(index);
        self.store.remove_hold(index);
        self.indices.free(index);
        self.touch_service(&hold.service);
    }

    /// Ends the processes. The cgroup is removed when no connection is counted there any more.
    fn end_process_of_hold(&mut self, index: BackendIndex) {
        if let Some(path) = self.orders.holds.cgroups.remove(&index) {
            kill(&path);
            self.drop_hold_cgroup(path);
        }
        reap(self.orders.holds.children.remove(&index).unwrap_or_default());
    }

    /// Removes the cgroup of a hold once no process is in it.
    pub(super) fn drop_hold_cgroup(&mut self, path: PathBuf) {
        self.cgroups.watch_empty(&path);
        if cgroups::is_empty(&path) {
            self.places.retire(path);
            self.places.ask_for_cleanup();
        }
    }

    /// No process is left in this cgroup: if clients were held there, another process is to hold those that come.
    pub(in crate::daemon) fn hold_emptied(&mut self, path: &Path) {
        let found = self.orders.holds.cgroups.iter().find(|(_, of)| *of == path).map(|(index, _)| *index);
        let Some(index) = found else { return };
        self.orders.holds.cgroups.remove(&index);
        reap(self.orders.holds.children.remove(&index).unwrap_or_default());
        let Some(hold) = self.world.holds.remove(&index) else { return };
        warn!(service = %hold.service, "the processes that held clients were killed; their queues go to the servers, if any listens");
        self.forget_hold(index, &hold);
        self.keep_holds();
    }

    /// Takes over the processes that an earlier daemon has started.
    pub(in crate::daemon) fn adopt_holds(&mut self) {
        let names: BTreeMap<ServiceIndex, String> =
            self.services.all().iter().map(|(name, index)| (*index, name.clone())).collect();
        let attached: BTreeSet<_> = self.kernel.attached_backends().into_iter().collect();
        for path in hold_cgroups(&base_cgroup(self.cgroups.mount(), &self.pins.dir)) {
            let parsed = path.file_name().and_then(|name| parse(name.to_str()?));
            let Some((index, service)) = parsed else { continue };
            let is_attached = Cgroup::open(&path).is_ok_and(|cgroup| attached.contains(&(cgroup.id, index)));
            let service = names.get(&service).filter(|_| is_attached);
            let (Some(service), false) = (service, cgroups::is_empty(&path)) else {
                self.end_left_hold(path);
                continue;
            };
            let found = listeners_of(&path);
            let known = found.iter().filter(|found| self.kernel.is_listening(found.cookie));
            let sockets: BTreeMap<_, _> = known.map(|found| (found.cookie, socket_of(index, found))).collect();
            if sockets.is_empty() {
                self.end_left_hold(path);
                continue;
            }
            self.orders.holds.cgroups.insert(index, path);
            info!(%service, %index, listeners = sockets.len(), "clients are still held");
            for found in found.iter().filter(|found| sockets.contains_key(&found.cookie)) {
                self.kernel.adopt_hold(found.cookie);
                // The program of an earlier layout uses other maps, and no member of its group may be left to attach this one.
                if let Err(error) = self.migration.attach(found.fd.as_fd()) {
                    warn!(%service, %error, "held clients may be reset when their hold ends");
                }
            }
            self.has_hold(index, service, sockets);
        }
    }

    /// Ends a process that holds no client: its service is gone, or the earlier daemon died before it had registered its listeners.
    fn end_left_hold(&mut self, path: PathBuf) {
        kill(&path);
        self.drop_hold_cgroup(path);
    }
}

/// Copies of the listeners of the processes of a cgroup.
pub(in crate::daemon) fn descriptors(path: &Path) -> Vec<OwnedFd> {
    listeners_of(path).into_iter().map(|found| found.fd).collect()
}

/// The cgroups of processes that hold clients.
fn hold_cgroups(base: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let is_hold = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(PREFIX));
    entries.filter(|entry| is_hold(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// The index of the process and that of its service, from the name of its cgroup.
fn parse(name: &str) -> Option<(BackendIndex, ServiceIndex)> {
    let (index, service) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some((BackendIndex(index.parse().ok()?), ServiceIndex(service.parse().ok()?)))
}

/// Kills our children and waits for their end, on another thread.
pub(super) fn reap(children: Vec<Child>) {
    if children.is_empty() {
        return;
    }
    let reaped = thread::Builder::new().name("reap".to_owned()).spawn(move || {
        for mut child in children {
            let _ = child.kill();
            let _ = child.wait();
        }
    });
    if let Err(error) = reaped {
        debug!(%error, "an ended process stays a zombie until the daemon ends");
    }
}

/// Kills the processes of a hold.
pub(super) fn kill(path: &Path) {
    if let Err(error) = fs::write(path.join("cgroup.kill"), "1") {
        warn!(%error, cgroup = %path.display(), "a process that held clients goes on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_cgroup_tells_both_indices() {
        assert_eq!(parse("held-7-12"), Some((BackendIndex(7), ServiceIndex(12))));
        for other in ["held-7", "held-a-1", "held-7-", "paused", "exec-7-12"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
