//! Compares the pins with the maps that this process has open, the maps that the programs use, and the attached links.
//! Repairs differences from the open descriptors.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::{
    Kernel, KernelError, Result,
    attach::{CGROUP_PROGRAMS, Cgroup, names},
    bpf, clsact,
    destinations::FORWARD,
    devices, object, ports,
};
use crate::ids::{BackendIndex, CgroupId, NetnsCookie};

/// The directories below the directory of pins.
pub(super) const DIRS: [&str; 5] = ["maps", "netns", "ports", "cgroups", FORWARD];

/// Pins of maps, and the links of namespaces, held open: a link without a pin lives as long as a descriptor of it is open.
pub(super) struct Pins {
    /// By name: each shared map and its id.
    maps: BTreeMap<&'static str, (OwnedFd, u32)>,
    /// By cookie: the link of each namespace.
    links: BTreeMap<NetnsCookie, OwnedFd>,
}

/// The result of a check of the pins.
#[derive(Debug, Default)]
pub struct PinsCheck {
    /// Pins that were missing or wrong, and are repaired.
    pub repaired: Vec<PathBuf>,
    /// Pins that could not be repaired, and why.
    pub failed: Vec<(PathBuf, String)>,
}

impl PinsCheck {
    fn note(&mut self, path: &Path, repaired: io::Result<bool>) {
        match repaired {
            Ok(true) => self.repaired.push(path.to_owned()),
            Ok(false) => {}
            Err(error) => self.failed.push((path.to_owned(), error.to_string())),
        }
    }
}

/// A fault of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// There is no link.
    Missing,
    /// It is attached to nothing, or to another target.
    Detached,
    /// Its program uses maps that are not ours.
    OtherMaps,
}

impl Pins {
    /// Opens every map below `dir`, all of which are pinned, and the links of namespaces.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut maps = BTreeMap::new();
        for name in object::MAPS {
            let path = dir.join("maps").join(name);
            let open = bpf::open(&path).and_then(|fd| bpf::map_info(&fd).map(|info| (fd, info.id)));
            maps.insert(name, open.map_err(KernelError::io("open the pin", path))?);
        }
        let cookies = names(&dir.join("netns")).into_iter().filter_map(|name| Some((name.parse().ok()?, name)));
        let links = cookies.filter_map(|(cookie, name): (NetnsCookie, String)| {
            let link = bpf::open(&dir.join("netns").join(name)).ok()?;
            bpf::link_info(&link).ok().map(|_| (cookie, link))
        });
        Ok(Self { maps, links: links.collect() })
    }

    /// Cookies of the namespaces that are attached.
    pub fn attached(&self) -> Vec<NetnsCookie> {
        self.links.keys().copied().collect()
    }

    /// The link of a namespace.
    pub fn link(&self, cookie: NetnsCookie) -> Option<&OwnedFd> {
        self.links.get(&cookie)
    }

    /// Whether a program uses our maps and no others of the same names. `ports` is the map of ports that it should use.
    fn suits(&self, program: u32, ports: Option<u32>) -> io::Result<bool> {
        let ours: BTreeMap<&str, u32> = self.maps.iter().map(|(name, (_, id))| (short(name), *id)).collect();
        for id in bpf::maps_of(bpf::program(program)?)? {
            let name = bpf::map_info(bpf::map(id)?)?.name;
            let wanted = if name == "PORTS" { ports } else { ours.get(name.as_str()).copied() };
            if wanted.is_some_and(|wanted| wanted != id) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The kernel keeps 15 bytes of a name.
fn short(name: &str) -> &str {
    name.get(..15).unwrap_or(name)
}

/// Pins an object if the pin is missing. Returns whether it was.
fn pin_again(object: &OwnedFd, path: &Path) -> io::Result<bool> {
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    bpf::pin(object.as_fd(), path).map(|()| true)
}

/// Replaces what is pinned at `path` by this object, with one rename.
fn replace(object: &OwnedFd, path: &Path) -> io::Result<bool> {
    let aside = path.with_extension("");
    let aside = aside.with_file_name(format!("{}-new", aside.file_name().unwrap_or_default().to_string_lossy()));
    let _ = fs::remove_file(&aside);
    bpf::pin(object.as_fd(), &aside)?;
    fs::rename(&aside, path).inspect_err(|_| drop(fs::remove_file(&aside)))?;
    Ok(true)
}

impl Kernel {
    /// Pins again what is no longer pinned. Cheap: one stat(2) for each pin. With `deep`, also opens and compares what
    /// is pinned.
    pub fn check_pins(&self, deep: bool) -> PinsCheck {
        let mut check = PinsCheck::default();
        for sub in DIRS {
            let path = self.dir.join(sub);
            if let Err(error) = fs::create_dir_all(&path) {
                check.failed.push((path, error.to_string()));
            }
        }
        for (name, (fd, id)) in &self.pins.maps {
            let path = self.dir.join("maps").join(name);
            let other = || bpf::open(&path).and_then(|fd| bpf::map_info(&fd)).is_ok_and(|info| info.id != *id);
            let repaired = match pin_again(fd, &path) {
                Ok(false) if deep && other() => replace(fd, &path),
                pinned => pinned,
            };
            check.note(&path, repaired);
        }
        for (cookie, link) in &self.pins.links {
            let path = self.netns_pin(*cookie);
            let id = |fd: &OwnedFd| bpf::link_info(fd).map(|info| info.id).ok();
            let repaired = match pin_again(link, &path) {
                Ok(false) if deep && bpf::open(&path).is_ok_and(|pinned| id(&pinned) != id(link)) => {
                    replace(link, &path)
                }
                pinned => pinned,
            };
            check.note(&path, repaired);
            let ports = ports::pin(&self.dir, *cookie);
            if ports.symlink_metadata().is_err() || deep {
                check.note(&ports, self.check_ports(link, &ports));
            }
        }
        check
    }

    /// Pins the map of ports that the program of a link uses, if the pin is missing or is another map.
    fn check_ports(&self, link: &OwnedFd, path: &Path) -> io::Result<bool> {
        let Some((map, id)) = ports_of(bpf::link_info(link)?.program)? else { return Ok(false) };
        match bpf::open(path).and_then(|fd| bpf::map_info(&fd)) {
            Ok(info) if info.id == id => Ok(false),
            Ok(_) => replace(&map, path),
            Err(_) => pin_again(&map, path),
        }
    }

    /// Files and directories below ours that pod-steer did not create.
    pub fn foreign_files(&self) -> Vec<PathBuf> {
        let here = |sub: &str| names(&self.dir.join(sub)).into_iter();
        let is_backend = |name: &str| {
            let parts = name.split_once('-');
            parts.is_some_and(|(cgroup, index)| {
                cgroup.parse::<CgroupId>().is_ok() && index.parse::<BackendIndex>().is_ok()
            })
        };
        let pin = |name: &String| CGROUP_PROGRAMS.iter().any(|(_, pin, _)| pin == name);
        let mut foreign: Vec<PathBuf> =
            here("").filter(|name| !DIRS.contains(&name.as_str())).map(PathBuf::from).collect();
        let sub = |sub: &'static str, ours: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
            here(sub).filter(|name| !ours(name)).map(|name| Path::new(sub).join(name)).collect()
        };
        foreign.extend(sub("maps", &|name| object::MAPS.contains(&name)));
        foreign.extend(sub("netns", &|name| {
            name.parse::<NetnsCookie>().is_ok()
                && bpf::open(&self.dir.join("netns").join(name)).is_ok_and(|fd| bpf::link_info(fd).is_ok())
        }));
        foreign.extend(sub("ports", &|name| name.parse::<NetnsCookie>().is_ok()));
        foreign.extend(sub("cgroups", &is_backend));
        foreign.extend(sub(FORWARD, &|name| {
            let is_of_device = devices::of_pin(name).is_some() || clsact::of_mark(name).is_some();
            object::FORWARD_MAPS.contains(&name) || is_of_device
        }));
        for backend in here("cgroups").filter(|name| is_backend(name)) {
            let dir = Path::new("cgroups").join(backend);
            let below = names(&self.dir.join(&dir));
            foreign.extend(below.into_iter().filter(|name| !pin(name)).map(|name| dir.join(name)));
        }
        foreign.into_iter().map(|path| self.dir.join(path)).collect()
    }

    /// Holds the link of a namespace that has just been attached, so that it outlives its pin.
    pub fn hold_namespace(&mut self, cookie: NetnsCookie) -> Result<()> {
        let pin = self.netns_pin(cookie);
        let link = bpf::open(&pin).map_err(KernelError::io("open the pin", pin))?;
        self.pins.links.insert(cookie, link);
        Ok(())
    }

    /// The namespaces whose link has a fault. `inodes` are those that are known, by cookie.
    pub fn check_namespaces(&self, inodes: &BTreeMap<NetnsCookie, u64>, deep: bool) -> Vec<(NetnsCookie, LinkFault)> {
        let fault = |cookie: NetnsCookie, link: &OwnedFd| {
            // A link that cannot be read is left alone.
            let info = bpf::link_info(link).ok()?;
            let inode = inodes.get(&cookie).copied();
            if info.target == 0 || inode.is_some_and(|inode| inode != info.target) {
                return Some(LinkFault::Detached);
            }
            (deep && !self.suits_namespace(cookie, info.program)).then_some(LinkFault::OtherMaps)
        };
        self.pins.links.iter().filter_map(|(cookie, link)| Some((*cookie, fault(*cookie, link)?))).collect()
    }

    /// Whether a program of a namespace uses our maps. True if that cannot be read: such a program is left alone.
    pub(super) fn suits_namespace(&self, cookie: NetnsCookie, program: u32) -> bool {
        let pinned = bpf::open(&ports::pin(&self.dir, cookie)).and_then(|fd| bpf::map_info(&fd));
        let ports = pinned.map(|info| info.id).ok();
        self.pins.suits(program, ports).unwrap_or(true)
    }

    /// Drops the link of a namespace, so that another can be attached.
    pub fn forget_link(&mut self, cookie: NetnsCookie) {
        self.pins.links.remove(&cookie);
        let _ = fs::remove_file(self.netns_pin(cookie));
    }

    /// Drops everything besides the pins that keeps steering alive.
    pub fn release(&mut self) {
        self.pins.links.clear();
    }

    fn suits_all(&self, program: u32, programs: &mut BTreeMap<u32, bool>) -> bool {
        *programs.entry(program).or_insert_with(|| self.pins.suits(program, None).unwrap_or(true))
    }

    /// Checks the links of a backend's cgroup, and attaches faulty ones again. Returns which were faulty. Backends share programs, so
    /// `programs` remembers for each, by its id, whether it uses the maps that it should.
    pub fn check_backend(
        &mut self,
        index: BackendIndex,
        cgroup: &Cgroup,
        programs: &mut BTreeMap<u32, bool>,
    ) -> Result<BTreeSet<&'static str>> {
        let pins = self.cgroup_pins(cgroup.id, index);
        let mut wrong = BTreeSet::new();
        for (name, pin, _) in CGROUP_PROGRAMS {
            let path = pins.join(pin);
            let fault = match bpf::open(&path).and_then(|link| bpf::link_info(&link).map(|info| (link, info))) {
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                    Some(LinkFault::Missing)
                }
                // A link that cannot be read is left alone.
                Err(_) => None,
                Ok((_, info)) if info.target != cgroup.id.0 => Some(LinkFault::Detached),
                Ok((link, info)) if !self.suits_all(info.program, programs) => {
                    let program = object::program_fd(&self.programs, name)?;
                    bpf::update_link(link.as_fd(), program.as_fd())
                        .map_err(KernelError::io("replace the program of the link", &path))?;
                    wrong.insert(pin);
                    None
                }
                Ok(_) => None,
            };
            if fault.is_some() {
                wrong.insert(pin);
                let _ = fs::remove_file(path);
            }
        }
        if !wrong.is_empty() {
            self.attach_backend(index, cgroup)?;
        }
        Ok(wrong)
    }
}

/// The map of ports that a lookup program uses, and its id.
fn ports_of(program: u32) -> io::Result<Option<(OwnedFd, u32)>> {
    for id in bpf::maps_of(bpf::program(program)?)? {
        let map = bpf::map(id)?;
        if bpf::map_info(&map)?.name == "PORTS" {
            return Ok(Some((map, id)));
        }
    }
    Ok(None)
}

/// Pins the map of ports of an attached namespace again, if its pin is gone.
pub(super) fn recover_ports(dir: &Path, cookie: NetnsCookie) -> io::Result<bool> {
    let link = bpf::open(&dir.join("netns").join(cookie.to_string()))?;
    match ports_of(bpf::link_info(link)?.program)? {
        Some((map, _)) => pin_again(&map, &ports::pin(dir, cookie)),
        None => Ok(false),
    }
}

/// Pins maps again whose pins are gone and that programs still use. This happens before any map is opened: no program
/// would use a map that was created in place of one of them. Returns their names. Programs of namespaces are searched
/// first, because connections depend on them.
pub(super) fn recover_maps(dir: &Path) -> Result<Vec<&'static str>> {
    let missing = |name: &&'static str| dir.join("maps").join(name).symlink_metadata().is_err();
    let mut missing: BTreeSet<&'static str> = object::MAPS.into_iter().filter(missing).collect();
    let mut recovered = Vec::new();
    let mut seen = BTreeSet::new();
    for link in links(dir) {
        if missing.is_empty() {
            break;
        }
        let Ok(program) = bpf::open(&link).and_then(bpf::link_info).map(|info| info.program) else { continue };
        if !seen.insert(program) {
            continue;
        }
        let Ok(maps) = bpf::program(program).and_then(bpf::maps_of) else { continue };
        for map in maps.into_iter().filter_map(|id| bpf::map(id).ok()) {
            let Ok(info) = bpf::map_info(&map) else { continue };
            let Some(name) = missing.iter().copied().find(|name| short(name) == info.name) else { continue };
            let pin = dir.join("maps").join(name);
            for made in [dir, &dir.join("maps")] {
                fs::create_dir_all(made).map_err(KernelError::io("create the directory", made))?;
            }
            bpf::pin(map.as_fd(), &pin).map_err(KernelError::io("pin the map", &pin))?;
            missing.remove(name);
            recovered.push(name);
        }
    }
    Ok(recovered)
}

/// Every pinned link, those of namespaces first.
fn links(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let below = |dir: PathBuf| names(&dir).into_iter().map(move |name| dir.join(name));
    below(dir.join("netns")).chain(below(dir.join("cgroups")).flat_map(below))
}

/// The number of entries of a pinned map.
pub(super) fn entries(pin: &Path) -> Option<u32> {
    let [_, _, entries] = bpf::map_info(bpf::open(pin).ok()?).ok()?.sizes;
    Some(entries)
}
