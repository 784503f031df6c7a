//! The kernel programs of `pod-steer trace` (`pod-steer-ebpf/src/trace.rs`), which report each choice. They are loaded from an object of
//! their own, attached by links that nothing pins, and write to maps that only they have: all of it ends with this process.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{Program, ProgramError, TcAttachType, tc::TcAttachOptions},
};
use pod_steer_ebpf::{NONE, TRACED_BYTES, Traced};

use super::{
    Device, Hook, KernelError, Result, bpf,
    destinations::{self, FORWARD},
    heard::BTF,
    limits, members, migration,
    object::{self, FORWARD_MAPS, MAPS, map},
    ports,
};
use crate::{
    ids::{BackendIndex, NetnsCookie, ServiceIndex},
    sys,
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/trace.bpf.o"));

const LOOKUP: &str = "trace_lookup";
/// The programs for devices with Ethernet headers, and for those without.
const OF_DEVICES: [&str; 2] = ["trace_wire", "trace_tunnel"];

/// The pinned maps that the programs use, all of which they only read.
const SHARED: [&str; 10] = [
    "RULES",
    "TABLE_RULES",
    "TABLES",
    "SWITCHES",
    "SOURCES",
    "PROBES",
    "LISTENERS",
    "SOCKETS",
    "OWN_CONNECTIONS",
    "OWN_SOURCES",
];
/// The same of the maps of forwarding.
const SHARED_FORWARD: &str = "PENDING";

/// Which choices are reported. The programs leave out all others.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Those for a service.
    pub service: Option<ServiceIndex>,
    /// Those of a backend.
    pub backend: Option<BackendIndex>,
    /// Those with one of these `TRACE_` bits.
    pub reasons: u32,
}

/// The attached programs. Dropping it detaches them.
pub struct Tracer {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    /// The link of the program that chooses: its pin, and its id. The reports are about what that one has chosen before.
    behind: (PathBuf, u32),
    /// Its links are attached as long as it lives.
    _programs: Ebpf,
}

impl Tracer {
    /// Attaches the programs to a network namespace, which is that of the calling thread, and to those of its devices by which forwarded
    /// packets leave. The state below `dir` must be one that this release can read.
    pub fn attach(dir: &Path, ns: &File, netns: NetnsCookie, devices: &[Device], wanted: Wanted) -> Result<Self> {
        let pin = dir.join("netns").join(netns.to_string());
        let link = bpf::open(&pin).and_then(bpf::link_info).map_err(KernelError::io("read the link", &pin))?;
        let mut programs = instance(dir, netns, wanted)?;
        load(&mut programs, LOOKUP)?;
        if let Some(Program::SkLookup(program)) = programs.program_mut(LOOKUP) {
            program.attach(ns).map_err(failed(LOOKUP, format!("the network namespace {netns}")))?;
        }
        for device in devices.iter().filter(|_| sees_forwarded(dir, netns)) {
            // Where our program is, forwarded packets may leave.
            if bpf::open(&dir.join(FORWARD).join(format!("{}-out", device.index))).is_err() {
                continue;
            }
            let name = OF_DEVICES[usize::from(!device.is_ethernet)];
            load(&mut programs, name)?;
            if let Some(Program::SchedClassifier(program)) = programs.program_mut(name) {
                let options = TcAttachOptions::TcxOrder(Default::default());
                let attached = program.attach_with_options(&device.name, TcAttachType::Egress, options);
                attached.map_err(failed(name, format!("the network device {}", device.name)))?;
            }
        }
        let (ring, lost) = (map(&mut programs, "TRACED")?, map(&mut programs, "TRACED_LOST")?);
        Ok(Self { ring, lost, behind: (pin, link.id), _programs: programs })
    }

    /// Whether the program that chooses is still attached before these. One that was attached anew would run after them.
    pub fn is_behind(&self) -> bool {
        let (pin, id) = &self.behind;
        bpf::open(pin).and_then(bpf::link_info).is_ok_and(|link| link.id == *id)
    }

    /// The next choice, if one was made.
    pub fn take(&mut self) -> Option<Traced> {
        let item = self.ring.next()?;
        Some(sys::read_traced(&item))
    }

    /// How many choices were not reported, because this process did not take those before.
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).map_or(0, |cpus| cpus.iter().sum())
    }
}

fn failed(name: &'static str, target: String) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Attach { name, target, source: Box::new(source) }
}

/// Readable when a choice was made.
impl AsFd for Tracer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Whether connections are forwarded from a namespace, and whether [`Tracer`] sees those.
pub fn forwarding(dir: &Path, netns: NetnsCookie) -> (bool, bool) {
    (destinations::forwards(dir, netns), sees_forwarded(dir, netns))
}

/// Filters of a clsact qdisc would stay behind if this process is killed.
fn sees_forwarded(dir: &Path, netns: NetnsCookie) -> bool {
    Hook::of_kernel() == Hook::Tcx && destinations::forwards(dir, netns)
}

/// Whether this kernel takes the programs, for `doctor`.
pub fn probe() -> Result<()> {
    let mut loader = EbpfLoader::new();
    let wanted = Wanted { service: None, backend: None, reasons: NONE };
    let constants = Constants::read(wanted)?;
    constants.set(&mut loader);
    small(&mut loader, |_| true);
    let mut programs = loader.load(OBJECT).map_err(|source| KernelError::Load(Box::new(source)))?;
    [LOOKUP].into_iter().chain(OF_DEVICES).try_for_each(|name| load(&mut programs, name))
}

/// What the programs have as constants, besides those of an instance.
struct Constants {
    cookie_offset: u32,
    service: u32,
    backend: u32,
    reasons: u32,
}

impl Constants {
    fn read(wanted: Wanted) -> Result<Self> {
        let btf = fs::read(BTF).map_err(KernelError::io("read", BTF))?;
        let none = || io::Error::other("the kernel's sock_common has none");
        let cookie_offset = members::offset(&btf, "sock_common", "skc_cookie")
            .ok_or_else(|| KernelError::io("find the member skc_cookie in", BTF)(none()))?;
        Ok(Self {
            cookie_offset,
            service: wanted.service.map_or(NONE, |index| index.0),
            backend: wanted.backend.map_or(NONE, |index| index.0),
            reasons: wanted.reasons,
        })
    }

    fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .btf(None)
            .override_global("COOKIE_OFFSET", &self.cookie_offset, true)
            .override_global("WANTED_SERVICE", &self.service, true)
            .override_global("WANTED_BACKEND", &self.backend, true)
            .override_global("WANTED_REASONS", &self.reasons, true)
            .map_max_entries("TRACED", limits::limit("TRACED", TRACED_BYTES));
    }
}

/// Gives maps of the object that no program of it uses, or that it has for itself, one entry.
fn small(loader: &mut EbpfLoader<'_>, is_own: impl Fn(&str) -> bool) {
    // The object has no log, and storages have no number of entries.
    let has_number = |map: &&str| !["AYA_LOGS", "CGROUPS", "HIDDEN"].contains(map);
    let maps = MAPS.into_iter().filter(has_number).chain(FORWARD_MAPS).chain(["PORTS"]);
    for map in maps.filter(|map| is_own(map)) {
        loader.map_max_entries(map, 1);
    }
}

fn instance(dir: &Path, netns: NetnsCookie, wanted: Wanted) -> Result<Ebpf> {
    let maps = dir.join("maps");
    let meta = migration::meta(&maps)?.unwrap_or_default();
    let (constants, forwards) = (Constants::read(wanted)?, destinations::forwards(dir, netns));
    let flag = u64::from(forwards);
    let mut pins: Vec<_> = SHARED.into_iter().map(|map| (map, maps.join(map))).collect();
    pins.push(("PORTS", ports::pin(dir, netns)));
    if forwards {
        pins.push((SHARED_FORWARD, dir.join(FORWARD).join(SHARED_FORWARD)));
    }
    let mut loader = EbpfLoader::new();
    constants.set(&mut loader);
    loader
        .override_global("SEED", &meta.seed, true)
        .override_global("NETNS_COOKIE", &netns.0, true)
        .override_global("FORWARDS", &flag, true);
    small(&mut loader, |map| pins.iter().all(|(pinned, _)| *pinned != map));
    for (map, pin) in &pins {
        // The loader would create a map that is missing.
        fs::metadata(pin).map_err(KernelError::io("open", pin))?;
        loader.map_pin_path(map, pin);
    }
    loader.load(OBJECT).map_err(|source| KernelError::Load(Box::new(source)))
}

/// Loads a program, once.
fn load(programs: &mut Ebpf, name: &'static str) -> Result<()> {
    match programs.program(name) {
        Some(program) if program.fd().is_ok() => Ok(()),
        Some(_) => object::load(programs, name, None),
        None => Err(KernelError::load(name)(ProgramError::UnexpectedProgramType)),
    }
}
