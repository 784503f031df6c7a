//! Attaches the programs that forward to network devices, and detaches them. The links are pinned below `forward`, each under the index
//! of its device.

use std::{
    fs, io,
    os::fd::AsFd as _,
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
    destinations::FORWARD,
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
}

/// The end of the name of a pin.
///
/// Replies can be rewritten before anything is forwarded.
const DIRECTIONS: [(&str, TcAttachType); 2] = [("out", TcAttachType::Egress), ("in", TcAttachType::Ingress)];

fn program_of(device: &Device, direction: TcAttachType) -> &'static str {
    match (direction, device.is_ethernet) {
        (TcAttachType::Ingress, true) => "from_wire",
        (TcAttachType::Ingress, false) => "from_tunnel",
        (_, true) => "to_wire",
        (_, false) => "to_tunnel",
    }
}

/// The index of the device in the name of a pin; `None` if it is another name.
pub(super) fn of_pin(name: &str) -> Option<u32> {
    let (index, direction) = name.split_once('-')?;
    DIRECTIONS.iter().any(|(end, _)| *end == direction).then(|| index.parse().ok())?
}

/// The work that attaches programs to devices. It loads them, which takes too long for the daemon's loop.
pub struct DeviceAttachment {
    dir: PathBuf,
    constants: object::Constants,
    build: BuildMap,
    devices: Vec<Device>,
}

impl DeviceAttachment {
    /// Loads the programs, attaches them in the namespace of the calling thread, and pins the links. Returns the devices that have
    /// failed, each with the reason.
    pub fn run(self) -> Result<Vec<(Device, KernelError)>> {
        let Self { dir, constants, build, devices } = self;
        let forward = dir.join(FORWARD);
        let mut programs = instance(&dir, &dir.join("maps"), &constants)?;
        let mut failed = Vec::new();
        for device in devices {
            for (end, direction) in DIRECTIONS {
                let name = program_of(&device, direction);
                if !matches!(programs.program(name), Some(program) if program.fd().is_ok()) {
                    object::load(&mut programs, name, Some(&build))?;
                }
                let Some(Program::SchedClassifier(program)) = programs.program_mut(name) else {
                    let source = Box::new(ProgramError::UnexpectedProgramType);
                    return Err(KernelError::Program { name, source });
                };
                let pin = forward.join(format!("{}-{end}", device.index));
                if let Ok(link) = bpf::open(&pin)
                    && bpf::link_info(&link).is_ok_and(|info| info.target == u64::from(device.index))
                {
                    // Its program may use other maps. The device is never without one.
                    let program =
                        program.fd().map_err(|source| KernelError::Program { name, source: Box::new(source) })?;
                    bpf::update_link(link.as_fd(), program.as_fd())
                        .map_err(KernelError::io("replace the program of the link", pin))?;
                    continue;
                }
                // What is pinned there is the link of an earlier device.
                let _ = fs::remove_file(&pin);
                if let Err(error) = attach(program, name, &device, direction, pin) {
                    failed.push((device, error));
                    break;
                }
            }
        }
        Ok(failed)
    }
}

/// An instance for the devices of a namespace, of which no program is loaded yet.
///
/// `maps` is the directory of the shared maps: another one than usual while they are migrated.
pub(super) fn instance(dir: &Path, maps: &Path, constants: &object::Constants) -> Result<Ebpf> {
    let (ports, forward) = (ports::pin(dir, constants.netns_cookie), dir.join(FORWARD));
    let pins = object::MapPins { shared: Some(maps), ports: Some(&ports), forward: Some(&forward) };
    object::instance(pins, constants)
}

/// The pinned links of devices.
pub(super) fn links(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let forward = dir.join(FORWARD);
    names(&forward).into_iter().filter(|name| of_pin(name).is_some()).map(move |name| forward.join(name))
}

/// The name of the program of a device's link.
pub(super) fn program_of_link(pin: &Path) -> io::Result<Option<&'static str>> {
    let name = bpf::program_name(bpf::program(bpf::link_info(bpf::open(pin)?)?.program)?)?;
    Ok(object::FORWARDERS.into_iter().find(|known| *known == name))
}

fn attach(
    program: &mut SchedClassifier,
    name: &'static str,
    device: &Device,
    direction: TcAttachType,
    pin: PathBuf,
) -> Result<()> {
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
    /// The work that is left to forward packets of these devices, which are all that there are; `None` if nothing is. Drops the links of
    /// devices that are gone. With `deep`, also compares which maps the programs use.
    pub fn device_attachment(&self, netns: NetnsCookie, devices: Vec<Device>, deep: bool) -> Option<DeviceAttachment> {
        let forward = self.dir.join(FORWARD);
        let gone = |name: &String| of_pin(name).is_some_and(|index| devices.iter().all(|device| device.index != index));
        for pin in names(&forward).into_iter().filter(gone) {
            let _ = fs::remove_file(forward.join(pin));
        }
        let is_attached = |device: &Device, end: &str| {
            let link = bpf::open(&forward.join(format!("{}-{end}", device.index)));
            let info = link.and_then(|link| bpf::link_info(&link).map(|info| (link, info)));
            info.is_ok_and(|(link, info)| {
                info.target == u64::from(device.index)
                    && (!deep || self.forwards_by(&link) && self.suits_namespace(netns, &link))
            })
        };
        let mut devices = devices;
        devices.retain(|device| !DIRECTIONS.iter().all(|(end, _)| is_attached(device, end)));
        let (dir, constants, build) = (self.dir.clone(), self.constants(netns), self.build.clone());
        (!devices.is_empty()).then_some(DeviceAttachment { dir, constants, build, devices })
    }

    /// The namespace whose devices have programs, if an earlier daemon has attached some.
    pub fn forwarding(&self) -> Option<NetnsCookie> {
        links(&self.dir).next()?;
        self.namespaces().into_iter().find(|cookie| self.forwards_from(*cookie))
    }

    /// Detaches the programs from all devices.
    pub fn detach_devices(&self) {
        for pin in links(&self.dir) {
            let _ = fs::remove_file(pin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_its_device() {
        assert_eq!([of_pin("12-in"), of_pin("3-out")], [Some(12), Some(3)]);
        for other in ["12", "in", "x-in", "12-", "12-in-new", "FLOWS", "-in"] {
            assert_eq!(of_pin(other), None, "{other}");
        }
    }
}
