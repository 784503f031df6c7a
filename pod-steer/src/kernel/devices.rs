//! Attaches the programs that forward to network devices, and detaches them. With TCX, the links are pinned below `forward`, each under the
//! index of its device. Without it, `clsact` attaches them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions},
};

use super::{
    Kernel, KernelError, Result,
    attach::{names, pin_link},
    bpf,
    build_id::BuildMap,
    clsact::{self, Clsact, Filter},
    destinations::{self, FORWARD},
    hook::Hook,
    object, ports,
};
use crate::ids::NetnsCookie;

/// A network device of the namespace of the calling thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name, which may change.
    pub name: String,
    /// Its packets begin with an Ethernet header.
    pub is_ethernet: bool,
    /// It is a bridge.
    pub is_bridge: bool,
    /// A bridge or bond has it: its packets come by that one.
    pub is_port: bool,
    /// Its filters that could be ours, once [`read_filters`](super::read_filters) has read them.
    pub filters: Vec<Filter>,
}

/// A program of a device: its name, its direction, and the end of the name of its pin.
type Part = (&'static str, TcAttachType, &'static str);

// Replies can be rewritten before anything is forwarded.
const OF_WIRE: [Part; 2] = [("to_wire", TcAttachType::Egress, "out"), ("from_wire", TcAttachType::Ingress, "in")];
const OF_BRIDGE: [Part; 2] = [("to_wire", TcAttachType::Egress, "out"), ("from_bridge", TcAttachType::Ingress, "in")];
const OF_TUNNEL: [Part; 2] = [("to_tunnel", TcAttachType::Egress, "out"), ("from_tunnel", TcAttachType::Ingress, "in")];
const OF_PORT: [Part; 1] = [("from_pair", TcAttachType::Ingress, "in")];

fn parts(device: &Device) -> &'static [Part] {
    match device {
        Device { is_port: true, .. } => &OF_PORT,
        Device { is_bridge: true, .. } => &OF_BRIDGE,
        Device { is_ethernet: true, .. } => &OF_WIRE,
        _ => &OF_TUNNEL,
    }
}

/// The index of the device in the name of a pin; `None` if it is another name.
pub(super) fn of_pin(name: &str) -> Option<u32> {
    let (index, end) = name.split_once('-')?;
    OF_WIRE.iter().any(|(.., known)| *known == end).then(|| index.parse().ok())?
}

/// The work that attaches programs to devices. It loads them, which takes too long for the daemon's loop.
pub struct DeviceAttachment {
    dir: PathBuf,
    constants: object::Constants,
    build: BuildMap,
    devices: Vec<Device>,
    /// Marked devices that are not to have programs any more.
    former: Vec<u32>,
}

/// The result of that work.
#[derive(Debug, Default)]
pub struct AttachedDevices {
    /// Devices that could not be attached to, each with the reason.
    pub failed: Vec<(Device, KernelError)>,
    /// Indices of devices that still have filters which they are not to have, each with the reason.
    pub not_detached: Vec<(u32, io::Error)>,
}

impl DeviceAttachment {
    /// Loads the programs, and attaches them in the namespace of the calling thread. A failure affects only its own device.
    pub fn run(self) -> Result<AttachedDevices> {
        let Self { dir, constants, build, devices, former } = self;
        let mut done = AttachedDevices::default();
        let clsact = match Hook::of_kernel() {
            Hook::Tcx => None,
            Hook::Clsact => {
                let unread = KernelError::io("read the qdiscs of", "network devices");
                let mut clsact = Clsact::open(&dir).map_err(unread)?;
                let detached = former.into_iter().map(|index| (index, clsact.detach(index)));
                done.not_detached = detached.filter_map(|(index, result)| Some((index, result.err()?))).collect();
                Some(clsact)
            }
        };
        if devices.is_empty() {
            return Ok(done);
        }
        let programs = instance(&dir, &dir.join("maps"), &constants)?;
        let mut attacher = Attacher { dir, build, programs, refused: BTreeMap::new(), clsact };
        let attached = devices.into_iter().map(|device| (attacher.attach(&device), device));
        done.failed = attached.filter_map(|(result, device)| Some((device, result.err()?))).collect();
        Ok(done)
    }
}

/// Attaches to one device after the other.
struct Attacher {
    dir: PathBuf,
    build: BuildMap,
    programs: Ebpf,
    /// Programs that cannot be loaded. Another kind of device needs other ones.
    refused: BTreeMap<&'static str, String>,
    clsact: Option<Clsact>,
}

impl Attacher {
    fn attach(&mut self, device: &Device) -> Result<()> {
        for &(name, direction, end) in parts(device) {
            self.load(name)?;
            let Some(Program::SchedClassifier(program)) = self.programs.program_mut(name) else {
                return Err(KernelError::load(name)(ProgramError::UnexpectedProgramType));
            };
            match &mut self.clsact {
                Some(clsact) => attach_filter(clsact, program, name, device, direction),
                None => attach_link(program, name, device, direction, self.dir.join(FORWARD).join(pin(device, end))),
            }?;
        }
        let Some(clsact) = &self.clsact else { return Ok(()) };
        clsact.renew_mark(device.index).map_err(KernelError::io("mark the network device", &device.name))
    }

    /// Loads a program, once.
    fn load(&mut self, name: &'static str) -> Result<()> {
        if let Some(error) = self.refused.get(name) {
            return Err(KernelError::io("use the kernel program", name)(io::Error::other(error.clone())));
        }
        if matches!(self.programs.program(name), Some(program) if program.fd().is_ok()) {
            return Ok(());
        }
        let loaded = object::load(&mut self.programs, name, Some(&self.build));
        loaded.inspect_err(|error| drop(self.refused.insert(name, crate::chain(error))))
    }
}

/// The work that detaches the programs from all devices. The kernel may take a moment for that.
pub struct DeviceDetachment {
    dir: PathBuf,
}

impl DeviceDetachment {
    /// Detaches them. Returns what still has programs, each with the reason.
    pub fn run(self) -> Vec<(String, io::Error)> {
        let unpinned = links(&self.dir).map(|pin| (pin.display().to_string(), fs::remove_file(pin)));
        let mut failed: Vec<_> = unpinned.filter_map(|(pin, result)| Some((pin, result.err()?))).collect();
        failed.extend(clsact::detach_all(&self.dir).failed);
        failed
    }
}

/// An instance for the devices of a namespace, of which no program is loaded yet.
///
/// `maps` is the directory of the shared maps: another one than usual while they are migrated.
pub(super) fn instance(dir: &Path, maps: &Path, constants: &object::Constants) -> Result<Ebpf> {
    let (ports, forward) = (ports::pin(dir, constants.netns_cookie), dir.join(FORWARD));
    let pins = object::MapPins { shared: Some(maps), ports: Some(&ports), forward: Some(&forward), dry: None };
    object::instance(pins, constants)
}

/// The pinned links of devices.
pub(super) fn links(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let forward = dir.join(FORWARD);
    names(&forward).into_iter().filter(|name| of_pin(name).is_some()).map(move |name| forward.join(name))
}

/// The name of a program of devices, by its id; `None` if this version has none of that name.
pub(super) fn name_of(program: u32) -> io::Result<Option<&'static str>> {
    let name = bpf::program_name(bpf::program(program)?)?;
    Ok(object::FORWARDERS.into_iter().find(|known| *known == name))
}

/// Whether this is the index of none of these devices, which are all that there are.
fn is_gone(index: u32, devices: &[Device]) -> bool {
    devices.iter().all(|device| device.index != index)
}

fn pin(device: &Device, end: &str) -> String {
    format!("{}-{end}", device.index)
}

fn pins(device: &Device) -> impl Iterator<Item = String> {
    parts(device).iter().map(|(.., end)| pin(device, end))
}

/// The link pinned there, if it is one of this device.
fn link_of(pin: &Path, device: &Device) -> Option<OwnedFd> {
    let link = bpf::open(pin).ok()?;
    bpf::link_info(&link).is_ok_and(|info| info.target == u64::from(device.index)).then_some(link)
}

fn attach_filter(
    clsact: &mut Clsact,
    program: &SchedClassifier,
    name: &'static str,
    device: &Device,
    direction: TcAttachType,
) -> Result<()> {
    let program = program.fd().map_err(KernelError::load(name))?;
    let attached = clsact.attach(device, direction, name, program.as_fd());
    // Programs of one direction alone are of no use, and a mark tells that a device has both.
    let attached = attached.inspect_err(|_| drop(clsact.detach_unless_whole(device.index)));
    attached.map_err(KernelError::io("attach a filter to the network device", &device.name))
}

fn attach_link(
    program: &mut SchedClassifier,
    name: &'static str,
    device: &Device,
    direction: TcAttachType,
    pin: PathBuf,
) -> Result<()> {
    if let Some(link) = link_of(&pin, device) {
        // Its program may use other maps. The device is never without one.
        let program = program.fd().map_err(KernelError::load(name))?;
        return bpf::update_link(link.as_fd(), program.as_fd())
            .map_err(KernelError::io("replace the program of the link", pin));
    }
    // What is pinned there is the link of an earlier device.
    let _ = fs::remove_file(&pin);
    let target = || format!("the network device {}", device.name);
    let failed = |source| KernelError::Attach { name, target: target(), source: Box::new(source) };
    let options = TcAttachOptions::TcxOrder(Default::default());
    let id = program.attach_with_options(&device.name, direction, options).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    pin_link(FdLink::try_from(link), pin.clone())?;
    // Another device may have got the name meanwhile.
    let index = bpf::open(&pin).and_then(bpf::link_info).map_err(KernelError::io("read the link", &pin))?.target;
    if index == u64::from(device.index) {
        return Ok(());
    }
    let _ = fs::remove_file(&pin);
    Err(KernelError::io("attach to", target())(io::Error::other("it was renamed")))
}

impl Kernel {
    /// The work that is left to forward packets of these devices, which are all that there are; `None` if nothing is. Those that are left
    /// out keep what they have. Drops the links of other devices. With `deep`, also compares which maps the programs use.
    pub fn device_attachment(
        &self,
        netns: NetnsCookie,
        devices: Vec<Device>,
        left_out: &BTreeSet<u32>,
        deep: bool,
    ) -> Option<DeviceAttachment> {
        let wanted: BTreeSet<String> = devices.iter().flat_map(pins).collect();
        for pin in links(&self.dir) {
            // One that has joined a bridge has fewer programs.
            let name = pin.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| !wanted.contains(name)) {
                let _ = fs::remove_file(pin);
            }
        }
        let marked = clsact::marked(&self.dir).remove(&netns).unwrap_or_default();
        let former: Vec<u32> = marked.into_iter().filter(|index| is_gone(*index, &devices)).collect();
        let uses_our_maps = |program: u32| {
            destinations::uses_pinned(&self.dir, program).unwrap_or(false)
                && (!deep || self.suits_namespace(netns, program))
        };
        let is_attached = |device: &Device| match Hook::of_kernel() {
            Hook::Tcx => parts(device).iter().all(|(name, _, end)| {
                let link = link_of(&self.dir.join(FORWARD).join(pin(device, end)), device);
                let program = link.and_then(|link| bpf::link_info(link).ok()).map(|info| info.program);
                program.is_some_and(|program| {
                    matches!(name_of(program), Ok(Some(own)) if own == *name) && (!deep || uses_our_maps(program))
                })
            }),
            Hook::Clsact => {
                let of = |direction| device.filters.iter().filter(move |filter| filter.direction == direction);
                clsact::is_marked(&self.dir, netns, device.index)
                    && parts(device).iter().all(|(name, end, _)| {
                        let is_it = |program| matches!(name_of(program), Ok(Some(own)) if own == *name);
                        of(*end).any(|filter| is_it(filter.program) && uses_our_maps(filter.program))
                    })
            }
        };
        let is_wanted = |device: &Device| !left_out.contains(&device.index) && !is_attached(device);
        let devices: Vec<Device> = devices.into_iter().filter(is_wanted).collect();
        let (dir, constants, build) = (self.dir.clone(), self.constants(netns), self.build.clone());
        let is_due = !devices.is_empty() || !former.is_empty();
        is_due.then_some(DeviceAttachment { dir, constants, build, devices, former })
    }

    /// The namespace whose devices have programs, if an earlier daemon has attached some.
    pub fn forwarding(&self) -> Option<NetnsCookie> {
        let is_attached = self.has_device_programs();
        self.namespaces().into_iter().find(|cookie| is_attached && self.forwards_from(*cookie))
    }

    /// Whether devices have programs, or may have.
    pub fn has_device_programs(&self) -> bool {
        links(&self.dir).next().is_some() || !clsact::marked(&self.dir).is_empty()
    }

    /// The work that detaches the programs from all devices.
    pub fn device_detachment(&self) -> DeviceDetachment {
        DeviceDetachment { dir: self.dir.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_its_device() {
        assert_eq!(["12-in", "3-out"].map(of_pin), [Some(12), Some(3)]);
        for other in ["12", "in", "x-in", "12-", "12-in-new", "FLOWS", "-in"] {
            assert_eq!(of_pin(other), None, "{other}");
        }
    }
}
