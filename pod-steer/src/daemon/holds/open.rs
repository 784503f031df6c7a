//! How a hold begins. The loop gives the process an index and a cgroup; all else may take seconds, and is done beside the loop: the
//! process is started in the servers' network namespace and opens its listeners. No table leads to them before the loop has registered
//! them, so a process that is not wanted any more is ended without a loss.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
};

use tracing::{info, warn};

use super::{end::kill, own_uid};
use crate::{
    cgroups,
    daemon::{
        Event,
        control::Control,
        hold_process::{self, Wanted},
        operations::GivenOrder,
    },
    ids::{BackendIndex, NetnsCookie, ServiceIndex},
    kernel::{Cgroup, QueueMigration},
    netns::{self, Netns},
    process_set::{ProcessSet, open_netns},
    procs::FoundSocket,
    rollout::Operation,
    world::Form,
};

/// A process that is being started.
pub(super) struct Opening {
    pub service: String,
    /// The listeners that it opens.
    pub forms: Vec<Form>,
    path: PathBuf,
}

/// A process that has opened listeners, of which the loop does not know yet.
pub struct OpenedHold {
    process: NewProcess,
    sockets: Vec<FoundSocket>,
    /// The backlog of each.
    backlog: u32,
    /// The listeners that could not be opened, and why.
    failures: Vec<(Form, String)>,
}

/// A process that is ended unless the loop takes it: its pause may have ended, or the daemon.
struct NewProcess {
    child: Option<Child>,
    path: PathBuf,
}

impl Drop for NewProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have a child of its own, in the same cgroup.
            kill(&self.path);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Control {
    /// Begins to open the listeners that hold the clients of a service, for an order that needs them. The order is carried out when
    /// each of them is open or has failed: until then the service goes on as before. Returns the order if it does not have to wait.
    pub(in crate::daemon) fn await_holds(&mut self, given: GivenOrder) -> Option<GivenOrder> {
        let service = given.service.clone();
        // What failed in an earlier pause is tried again.
        self.orders.holds.failed.remove(&service);
        if self.held_forms(&service).is_empty() {
            self.orders.holds.opened.remove(&service);
        }
        self.ensure_holds(&service);
        if !self.is_opening(&service) {
            return Some(given);
        }
        self.orders.holds.waiting.push(given);
        None
    }

    pub(in crate::daemon) fn is_opening(&self, service: &str) -> bool {
        self.orders.holds.opening.values().any(|opening| opening.service == service)
    }

    /// Whether listeners of a service are to hold its clients now, or as soon as they are open.
    pub(super) fn wants_holds(&self, service: &str) -> bool {
        let waits = |given: &GivenOrder| given.service == service;
        let due = |given: &GivenOrder| waits(given) && given.has_waited;
        self.holds_clients(service) || self.orders.holds.waiting.iter().any(waits) || self.orders.given.iter().any(due)
    }

    /// Begins to open a listener beside those of the servers of a service, in each group that is to have one and has none yet.
    pub(in crate::daemon) fn ensure_holds(&mut self, service: &str) {
        let Some(of_service) = self.services.index(service) else { return };
        self.lead_to_holds(service);
        let is_asleep = self.world.decisions.get(service).is_some_and(|decision| decision.asleep.is_some());
        let is_recreating = is_asleep || self.orders.operations.get(service).is_some_and(Operation::is_recreating);
        let begun = self.orders.holds.opened.get(service).cloned().unwrap_or_default();
        let groups = self.world.groups_to_hold(service, own_uid(), is_recreating.then_some(&begun));
        if let Some(failed) = self.orders.holds.failed.get_mut(service) {
            failed.retain(|form, _| is_recreating || groups.contains_key(form));
        }
        let held = self.held_forms(service);
        let mut wanted: BTreeMap<NetnsCookie, Vec<Form>> = BTreeMap::new();
        for form in groups.into_keys() {
            let has_failed = self.orders.holds.failed.get(service).is_some_and(|failed| failed.contains_key(&form));
            if !has_failed && !held.contains(&form) {
                wanted.entry(form.netns_cookie).or_default().push(form);
            }
        }
        for (netns_cookie, forms) in wanted {
            if let Err(error) = self.open_hold((service, of_service), netns_cookie, forms.clone()) {
                self.note_failed(service, forms, &error);
            }
        }
    }

    fn note_failed(&mut self, service: &str, forms: Vec<Form>, error: &str) {
        warn!(%service, %error, "clients cannot be held; their SYNs are discarded instead");
        let failed = self.orders.holds.failed.entry(service.to_owned()).or_default();
        failed.extend(forms.into_iter().map(|form| (form, error.to_owned())));
    }

    /// Starts a process that holds clients in one network namespace.
    fn open_hold(
        &mut self,
        (service, of_service): (&str, ServiceIndex),
        netns_cookie: NetnsCookie,
        forms: Vec<Form>,
    ) -> Result<(), String> {
        let places = self.places_of(std::iter::once(netns_cookie));
        let (netns, sets) = places.into_iter().next().ok_or("its network namespace is not known")?;
        let index = self.new_index(service).map_err(|condition| condition.to_string())?;
        let path = self.hold_cgroup(index, of_service);
        let made =
            fs::create_dir_all(&path).map_err(|e| format!("the cgroup `{}` cannot be made: {e}", path.display()));
        // Before there is a process: the kernel programs count what it accepts from the first connection on.
        let attached = made.and_then(|()| Cgroup::open(&path).map_err(|e| e.to_string()));
        let attached =
            attached.and_then(|cgroup| self.kernel.attach_backend(index, &cgroup).map_err(|e| crate::chain(&e)));
        if let Err(error) = attached {
            self.indices.free(index);
            self.drop_hold_cgroup(path);
            return Err(error);
        }
        let (migration, work_forms, work_path) = (Arc::clone(&self.migration), forms.clone(), path.clone());
        self.effects.run_then(
            move || open((netns, sets.as_slice()), netns_cookie, work_path, &work_forms, &migration),
            move |done| Event::HoldOpened {
                index,
                opened: Box::new(done.unwrap_or_else(|| Err("the attempt to start its process failed".to_owned()))),
            },
        );
        self.orders.holds.opening.insert(index, Opening { service: service.to_owned(), forms, path });
        Ok(())
    }

    /// A process has opened its listeners, or has not. What it was started for may have ended meanwhile.
    pub(in crate::daemon) fn hold_opened(&mut self, index: BackendIndex, opened: Result<OpenedHold, String>) {
        let Some(Opening { service, forms, path }) = self.orders.holds.opening.remove(&index) else { return };
        if self.wants_holds(&service) {
            match opened.and_then(|opened| self.take_hold(index, &service, opened)) {
                Ok(failures) => {
                    for (form, error) in failures {
                        self.note_failed(&service, vec![form], &error);
                    }
                }
                Err(error) => self.note_failed(&service, forms, &error),
            }
        } else {
            // Ends the process.
            drop(opened);
        }
        if !self.world.is_hold(index) {
            self.orders.holds.cgroups.remove(&index);
            self.indices.free(index);
            self.drop_hold_cgroup(path);
        } else if cgroups::is_empty(&path) {
            // They were killed before their cgroup was watched.
            self.hold_emptied(&path);
        }
        self.resume_waiting(&service);
    }

    /// Registers the listeners of a process. Returns those that it could not open, and why.
    fn take_hold(
        &mut self,
        index: BackendIndex,
        service: &str,
        opened: OpenedHold,
    ) -> Result<Vec<(Form, String)>, String> {
        let OpenedHold { mut process, sockets, backlog, failures } = opened;
        if sockets.is_empty() {
            return Ok(failures);
        }
        info!(%service, %index, listeners = sockets.len(), "holds clients");
        self.orders.holds.backlogs.insert(service.to_owned(), backlog);
        self.orders.holds.cgroups.insert(index, process.path.clone());
        self.add_hold(index, service, sockets)?;
        self.orders.holds.children.entry(index).or_default().extend(process.child.take());
        Ok(failures)
    }

    /// Orders that waited for the listeners of a service are carried out, before any other.
    fn resume_waiting(&mut self, service: &str) {
        if self.is_opening(service) {
            return;
        }
        let waiting = std::mem::take(&mut self.orders.holds.waiting);
        let (due, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|given| given.service == service);
        self.orders.holds.waiting = waiting;
        for given in due.into_iter().rev() {
            self.orders.given.push_front(GivenOrder { has_waited: true, ..given });
        }
    }
}

/// Starts a process in a network namespace and has it open these listeners.
fn open(
    (netns, sets): (Netns, &[ProcessSet]),
    netns_cookie: NetnsCookie,
    path: PathBuf,
    forms: &[Form],
    migration: &QueueMigration,
) -> Result<OpenedHold, String> {
    let ns = open_netns(netns, sets).map_err(|e| e.to_string())?;
    let child = netns::run_in(&ns, netns_cookie, hold_process::start);
    let child = child.map_err(|e| format!("its process cannot be started: {e}"))?;
    let mut process = NewProcess { child: Some(child), path };
    let (backlog, failures) = open_listeners(&mut process, forms)?;
    let sockets = listeners_of(&process.path);
    if sockets.is_empty() && failures.len() < forms.len() {
        return Err("the listeners of its process cannot be found".to_owned());
    }
    // Their queues move by the same program as those of the servers.
    sockets.iter().try_for_each(|socket| migration.attach(socket.fd.as_fd())).map_err(|e| e.to_string())?;
    Ok(OpenedHold { process, sockets, backlog, failures })
}

/// Has a process open its listeners. Returns their backlog, and those that it could not open.
fn open_listeners(process: &mut NewProcess, forms: &[Form]) -> Result<(u32, Vec<(Form, String)>), String> {
    let wanted: Vec<Wanted> =
        forms.iter().map(|form| Wanted { ip: form.ip, port: form.port.number, v6only: form.v6only }).collect();
    let child = process.child.as_mut().ok_or("it has no process")?;
    let opened = hold_process::open(child, &process.path, &wanted);
    let opened = opened.map_err(|e| format!("its process did not open its listeners: {e}"))?;
    let failures = forms.iter().zip(opened.failures).filter_map(|(form, failure)| {
        Some((*form, format!("a second listener on port {} was refused: {}", form.port, failure?)))
    });
    Ok((opened.backlog, failures.collect()))
}

/// The listeners of the processes of a cgroup.
pub(super) fn listeners_of(path: &Path) -> Vec<FoundSocket> {
    ProcessSet::of_cgroup(path).listeners(|_| true)
}
