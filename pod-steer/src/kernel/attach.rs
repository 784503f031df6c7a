//! Attaches programs to ingress namespaces and to the cgroups of backends, and detaches them. Every link is pinned as
//! soon as it is made, so that it outlives this process.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::cgroup_storage::CgroupStorageKey,
    programs::{
        CgroupAttachMode, Program, ProgramError,
        links::{FdLink, LinkError, PinnedLink},
    },
};

use super::{Kernel, KernelError, Result, bpf, build_id::BuildMap, destinations::FORWARD, object, ports};
use crate::{
    ids::{BackendIndex, CgroupId, NetnsCookie},
    netns::Netns,
};

/// Programs of a cgroup, the names of their pins, and their `enum bpf_attach_type` if they read their backend from the
/// cgroup's storage. Programs that matter for a bind come first.
pub(super) const CGROUP_PROGRAMS: [(&str, &str, Option<u32>); 8] = [
    ("bind4", "bind4", Some(8)),
    ("bind6", "bind6", Some(9)),
    ("post_bind4", "post_bind4", None),
    ("post_bind6", "post_bind6", None),
    ("refuse_mptcp", "sock_create", Some(2)),
    ("tcp_events", "sock_ops", Some(3)),
    ("getsockname4", "getsockname4", None),
    ("getsockname6", "getsockname6", None),
];

/// The program of ingress namespaces.
pub(super) const LOOKUP: &str = "steer";

/// A cgroup directory. It is held open so that it cannot be confused with a later one of the same name.
#[derive(Debug)]
pub struct Cgroup {
    dir: File,
    /// Its id in the kernel: the inode of its directory.
    pub id: CgroupId,
}

impl Cgroup {
    /// Opens a cgroup v2 directory.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let dir = File::options().read(true).custom_flags(flags).open(path)?;
        let id = CgroupId(dir.metadata()?.ino());
        Ok(Self { dir, id })
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &File {
        &self.dir
    }
}

/// The work that starts steering in a namespace. It loads a program, which takes too long for the daemon's loop.
pub struct NamespaceAttachment {
    maps: PathBuf,
    ports: PathBuf,
    /// Where the maps of forwarding are pinned, if packets are forwarded from there.
    forward: Option<PathBuf>,
    pin: PathBuf,
    constants: object::Constants,
    build: BuildMap,
    netns: Netns,
    ns: File,
    /// A link that is already attached and needs a new program.
    link: Option<OwnedFd>,
}

impl NamespaceAttachment {
    /// Loads the program, attaches it and pins the link.
    pub fn run(self) -> Result<()> {
        let Self { maps, ports, forward, pin, constants, build, netns, ns, link } = self;
        let mut programs = lookup_instance(&maps, &ports, forward.as_deref(), &constants, &build)?;
        let target = || format!("the network namespace {netns}");
        let failed = |source| KernelError::Attach { name: LOOKUP, target: target(), source: Box::new(source) };
        let Some(Program::SkLookup(program)) = programs.program_mut(LOOKUP) else {
            return Err(failed(ProgramError::UnexpectedProgramType));
        };
        if let Some(link) = link {
            let program = program.fd().map_err(failed)?;
            return bpf::update_link(link.as_fd(), program.as_fd())
                .map_err(KernelError::io("replace the program of the link", pin));
        }
        // Anything that is pinned there is not a link of ours.
        let _ = fs::remove_file(&pin);
        let id = program.attach(ns).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        pin_link(Ok(link.into()), pin)
    }
}

/// Loads the lookup program of a namespace, with its map of ports.
fn lookup_instance(
    maps: &Path,
    ports: &Path,
    forward: Option<&Path>,
    constants: &object::Constants,
    build: &BuildMap,
) -> Result<Ebpf> {
    ports::make(ports)?;
    if let Some(forward) = forward {
        fs::create_dir_all(forward).map_err(KernelError::io("create the directory", forward))?;
    }
    let pins = object::MapPins { shared: Some(maps), ports: Some(ports), forward, dry: None };
    let mut programs = object::instance(pins, constants)?;
    object::load(&mut programs, LOOKUP, Some(build))?;
    Ok(programs)
}

/// The same, but returns the program only.
pub(super) fn lookup_program(
    maps: &Path,
    ports: &Path,
    forward: Option<&Path>,
    constants: &object::Constants,
    build: &BuildMap,
) -> Result<OwnedFd> {
    let programs = lookup_instance(maps, ports, forward, constants, build)?;
    let failed = |source| KernelError::Program { name: LOOKUP, source: Box::new(source) };
    let program = programs.program(LOOKUP).ok_or_else(|| failed(ProgramError::UnexpectedProgramType))?;
    let program = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
    program.map_err(KernelError::io("duplicate the descriptor of the program", LOOKUP))
}

impl Kernel {
    /// The constants with which a program of this namespace is loaded.
    pub(super) fn constants(&self, netns_cookie: NetnsCookie) -> object::Constants {
        let Self { seed, log_level, backends_max, .. } = *self;
        object::Constants { seed, netns_cookie, log_level, backends_max }
    }

    pub(super) fn netns_pin(&self, cookie: NetnsCookie) -> PathBuf {
        self.dir.join("netns").join(cookie.to_string())
    }

    /// Cookies of the namespaces that are attached.
    pub fn namespaces(&self) -> Vec<NetnsCookie> {
        self.pins.attached()
    }

    /// Cookies of all namespaces with a pin, including those that could not be attached.
    pub fn known_namespaces(&self) -> BTreeSet<NetnsCookie> {
        let ports = names(&self.dir.join("ports"));
        self.namespaces().into_iter().chain(ports.iter().filter_map(|name| name.parse().ok())).collect()
    }

    /// The work that is left to steer in a namespace, and perhaps to forward from it; `None` if nothing is.
    pub fn namespace_attachment(&self, netns: Netns, ns: File, forwards: bool) -> Option<NamespaceAttachment> {
        let pin = self.netns_pin(netns.cookie);
        let (constants, build) = (self.constants(netns.cookie), self.build.clone());
        let (maps, ports) = (self.dir.join("maps"), ports::pin(&self.dir, netns.cookie));
        let link = match self.pins.link(netns.cookie) {
            None => None,
            Some(link) if self.suits(netns.cookie, link) && (!forwards || self.forwards_by(link)) => return None,
            // The daemon no longer writes to the maps that the link's program uses.
            Some(link) => Some(link.try_clone().ok()?),
        };
        // A program that forwards goes on with the same maps.
        let forwards = forwards || self.pins.link(netns.cookie).is_some_and(|link| self.forwards_by(link));
        let forward = forwards.then(|| self.dir.join(FORWARD));
        Some(NamespaceAttachment { maps, ports, forward, pin, constants, build, netns, ns, link })
    }

    /// Whether the program of a namespace's link uses our maps. True if that cannot be read: such a link is left alone.
    fn suits(&self, cookie: NetnsCookie, link: &OwnedFd) -> bool {
        bpf::link_info(link).map_or(true, |info| self.suits_namespace(cookie, info.program))
    }

    /// Stops steering in a namespace. Established connections go on.
    pub fn detach_namespace(&mut self, cookie: NetnsCookie) {
        self.forget_link(cookie);
        self.rules.forget(cookie);
        // If a rule is left over, it has to be written again.
        for (key, published) in &mut self.published {
            published.ours &= key.netns_cookie != cookie;
        }
    }

    pub(super) fn cgroup_pins(&self, cgroup: CgroupId, index: BackendIndex) -> PathBuf {
        cgroup_pins(&self.dir, cgroup, index)
    }

    /// Attaches the programs to a cgroup. Processes in it and below it then belong to the backend with this index.
    pub fn attach_backend(&mut self, index: BackendIndex, cgroup: &Cgroup) -> Result<()> {
        let pins = self.cgroup_pins(cgroup.id, index);
        fs::create_dir_all(&pins).map_err(KernelError::io("create the directory", &pins))?;
        for (name, pin, attach_type) in CGROUP_PROGRAMS {
            let pin = pins.join(pin);
            if !pin.exists() {
                self.attach_cgroup_program(name, cgroup, pin)?;
            }
            let Some(attach_type) = attach_type else { continue };
            // Until this is written, the program reads zero and does nothing.
            let key = CgroupStorageKey::new(cgroup.id.0, attach_type);
            let stored = self.cgroups.insert(key, u64::from(index.0) + 1, 0);
            stored.map_err(KernelError::map("write the backend to", "CGROUPS"))?;
        }
        Ok(())
    }

    fn attach_cgroup_program(&mut self, name: &'static str, cgroup: &Cgroup, pin: PathBuf) -> Result<()> {
        let failed = |source| KernelError::Attach {
            name,
            target: format!("the cgroup with id {}", cgroup.id),
            source: Box::new(source),
        };
        // A link takes no mode: the kernel always lets several programs attach by link.
        let mode = CgroupAttachMode::Single;
        macro_rules! attach {
            ($program:expr) => {{
                let id = $program.attach(&cgroup.dir, mode).map_err(failed)?;
                FdLink::try_from($program.take_link(id).map_err(failed)?)
            }};
        }
        let link = match self.programs.program_mut(name) {
            Some(Program::CgroupSockAddr(program)) => attach!(program),
            Some(Program::CgroupSock(program)) => attach!(program),
            Some(Program::SockOps(program)) => attach!(program),
            _ => return Err(failed(ProgramError::UnexpectedProgramType)),
        };
        pin_link(link, pin)
    }

    /// Every (cgroup id, backend index) with links.
    pub fn attached_backends(&self) -> Vec<(CgroupId, BackendIndex)> {
        attached(&self.dir)
    }

    /// Whether a cgroup has links of this backend.
    pub fn is_attached(&self, cgroup: CgroupId, index: BackendIndex) -> bool {
        self.cgroup_pins(cgroup, index).exists()
    }

    /// Whether the programs of a cgroup may run. Those of one that was removed do while there is a socket of its processes: Linux detaches them
    /// after the last (`cgroup_bpf_release` in `kernel/bpf/cgroup.c`).
    pub fn runs_in(&self, cgroup: CgroupId, index: BackendIndex) -> bool {
        let pins = self.cgroup_pins(cgroup, index);
        let is_attached = |name: &String| {
            let info = bpf::open(&pins.join(name)).and_then(bpf::link_info);
            info.is_ok_and(|info| info.target != 0)
        };
        names(&pins).iter().any(is_attached)
    }

    /// Detaches the programs from a cgroup.
    pub fn detach_backend(&mut self, cgroup: CgroupId, index: BackendIndex) {
        let pins = self.cgroup_pins(cgroup, index);
        for name in names(&pins) {
            let _ = fs::remove_file(pins.join(name));
        }
        let _ = fs::remove_dir(pins);
    }
}

/// Where the links of a backend's cgroup are pinned.
pub(super) fn cgroup_pins(dir: &Path, cgroup: CgroupId, index: BackendIndex) -> PathBuf {
    dir.join("cgroups").join(format!("{cgroup}-{index}"))
}

/// Every (cgroup id, backend index) with links pinned below `dir`.
pub(super) fn attached(dir: &Path) -> Vec<(CgroupId, BackendIndex)> {
    let parse = |name: &String| {
        let (cgroup, index) = name.split_once('-')?;
        Some((cgroup.parse().ok()?, index.parse().ok()?))
    };
    names(&dir.join("cgroups")).iter().filter_map(parse).collect()
}

/// Ids of the cgroups with links pinned below `dir`.
pub fn attached_cgroups(dir: &Path) -> BTreeSet<CgroupId> {
    attached(dir).into_iter().map(|(cgroup, _)| cgroup).collect()
}

pub(super) fn pin_link(link: std::result::Result<FdLink, LinkError>, path: PathBuf) -> Result<()> {
    let link = link.map_err(|source| KernelError::Link { path: path.clone(), source })?;
    let pinned: std::result::Result<PinnedLink, _> = link.pin(&path);
    pinned.map(drop).map_err(|source| KernelError::Pin { path, source: Box::new(source) })
}

/// The names in a directory; none if it cannot be read.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
