//! Where a container runs: its cgroup, to which the kernel programs are attached, and its network namespace.

use std::path::Path;

use tracing::{debug, warn};

use super::control::Control;
use crate::{
    cgroups,
    condition::{Condition, Reason},
    engine,
    kernel::Cgroup,
    listening::{self, Listener},
    netns::{self, Netns},
    procs::Process,
    world::{Kind, Network},
};

impl Control {
    /// Attaches the programs to the cgroup of a container. They look for the backend's ports, so the kernel has those before: this
    /// is called after a reconcile only.
    pub(super) fn attach_container(&mut self, id: &str, path: &Path) {
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        let index = backend.index;
        let attached = Cgroup::open(path).map_err(|e| e.to_string()).and_then(|cgroup| {
            self.kernel.attach_backend(index, &cgroup).map_err(|e| crate::chain(&e)).map(|()| cgroup.id)
        });
        let former = self.places.id(index);
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        match attached {
            Ok(cgroup) => {
                // The end of its former run has not been told yet. This cgroup has no listener so far.
                if former.is_some_and(|former| former != cgroup) {
                    backend.counts_anew();
                }
                debug!(container = %backend.name, %cgroup, path = %path.display(), "attached");
                self.places.set(index, path.to_owned(), Some(cgroup));
                if backend.end_condition(Reason::NoCgroup) {
                    self.touch_backend(index);
                }
            }
            Err(error) => {
                let message = format!("its cgroup `{}` could not be attached to ({error})", path.display());
                let remedy = "restart it, or see `pod-steer doctor`";
                backend.set_condition(Condition::new(Reason::NoCgroup, message, remedy));
                self.touch_backend(index);
            }
        }
    }

    /// Whether there are processes in the cgroup of a container. That of its next run is at the same path.
    pub(super) fn has_processes(&self, id: &str) -> bool {
        let index = self.world.backends.get(id).map(|backend| backend.index);
        index.and_then(|index| self.places.path(index)).is_some_and(|path| !cgroups::is_empty(path))
    }

    /// A container runs: its namespace and its cgroup can be known now, if they were not before. Called after a reconcile only.
    pub(super) fn started(&mut self, id: &str, pid: i32) {
        let looked = Process::open(pid).and_then(|p| Ok((p.netns()?, p.cgroup()?)));
        // One that has ended meanwhile has an event under way.
        let Ok((ns, cgroup)) = looked else { return };
        let Ok(netns) = netns::identify(&ns) else { return };
        let Some(backend) = self.world.backends.get(id) else { return };
        let (index, asks) = (backend.index, self.world.asks_who_listens(netns.cookie, &backend.spec));
        let path = self.cgroups.mount().join(cgroup.trim_start_matches('/'));
        // A container may have moved to a cgroup below its own.
        let Some(path) = cgroups::own_cgroup(&path, id).map(Path::to_owned) else {
            return self.without_cgroup(id, without_its_own(&cgroup));
        };
        if let Kind::Container { engine } = &backend.kind
            && !cgroups::is_made_by(&path, engine::owner(engine))
        {
            let user = engine::owner(engine);
            let message = format!(
                "its engine is user {user}'s, and its cgroup `{cgroup}` is in a directory that is not: an engine has its own \
                 user's containers steered and no others"
            );
            let remedy = "give its socket to root, or start it as that user";
            return self.without_cgroup(id, Condition::new(Reason::NoCgroup, message, remedy));
        }
        let cgroup = Cgroup::open(&path).ok().map(|cgroup| cgroup.id);
        let attached = cgroup.filter(|cgroup| self.kernel.is_attached(*cgroup, index));
        match attached {
            Some(cgroup) => self.places.set(index, path.clone(), Some(cgroup)),
            None => {
                debug!(container = %id, path = %path.display(), "it started before it was known");
                self.attach_container(id, &path);
            }
        }
        let attached = attached.is_some();
        self.holders.look_at(netns.cookie);
        // It may have listened before it was attached to: then the kernel programs have nothing to tell of it.
        let is_silent = !self.world.sockets.values().any(|socket| socket.backend == index);
        if asks && !attached && is_silent {
            return self.survey_container(id, netns, ns, path);
        }
        let listeners = match asks.then(|| listening::listeners(&ns, netns.cookie)).transpose() {
            Ok(listeners) => listeners,
            Err(error) => {
                warn!(container = %id, %netns, %error, "the listeners of its namespace cannot be enumerated, so no port is claimed");
                return;
            }
        };
        self.lives_in(id, netns, ns, listeners);
        if is_silent {
            self.look_for_sockets(index);
        }
    }

    /// A container's processes are in a cgroup that is not its own. Attaching to it would make backends of all processes in it.
    fn without_cgroup(&mut self, id: &str, condition: Condition) {
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        let index = backend.index;
        backend.set_condition(condition);
        // An earlier version may have attached to it.
        for (cgroup, _) in self.kernel.attached_backends().into_iter().filter(|(_, of)| *of == index) {
            self.kernel.detach_backend(cgroup, index);
        }
        self.places.forget(index);
        self.counted.stop_search(id);
        self.forget_sockets(index);
        self.touch_backend(index);
    }

    /// The namespace of a container is known, and the listeners there, if they had to be enumerated.
    pub(super) fn lives_in(&mut self, id: &str, netns: Netns, ns: std::fs::File, listeners: Option<Vec<Listener>>) {
        self.namespace_seen(netns, ns);
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        if backend.netns != Some(netns) {
            backend.disconnected();
        }
        backend.netns = Some(netns);
        let (index, health, network) = (backend.index, backend.health, backend.network);
        if let Err(error) = self.store.put(backend) {
            warn!(error = %crate::chain(&error), "a restart will have to find this container again");
        }
        debug!(container = %id, %netns, ?health, "runs");
        if let Some(listeners) = listeners {
            self.note_listeners(netns.cookie, listeners);
        }
        self.check_foreign(index);
        self.touch_backend(index);
        self.touch_pod(network);
        if network == Network::Joined {
            self.joined(netns);
        }
        self.look_at_network(id);
    }

    /// Remembers a namespace. Its descriptor is kept until it is attached, and no longer than a backend is there, so that it
    /// can end. The next plan has it attached.
    pub(super) fn namespace_seen(&mut self, netns: Netns, ns: std::fs::File) {
        let attached = self.netns.is_attaching(netns.cookie) || self.kernel.namespaces().contains(&netns.cookie);
        self.netns.see(netns, (!attached).then_some(ns));
    }
}

/// Why a container in this cgroup is not steered.
fn without_its_own(cgroup: &str) -> Condition {
    // Outside of the daemon's cgroup namespace, paths begin with `/..`.
    if cgroup.starts_with("/..") {
        let message = "its cgroup is outside of the hierarchy that pod-steer sees, so it is not steered";
        let remedy = "start pod-steer in the host's cgroup namespace (`--cgroupns=host`)";
        return Condition::new(Reason::NoCgroup, message, remedy);
    }
    let message = format!("it has no cgroup of its own (its processes are in `{cgroup}`), so it is not steered");
    Condition::new(Reason::NoCgroup, message, "start it without `--cgroups=disabled`")
}
