//! The resync: the kernel's state is compared with the daemon's, and repaired. Cheap comparisons are made each
//! second, everything every 30 s and at the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use tracing::warn;

use super::{conditions::Subject, control::Control};
use crate::{
    bpffs,
    condition::{Condition, Reason},
    ids::{BackendIndex, NetnsCookie},
    kernel::{Cgroup, LinkFault, Lock, LockError},
    netns::Netns,
    process_set::open_netns,
    world::{Backend, Health, Phase},
};

/// Fewest backends whose links are looked at in one second: each is some 30 system calls.
const BACKENDS_AT_ONCE: usize = 8;
/// Part of the backends whose links are looked at in one second, if that is more: so each is looked at within 30 s.
const BACKENDS_PART: usize = 30;

/// Subjects of conditions.
const PINS: &str = "pins";
const INOTIFY: &str = "watches of cgroups";
const RUNTIME: &str = "runtime directory";
const CGROUPS: &str = "cgroups";

impl Control {
    /// Compares the kernel's state with the daemon's, and repairs every difference.
    pub(super) fn resync(&mut self) {
        self.check_events_lost();
        self.check_links(true);
        self.check_watches();
        self.check_store();
        self.read_sockets();
        self.renew_migration();
        self.kernel.add_late_counters();
        self.correct_socket_counts(true);
        self.compare_holders();
        self.free_ports(true);
        self.survey();
        self.look_at_networks();
        self.look_at_devices(true);
        self.sweep_flows();
        self.compare_firewall();
        self.drop_leftovers();
        self.orders.ledger.retry();
        self.ask_for_health();
        self.ask_for_those_without_index();
        // Everything is planned anew: a part that was not, since nothing told of a change, is right again by now.
        self.touch();
    }

    /// Asks the engines for backends that wait for a result of their engine's health check: events get lost, and Podman can
    /// be told to send none (`healthcheck_events` in containers.conf(5)).
    fn ask_for_health(&self) {
        let waits = |backend: &&Backend| matches!(backend.health, Health::Starting | Health::Unhealthy);
        for backend in self.world.backends.values().filter(waits) {
            self.effects.describe(backend.id.to_string());
        }
    }

    /// The part of the resync that is cheap enough for each second.
    pub(super) fn quick_check(&mut self) {
        self.poll_cgroups();
        if self.check_links(false) {
            self.check_cgroups(false);
        }
        if self.store.failure().is_some() {
            self.check_store();
        }
        if self.check_events_lost() {
            self.read_sockets();
        } else if self.conditions.holds(Reason::SocketsNotDescribed) {
            self.describe_sockets(&mut self.kernel.socket_maps());
        }
        if self.conditions.holds(Reason::DaemonNotAnnounced) {
            self.announce(true);
        }
        self.correct_socket_counts(false);
        self.look_at_accept_queues();
        self.survey_ports_in_use();
        self.compare_forwarded();
        self.stop_forwarding();
        self.look_for_idle();
        self.tell_conditions();
    }

    /// Asks where inotify cannot tell.
    fn poll_cgroups(&mut self) {
        for seen in self.cgroups.poll() {
            self.cgroup_seen(seen);
        }
        if self.cgroups.polls() {
            let message = "there is no inotify watch for the cgroups of `exec` backends: their end is noticed within a second instead of \
                           at once";
            let remedy = "raise fs.inotify.max_user_watches or fs.inotify.max_user_instances";
            self.conditions.set(INOTIFY, Condition::new(Reason::CgroupsPolled, message, remedy));
        } else {
            self.conditions.clear(Reason::CgroupsPolled, INOTIFY);
        }
    }

    /// Writes again what could not be written, or was removed.
    fn check_store(&mut self) {
        if let Some(failure) = self.store.failure() {
            self.store.put_all(self.world.backends.values(), self.services.all());
            match self.store.failure() {
                None => {
                    let message = format!("incomplete ({failure}); it is written again");
                    self.conditions.repaired(Reason::RuntimeDirectoryIncomplete, &other(RUNTIME), &message);
                }
                Some(failure) => {
                    let message =
                        format!("not complete ({failure}); the kernel keeps a copy of it as long as it steers");
                    let remedy = "make room, or let pod-steer write there";
                    let condition = Condition::new(Reason::RuntimeDirectoryIncomplete, message, remedy);
                    return self.conditions.set(RUNTIME, condition);
                }
            }
        }
        self.conditions.clear(Reason::RuntimeDirectoryIncomplete, RUNTIME);
    }

    /// True if events were lost since the last time.
    fn check_events_lost(&mut self) -> bool {
        let lost = self.kernel.counters().events_lost();
        let news = self.kernel_events.note_lost(lost);
        if news {
            warn!(lost, "events of the kernel programs were lost; the sockets are read as a whole");
        }
        news
    }

    /// Watches the cgroups that could not be watched before, and says so if some still cannot be.
    pub(super) fn check_watches(&mut self) {
        for seen in self.cgroups.retry() {
            self.cgroup_seen(seen);
        }
        match self.cgroups.unwatched() {
            Some(condition) => self.conditions.set(CGROUPS, condition.clone()),
            None => self.conditions.clear(Reason::CgroupsNotWatched, CGROUPS),
        }
    }

    /// Compares pins, and the links of namespaces; with `deep`, also which maps the attached programs use. False if the directory
    /// of pins is not ours.
    pub(super) fn check_links(&mut self, deep: bool) -> bool {
        let owns = self.owns_directory();
        if owns {
            self.check_pins(deep);
            self.check_namespaces(deep);
        }
        if owns && deep {
            self.end_conditions();
        }
        owns
    }

    /// Ends the conditions of namespaces in which nothing is planned any more.
    fn end_conditions(&mut self) {
        let planned = self.plan.namespaces().into_iter().chain(self.netns.attaching());
        let subjects = planned.flat_map(|cookie| {
            let known = self.netns_of(cookie).map(namespace_subject);
            known.into_iter().chain([cookie_subject(cookie)])
        });
        let namespaces: BTreeSet<String> = subjects.collect();
        self.conditions.retain(Reason::NamespaceNotSteered, &namespaces);
    }

    /// A namespace that was seen, or in which a backend is.
    fn netns_of(&self, cookie: NetnsCookie) -> Option<Netns> {
        let of_backend = || self.world.backends.values().flat_map(Backend::places).find(|ns| ns.cookie == cookie);
        self.netns.get(cookie).or_else(of_backend)
    }

    /// Whether the directory of pins is ours. One that was removed is made again; if another daemon has locked it meanwhile, we
    /// leave it alone.
    fn owns_directory(&mut self) -> bool {
        if self.pins.are_ours() {
            self.conditions.clear(Reason::PinsLost, PINS);
            self.keep_directory_private();
            return true;
        }
        let made = bpffs::make(&self.pins.dir)
            .map_err(|e| LockError::Io { path: self.pins.dir.clone(), source: io::Error::other(e) });
        match made.and_then(|_| Lock::take(&self.pins.dir)) {
            Ok(lock) => {
                self.pins.lock = Some(lock);
                let message = format!("`{}` was removed; it is made again", self.pins.dir.display());
                self.conditions.repaired(Reason::PinsLost, &other(PINS), &message);
                self.conditions.clear(Reason::PinsLost, PINS);
                true
            }
            Err(error) => {
                let message = format!(
                    "`{}` was removed or replaced, so nothing outlives this daemon ({})",
                    self.pins.dir.display(),
                    crate::chain(&error)
                );
                let remedy = "end one of the two daemons";
                self.conditions.set(PINS, Condition::new(Reason::PinsLost, message, remedy));
                false
            }
        }
    }

    /// What another user could do with the directory of pins is a condition; what they could only read is closed again.
    fn keep_directory_private(&mut self) {
        match bpffs::make(&self.pins.dir) {
            Err(error) => {
                let condition = Condition::new(Reason::PinsNotPrivate, error.found(), error.remedy());
                return self.conditions.set(PINS, condition);
            }
            Ok(true) => {
                let message =
                    format!("`{}` was open to other users; it is closed to them again", self.pins.dir.display());
                self.conditions.repaired(Reason::PinsNotPrivate, &other(PINS), &message);
            }
            Ok(false) => {}
        }
        self.conditions.clear(Reason::PinsNotPrivate, PINS);
    }

    fn check_pins(&mut self, deep: bool) {
        let check = self.kernel.check_pins(deep);
        for path in check.repaired {
            let message = format!("`{}` was gone or another object; it is pinned again", path.display());
            self.conditions.repaired(Reason::NotPinned, &other(PINS), &message);
        }
        let failed = check.failed.into_iter().map(|(path, error)| {
            let message = format!("cannot be pinned again ({error}): what it leads to ends with this daemon");
            let condition = Condition::new(Reason::NotPinned, message, "remove what is in its place");
            (format!("pin {}", path.display()), condition)
        });
        self.conditions.replace(Reason::NotPinned, failed);
        if deep {
            let foreign = self.kernel.foreign_files().into_iter();
            let message = "pod-steer did not make it, and `unload` cannot remove the directory with it";
            let condition = || Condition::new(Reason::UnknownFile, message, "remove it");
            let foreign = foreign.map(|path| (format!("file {}", path.display()), condition()));
            self.conditions.replace(Reason::UnknownFile, foreign);
        }
    }

    /// Attaches again where a link is gone or detached.
    fn check_namespaces(&mut self, deep: bool) {
        let inodes = self.netns.inodes();
        let mut lost = Vec::new();
        for (cookie, fault) in self.kernel.check_namespaces(&inodes, deep) {
            if self.netns.is_attaching(cookie) {
                continue;
            }
            if fault != LinkFault::OtherMaps {
                self.kernel.forget_link(cookie);
                if self.world.steered.remove(&cookie) {
                    self.world.repairing.insert(cookie);
                }
                self.touch();
            }
            lost.push(cookie);
        }
        if deep {
            let attached = self.kernel.namespaces();
            let planned = self.plan.namespaces().into_iter().filter(|cookie| !attached.contains(cookie));
            lost.extend(planned.filter(|cookie| !self.netns.is_attaching(*cookie)));
        }
        for cookie in lost {
            self.find_namespace(cookie);
        }
    }

    /// A namespace is to be attached anew: its file is looked for, and the next plan attaches it.
    fn find_namespace(&mut self, cookie: NetnsCookie) {
        if self.netns.is_open(cookie) {
            return;
        }
        // One that no backend is in any more is left by the next plan.
        let Some(netns) = self.netns_of(cookie) else { return };
        let subject = namespace_subject(netns);
        let (_, sets) = self.namespaces().remove(&cookie).unwrap_or((netns, Vec::new()));
        match open_netns(netns, &sets).ok() {
            Some(file) => {
                let message =
                    "its sk_lookup link is gone or detached, so nothing is steered there; it is being attached again";
                self.conditions.set(subject, Condition::without_remedy(Reason::NamespaceNotSteered, message));
                self.netns.see(netns, Some(file));
                self.touch();
            }
            None => {
                self.world.repairing.remove(&cookie);
                self.touch();
                let message =
                    "its sk_lookup link is gone, so nothing is steered there, and no process runs in it to find it by";
                let condition = Condition::new(Reason::NamespaceNotSteered, message, "restart a backend");
                self.conditions.set(subject, condition);
            }
        }
    }

    /// Attaches again the programs of backends' cgroups that are detached, whose pins are gone, or that use other maps: of all, or of
    /// the next ones, unless one of these had a fault. Other programs seldom remove a single pin.
    pub(super) fn check_cgroups(&mut self, all: bool) {
        let share = if all { usize::MAX } else { self.places.len().div_ceil(BACKENDS_PART).max(BACKENDS_AT_ONCE) };
        let own = self.places.next_after(self.pins.checked_last, share);
        self.pins.checked_last = own.last().copied().unwrap_or_default();
        let (mut programs, mut faults) = (BTreeMap::new(), false);
        for index in own {
            faults |= self.check_cgroup(index, &mut programs);
        }
        if faults && !all {
            self.check_cgroups(true);
        }
    }

    /// True if a link was gone or detached.
    fn check_cgroup(&mut self, index: BackendIndex, programs: &mut BTreeMap<u32, bool>) -> bool {
        let Some(path) = self.places.path(index).cloned() else { return false };
        let Ok(cgroup) = Cgroup::open(&path) else { return false };
        // A container that has just been started again has a cgroup that is about to be attached.
        if self.places.id(index).is_some_and(|id| id != cgroup.id) {
            return false;
        }
        let Some(backend) = self.world.by_index_mut(index).filter(|backend| backend.phase != Phase::Exited) else {
            return false;
        };
        match self.kernel.check_backend(index, &cgroup, programs) {
            Ok(wrong) if wrong.is_empty() => {
                backend.end_condition(Reason::CgroupLinksLost);
                return false;
            }
            Ok(wrong) => {
                backend.end_condition(Reason::CgroupLinksLost);
                let names: Vec<&str> = wrong.into_iter().collect();
                let message = format!("its links {} were gone or detached; they are attached again", names.join(", "));
                self.conditions.repaired(Reason::CgroupLinksLost, &Subject::of(backend), &message);
                // No program has seen the listeners and connections that were opened meanwhile.
                self.note_incomplete_counts(index);
                self.look_for_sockets(index);
            }
            Err(error) => {
                let message = format!(
                    "links of its cgroup are gone and cannot be attached again ({}): its new listeners are not steered to",
                    crate::chain(&error)
                );
                let remedy = "restart it, or see `pod-steer doctor`";
                backend.set_condition(Condition::new(Reason::CgroupLinksLost, message, remedy));
            }
        }
        true
    }
}

fn other(subject: &str) -> Subject {
    Subject::Other(subject.to_owned())
}

/// How a condition names a network namespace.
pub(super) fn namespace_subject(netns: Netns) -> String {
    format!("network namespace {netns}")
}

/// The same, of one of which only the cookie is known.
pub(super) fn cookie_subject(cookie: NetnsCookie) -> String {
    format!("network namespace with cookie {cookie}")
}
