//! Forwarding from the own network namespace: the program of the namespace gets the maps of forwarding first, then its devices get
//! their programs. Devices that come later get theirs when the kernel tells of them.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

use super::{
    Event,
    control::Control,
    stores::{FailedDevice, FailedDevices},
};
use crate::{
    condition::{Condition, Reason},
    ids::NetnsCookie,
    kernel::{self, AttachedDevices, Device, Hook, Swept},
    links,
    netlink::{Changes, Watch},
    netns::Netns,
};

/// In events and conditions.
const DEVICES: &str = "network devices";
/// The programs stay attached for so long without a backend to forward to.
const IDLE_KEPT: Duration = Duration::from_secs(10);

/// What is under way for the devices.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// A look, attaching to what it has found, or detaching is under way.
    is_busy: bool,
    /// Something has changed since that began.
    is_stale: bool,
    /// The next look also compares the maps of the programs.
    is_deep: bool,
    is_sweeping: bool,
    /// The ends of pairs for which the last look was.
    peers: BTreeSet<u32>,
    /// They are tried again at each resync.
    failed: FailedDevices,
    /// Since when nothing is forwarded.
    idle_since: Option<Instant>,
    /// Nothing is forwarded, and devices still have programs: why, if that is known.
    not_detached: Option<String>,
}

impl Devices {
    /// `has_leftovers` if devices have programs of an earlier daemon that forward nothing.
    pub fn new(has_leftovers: bool) -> Self {
        Self { not_detached: has_leftovers.then(String::new), ..Self::default() }
    }
}

/// What attaching to some devices came to, or why none could be attached to.
pub(super) type Attached = Result<AttachedDevices, String>;

impl Control {
    /// The namespaces from which packets are to be forwarded are held open until their program forwards.
    pub(super) fn open_ingress(&mut self) {
        let ingress = self.world.backends.values().filter_map(|backend| Some(backend.forwarded()?.ingress));
        let is_steered = |netns: &Netns| self.world.steered.contains(&netns.cookie);
        let is_done = |netns: &Netns| is_steered(netns) && self.world.forwarding.contains(&netns.cookie);
        let ingress: Vec<Netns> = ingress.filter(|netns| !is_done(netns)).collect();
        for netns in ingress {
            let is_due = !self.netns.is_attaching(netns.cookie) && !self.netns.is_open(netns.cookie);
            let is_attached = self.kernel.namespaces().contains(&netns.cookie);
            if is_due && !(is_attached && self.kernel.forwards_from(netns.cookie)) {
                // Only the own namespace is one.
                self.netns.see(netns, File::open("/proc/self/ns/net").ok());
            }
        }
    }

    /// The program of a namespace is attached. If it forwards, the devices are next.
    pub(super) fn forward_from(&mut self, cookie: NetnsCookie) {
        if !self.kernel.forwards_from(cookie) {
            return;
        }
        match self.kernel.begin_forwarding() {
            Ok(()) => {
                // Programs of devices that are attached still may use the maps of the program before this one.
                if self.world.forwarding.remove(&cookie) {
                    self.touch();
                }
                self.look_at_devices(true);
            }
            Err(error) => self.not_attached(&crate::chain(&error)),
        }
    }

    /// Attaches to the devices where that is not done yet, after a plan.
    pub(super) fn begin_forwarding(&mut self) {
        let are_due = self.peers() != self.devices.peers;
        if are_due || !self.devices.is_busy && !self.plan.forwarding().is_subset(&self.world.forwarding) {
            self.look_at_devices(false);
        }
    }

    /// The ends of pairs that get a program of their own, which filters do not attach.
    fn peers(&self) -> BTreeSet<u32> {
        match Hook::of_kernel() {
            Hook::Tcx => self.plan.peers(),
            Hook::Clsact => BTreeSet::new(),
        }
    }

    /// The devices may have changed.
    pub(super) fn look_at_devices(&mut self, deep: bool) {
        self.devices.is_deep |= deep;
        let forwarding = self.plan.forwarding();
        // Programs of devices without that of their namespace would choose what it does not follow.
        if !forwarding.iter().any(|cookie| self.kernel.forwards_from(*cookie)) {
            // If it did, its maps are no longer the pinned ones. The next plan attaches it again.
            if !forwarding.is_disjoint(&self.world.forwarding) {
                self.world.forwarding.clear();
                self.touch();
            }
            return;
        }
        if self.devices.is_busy {
            self.devices.is_stale = true;
            return;
        }
        (self.devices.is_busy, self.devices.is_stale) = (true, false);
        let failed = Event::Devices(Err("the look at them panicked".to_owned()));
        self.effects.run(failed, || Event::Devices(find().map_err(|error| error.to_string())));
    }

    /// Attaches to the devices that have no program yet.
    pub(super) fn devices_found(&mut self, found: Result<Vec<Device>, String>) {
        // One namespace: the own one.
        let cookie = self.plan.forwarding().first().copied();
        self.devices.peers = self.peers();
        let (cookie, mut devices) = match (cookie, found) {
            (Some(cookie), Ok(devices)) => (cookie, devices),
            (_, found) => {
                found.err().into_iter().for_each(|error| self.not_attached(&error));
                return self.looked_at_devices();
            }
        };
        devices.retain(|device| !device.is_port || self.devices.peers.contains(&device.index));
        let deep = std::mem::take(&mut self.devices.is_deep);
        let all = devices.iter().map(|device| (device.index, device.is_port)).collect();
        let left_out = self.devices.failed.leave_out(&all, deep);
        match self.kernel.device_attachment(cookie, devices, &left_out, deep) {
            None => self.devices_attached(cookie, Ok(AttachedDevices::default())),
            Some(attachment) => {
                let panicked = Err("the load of the programs panicked".to_owned());
                let failed = Event::DevicesAttached { cookie, result: panicked };
                self.effects.run(failed, move || {
                    let mut result = attachment.run().map_err(|error| crate::chain(&error));
                    // A device that has gone meanwhile needs none: an engine makes the container's end of a pair here, and moves it there.
                    if let Ok(AttachedDevices { failed, .. }) = &mut result
                        && !failed.is_empty()
                        && let Ok(there) = links::devices()
                    {
                        failed.retain(|(device, _)| there.iter().any(|other| other.index == device.index));
                    }
                    crate::sys::shrink_memory();
                    Event::DevicesAttached { cookie, result }
                });
            }
        }
    }

    pub(super) fn devices_attached(&mut self, cookie: NetnsCookie, result: Attached) {
        self.note_attached(cookie, result);
        self.looked_at_devices();
    }

    /// A look at the devices is over, with what followed from it. Whatever came of it, another one follows if something has changed
    /// meanwhile.
    fn looked_at_devices(&mut self) {
        self.devices.is_busy = false;
        if self.devices.is_stale {
            self.look_at_devices(false);
        }
    }

    fn note_attached(&mut self, cookie: NetnsCookie, result: Attached) {
        match result {
            Ok(AttachedDevices { failed, not_detached }) => {
                for (device, error) in not_detached {
                    warn!(device, %error, "programs of a network device are not detached, which is tried again");
                }
                let failed = failed.into_iter().map(|(device, error)| {
                    let Device { index, name, is_port, .. } = device;
                    (index, FailedDevice { name, error: crate::chain(&error), is_port })
                });
                self.devices.failed.tried(failed);
                if self.kernel.forwarding() != Some(cookie) {
                    let failed = self.devices.failed.all().next();
                    let error = failed.map_or("there is no device", |device| device.error.as_str());
                    let error = format!("no device takes the programs: {error}");
                    if self.world.forwarding.remove(&cookie) {
                        self.touch();
                    }
                    return self.not_attached(&error);
                }
                self.conditions.clear(Reason::DevicesNotAttached, DEVICES);
                let conditions = self.devices.failed.all().map(|FailedDevice { name, error, is_port }| {
                    let message = match is_port {
                        true => {
                            format!("replies of the container behind it pass the bridge, which takes longer ({error})")
                        }
                        false => format!("its packets are not forwarded ({error})"),
                    };
                    let condition = Condition::without_remedy(Reason::DevicesNotAttached, message);
                    (format!("network device {name}"), condition)
                });
                self.conditions.replace(Reason::DevicesNotAttached, conditions);
                self.devices.not_detached = None;
                if self.world.forwarding.insert(cookie) {
                    let hook = Hook::of_kernel();
                    info!(%hook, "packets are forwarded to containers with network namespaces of their own");
                    self.compare_firewall();
                    self.touch();
                }
            }
            Err(error) => self.not_attached(&error),
        }
    }

    fn not_attached(&mut self, error: &str) {
        let what = match self.world.forwarding.is_empty() {
            true => "no packet is forwarded",
            false => "new devices have no programs",
        };
        let message = format!("{what}, which is tried again ({error})");
        self.conditions.set(DEVICES, Condition::without_remedy(Reason::DevicesNotAttached, message));
    }

    /// Removes the entries of forwarded connections that have ended.
    pub(super) fn sweep_flows(&mut self) {
        if self.world.forwarding.is_empty() || self.devices.is_sweeping {
            return;
        }
        self.devices.is_sweeping = true;
        let sweep = self.kernel.flow_sweep();
        let failed = Event::Swept(Err("the sweep panicked".to_owned()));
        self.effects.run(failed, move || Event::Swept(sweep.run().map_err(|error| crate::chain(&error))));
    }

    pub(super) fn swept(&mut self, result: Result<Swept, String>) {
        self.devices.is_sweeping = false;
        match result {
            Ok(Swept { left, removed, ports }) => {
                debug!(left, removed, "entries of forwarded connections");
                self.kernel.ports_in_use(&ports);
            }
            Err(error) => warn!(%error, "entries of forwarded connections that have ended are not removed"),
        }
    }

    /// Whether connections may go on at a backend that is no destination any more. The next sweep tells.
    fn has_former_connections(&mut self) -> bool {
        let may = !self.world.forwarding.is_empty() && self.kernel.has_former_connections();
        if may {
            self.sweep_flows();
        }
        may
    }

    /// Detaches from all devices when nothing is forwarded any more. A container that is restarted comes back in a moment.
    pub(super) fn stop_forwarding(&mut self) {
        let is_due = !self.world.forwarding.is_empty() || self.devices.not_detached.is_some();
        // Nothing is planned before the engines have described their containers.
        if !is_due || !self.plan.forwarding().is_empty() || self.engines.is_awaiting() || self.has_former_connections()
        {
            self.devices.idle_since = None;
            if self.plan.forwarding().is_empty() {
                self.conditions.clear(Reason::DevicesNotAttached, DEVICES);
            }
            return;
        }
        let since = *self.devices.idle_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= IDLE_KEPT && !self.devices.is_busy {
            (self.devices.is_busy, self.devices.is_stale) = (true, false);
            let detachment = self.kernel.device_detachment();
            let failed = Event::DevicesDetached(Err("detaching from them panicked".to_owned()));
            self.effects.run(failed, move || {
                let failed = detachment.run().into_iter().map(|(what, error)| format!("{what}: {error}"));
                let failed = failed.collect::<Vec<_>>().join("; ");
                Event::DevicesDetached(if failed.is_empty() { Ok(()) } else { Err(failed) })
            });
            self.world.forwarding.clear();
            self.devices.idle_since = None;
            self.devices.failed.clear();
            self.conditions.replace(Reason::DevicesNotAttached, []);
            self.compare_firewall();
        }
    }

    pub(super) fn devices_detached(&mut self, result: Result<(), String>) {
        self.devices.is_busy = false;
        let (before, now) = (self.devices.not_detached.take(), result.err());
        if let Some(error) = now.as_ref().filter(|now| before.as_ref() != Some(*now)) {
            warn!(%error, "programs of network devices are not detached, which is tried again");
        }
        self.devices.not_detached = now;
        // A backend may have come meanwhile.
        match self.devices.is_stale {
            true => self.look_at_devices(false),
            false => self.begin_forwarding(),
        }
    }

    /// Follows the changes of devices, and sends an event for each.
    pub(super) fn watch_devices(&self) {
        let inputs = self.effects.inputs();
        tokio::spawn(async move {
            if let Err(error) = follow(&inputs).await {
                warn!(%error, "cannot follow changes of network devices; they are looked at every 30 s");
            }
        });
    }
}

/// Sends an event for each change of devices, until the daemon ends.
async fn follow(inputs: &Sender<Event>) -> io::Result<()> {
    let mut watch = Watch::open(Changes::Links)?;
    loop {
        watch.changed().await?;
        if inputs.send(Event::DevicesChanged).await.is_err() {
            return Ok(());
        }
    }
}

/// All devices, with what is attached to them by filters.
fn find() -> io::Result<Vec<Device>> {
    let mut devices = links::devices()?;
    if Hook::of_kernel() == Hook::Clsact {
        // The programs of ports are attached by links only.
        devices.retain(|device| !device.is_port);
        kernel::read_filters(&mut devices)?;
    }
    Ok(devices)
}
