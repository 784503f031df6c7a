//! Stopping old backends: containers through their engine, commands of `exec` by a signal.

use std::collections::BTreeSet;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{info, warn};

use super::{control::Control, ended::is_outside};
use crate::{clock::boot_ms, ids::BackendId, world::Kind};

impl Control {
    pub(super) fn stop_backends(&mut self, ids: &BTreeSet<BackendId>) {
        for id in ids {
            let Some(backend) = self.world.backends.get_mut(id) else { continue };
            let name = backend.name.clone();
            self.orders.unstopped.remove(id);
            match &backend.kind {
                Kind::Container { engine } => {
                    let (engine, id, stop_ms) = (engine.clone(), id.clone(), backend.stop_ms());
                    info!(container = %name, "is told to stop");
                    self.effects.stop(engine, id, name, stop_ms);
                }
                Kind::Exec if backend.process.is_some_and(|process| process.holds_only) => {
                    info!(backend = %name, "only its socket activator is left, which is not stopped");
                    self.release_activator(id);
                }
                Kind::Exec => {
                    if let Some(path) = self.places.path(backend.index) {
                        info!(backend = %name, "is told to stop");
                        terminate(path);
                        // A process that has left its cgroup was started by us as well.
                        let outside = backend.process.map(|process| process.id).filter(|id| is_outside(*id, path));
                        if let Some(Err(error)) =
                            outside.map(|id| crate::procs::Process::of(id).and_then(|process| process.terminate()))
                        {
                            warn!(backend = %name, %error, "could not be told to stop");
                        }
                        // No engine says so, as it does of a container.
                        backend.told_to_stop(boot_ms());
                        if let Err(error) = self.store.put(backend) {
                            warn!(error = %crate::chain(&error), "a restart will not know that this backend stops");
                        }
                        let service = backend.spec.service.clone();
                        self.touch_service(&service);
                    }
                }
                Kind::Registered { .. } => info!(backend = %name, "was not started by us, so it is not stopped"),
            }
        }
    }

    /// Looks at the accept queues of the backends that a canary watches, beside the loop.
    pub(super) fn look_at_queues(&self) {
        let watched = self.orders.operations.values().filter_map(|operation| match &operation.phase {
            crate::rollout::Phase::Stepping { watched, .. } => Some(watched.keys()),
            _ => None,
        });
        for backend in watched.flatten().filter_map(|id| self.world.backends.get(id)) {
            let processes = self.processes_of(backend);
            let ports = self.world.configured.listening_ports(&backend.spec);
            let id = backend.id.clone();
            self.effects.run_on(move |inputs| {
                let sockets = processes.listeners(|socket| ports.contains(&socket.port()));
                let drops = |socket: &crate::procs::FoundSocket| crate::sys::drops(&socket.fd).unwrap_or(0);
                let dropped: u64 = sockets.iter().map(|socket| u64::from(drops(socket))).sum();
                let _ = inputs.blocking_send(super::Event::Dropped { id, dropped });
            });
        }
    }

    pub(super) fn dropped(&mut self, id: &str, dropped: u64) {
        if !self.world.backends.contains_key(id) {
            return;
        }
        self.orders.overflows.entry(id.into()).and_modify(|(_, now)| *now = dropped).or_insert((dropped, dropped));
    }
}

/// SIGTERM to every process of a cgroup.
fn terminate(cgroup: &std::path::Path) {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw) {
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The pid may have become another process's since it was read; the pidfd cannot.
        let still = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
        let name = cgroup.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if still.is_ok_and(|text| in_cgroup(&text, name))
            && let Err(error) = pidfd_send_signal(&pidfd, Signal::TERM)
        {
            warn!(pid = pid.as_raw_nonzero(), %error, "could not be told to stop");
        }
    }
}

/// Whether `/proc/PID/cgroup` names a cgroup, or one below it.
fn in_cgroup(text: &str, name: &str) -> bool {
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    !name.is_empty() && path.split('/').any(|part| part == name)
}
