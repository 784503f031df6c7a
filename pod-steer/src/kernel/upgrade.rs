//! A starting daemon replaces every attached program of another build than its own. A link update is atomic, and so is the
//! replacement of a filter: the namespace, cgroup or device is never without a program. Programs of one layout use the same maps, so links may change in any
//! order. If the daemon dies halfway, links of both builds remain, and the next daemon finishes.
//!
//! The migrate program is attached to sockets, not by links: the first resync attaches it to every group again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use aya::Ebpf;

use super::{
    KernelError, Result,
    attach::{self, CGROUP_PROGRAMS, LOOKUP, attached, cgroup_pins, names},
    bpf,
    build_id::{Build, BuildMap},
    clsact::{self, Clsact, Filter},
    destinations::{self, FORWARD},
    devices,
    object::{self, Constants},
    pins, ports,
};
use crate::{
    abort::{self, Point},
    ids::NetnsCookie,
    sys,
};

/// The result of replacing programs.
#[derive(Clone, Debug, Default)]
pub struct Replaced {
    /// Links and filters whose program was replaced, by the name of the program.
    pub links: BTreeMap<&'static str, usize>,
    /// Builds of the former programs.
    pub from: BTreeSet<String>,
    /// Build of the programs now.
    pub to: String,
    /// How long it took, including the carry-over to new maps.
    pub took: Duration,
}

/// As a field of a log line: the number of links and filters of each program.
impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links: Vec<_> = self.links.iter().map(|(name, links)| format!("{links} {name}")).collect();
        f.write_str(&links.join(", "))
    }
}

/// What holds a program.
enum Holder {
    /// The link that is pinned here.
    Link(PathBuf),
    /// A filter of a network device.
    Filter(Filter),
}

/// A link or a filter that needs another program.
struct Due {
    name: &'static str,
    holder: Holder,
    old: Rc<OwnedFd>,
    new: Rc<OwnedFd>,
}

impl Due {
    fn update(&self, dir: &Path, program: BorrowedFd<'_>) -> Result<()> {
        let pin = match &self.holder {
            Holder::Link(pin) => pin,
            Holder::Filter(filter) => {
                let replaced = Clsact::open(dir).and_then(|mut own| own.replace(filter, program, self.name));
                let device = filter.device.to_string();
                return replaced.map_err(KernelError::io("replace the filter of the device with index", device));
            }
        };
        match bpf::open(pin).and_then(|link| bpf::update_link(link.as_fd(), program)) {
            // Its namespace or cgroup has ended in the meantime.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
            updated => updated.map_err(KernelError::io("replace the program of the link", pin)),
        }
    }
}

/// Finds the links whose program is of another build.
#[derive(Default)]
struct Finder {
    /// Attached programs by id; `Some` for one of another build.
    old: HashMap<u32, Option<Rc<OwnedFd>>>,
    from: BTreeSet<String>,
    due: Vec<Due>,
}

impl Finder {
    /// Returns the program of the link pinned there, if it is of another build.
    fn outdated(&mut self, pin: &Path, own: Build) -> io::Result<Option<Rc<OwnedFd>>> {
        let info = match bpf::open(pin).and_then(bpf::link_info) {
            // A pin that is missing or is not a link is repaired later.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                return Ok(None);
            }
            info => info?,
        };
        // A detached link has no program.
        if info.target == 0 { Ok(None) } else { self.outdated_program(info.program, own) }
    }

    /// Returns an attached program, if it is of another build.
    fn outdated_program(&mut self, id: u32, own: Build) -> io::Result<Option<Rc<OwnedFd>>> {
        if let Some(known) = self.old.get(&id) {
            return Ok(known.clone());
        }
        let build = Build::of_program(id)?;
        let old = match build {
            Some(build) if build.is_same(own) => None,
            build => {
                self.from.insert(build.map_or_else(|| "an unknown build".to_owned(), |build| build.to_string()));
                Some(Rc::new(bpf::program(id)?))
            }
        };
        self.old.insert(id, old.clone());
        Ok(old)
    }
}

/// The programs of this process, loaded for the maps that are pinned in a directory.
pub(super) struct Release<'a> {
    pub dir: &'a Path,
    pub maps: &'a Path,
    pub programs: &'a Ebpf,
    pub build: &'a BuildMap,
    pub constants: &'a Constants,
}

impl Release<'_> {
    /// Every link whose program is of another build, with its new program. All new programs are loaded when this
    /// returns.
    pub fn outdated(&self) -> Result<Outdated> {
        let own = self.build.build;
        let mut finder = Finder::default();
        for name in names(&self.dir.join("netns")) {
            let Ok(cookie) = name.parse() else { continue };
            let pin = self.dir.join("netns").join(name);
            if let Some(old) = finder.outdated(&pin, own).map_err(unread(&pin))? {
                let new = Rc::new(self.load_lookup(cookie)?);
                finder.due.push(Due { name: LOOKUP, holder: Holder::Link(pin), old, new });
            }
        }
        sys::shrink_memory();
        let mut loaded: HashMap<&'static str, Rc<OwnedFd>> = HashMap::new();
        for pins in attached(self.dir).into_iter().map(|(cgroup, index)| cgroup_pins(self.dir, cgroup, index)) {
            for (name, pin, _) in CGROUP_PROGRAMS {
                let pin = pins.join(pin);
                let Some(old) = finder.outdated(&pin, own).map_err(unread(&pin))? else { continue };
                let new = match loaded.get(name) {
                    Some(new) => Rc::clone(new),
                    None => {
                        let new = object::program_fd(self.programs, name)?.try_clone_to_owned();
                        Rc::new(new.map_err(KernelError::io("duplicate the descriptor of the program", name))?)
                    }
                };
                loaded.insert(name, Rc::clone(&new));
                finder.due.push(Due { name, holder: Holder::Link(pin), old, new });
            }
        }
        self.outdated_of_devices(&mut finder)?;
        Ok(Outdated { dir: self.dir.to_owned(), due: finder.due, from: finder.from, to: own.to_string() })
    }

    /// Those of network devices. All are in one namespace.
    fn outdated_of_devices(&self, finder: &mut Finder) -> Result<()> {
        let cookies = names(&self.dir.join("netns")).into_iter().filter_map(|name| name.parse().ok());
        let Some(cookie) = cookies.into_iter().find(|cookie| destinations::forwards(self.dir, *cookie)) else {
            return Ok(());
        };
        let own = self.build.build;
        let mut found = Vec::new();
        for pin in devices::links(self.dir) {
            if let Some(old) = finder.outdated(&pin, own).map_err(unread(&pin))? {
                let program = bpf::open(&pin).and_then(bpf::link_info).map_err(unread(&pin))?.program;
                found.push((Holder::Link(pin), program, old));
            }
        }
        let unread_filters = || KernelError::io("read the filters of", "network devices");
        for filter in clsact::own(self.dir).map_err(unread_filters())? {
            if let Some(old) = finder.outdated_program(filter.program, own).map_err(unread_filters())? {
                found.push((Holder::Filter(filter), filter.program, old));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let constants = Constants { netns_cookie: cookie, ..*self.constants };
        let mut programs = devices::instance(self.dir, self.maps, &constants)?;
        let mut loaded: HashMap<&'static str, Rc<OwnedFd>> = HashMap::new();
        for (holder, program, old) in found {
            // A program that this version does not have is replaced when the devices are looked at.
            let name = devices::name_of(program).map_err(KernelError::io("read the program of", "network devices"))?;
            let Some(name) = name else { continue };
            let new = match loaded.get(name) {
                Some(new) => Rc::clone(new),
                None => {
                    object::load(&mut programs, name, Some(self.build))?;
                    let new = object::program_fd(&programs, name)?.try_clone_to_owned();
                    Rc::new(new.map_err(KernelError::io("duplicate the descriptor of the program", name))?)
                }
            };
            loaded.insert(name, Rc::clone(&new));
            finder.due.push(Due { name, holder, old, new });
        }
        Ok(())
    }

    /// The lookup program of a namespace that is attached already.
    fn load_lookup(&self, cookie: NetnsCookie) -> Result<OwnedFd> {
        // The attached program has the map; no other program would read a new one.
        let _ = pins::recover_ports(self.dir, cookie);
        let ports = ports::pin(self.dir, cookie);
        let constants = Constants { netns_cookie: cookie, ..*self.constants };
        // A program that forwards goes on with the same maps.
        let forward = Some(self.dir.join(FORWARD)).filter(|_| destinations::forwards(self.dir, cookie));
        attach::lookup_program(self.maps, &ports, forward.as_deref(), &constants, self.build)
    }
}

/// Links that need other programs.
pub(super) struct Outdated {
    dir: PathBuf,
    due: Vec<Due>,
    from: BTreeSet<String>,
    to: String,
}

impl Outdated {
    /// Replaces the programs of all links, then runs `then`. If either fails, the former programs are attached again.
    pub fn replace(self, then: impl FnOnce() -> Result<()>) -> Result<Replaced> {
        let begun = Instant::now();
        let links = replace_all(&self.dir, &self.due, then)?;
        let took = begun.elapsed();
        detach_unknown_programs(&self.dir);
        Ok(Replaced { links, from: self.from, to: self.to, took })
    }
}

/// Detaches programs of cgroups that this version does not have.
fn detach_unknown_programs(dir: &Path) {
    for pins in attached(dir).into_iter().map(|(cgroup, index)| cgroup_pins(dir, cgroup, index)) {
        let unknown = |name: &String| !CGROUP_PROGRAMS.iter().any(|(_, pin, _)| pin == name);
        for pin in names(&pins).into_iter().filter(unknown).map(|name| pins.join(name)) {
            if bpf::open(&pin).is_ok_and(|link| bpf::link_info(link).is_ok()) {
                let _ = fs::remove_file(pin);
            }
        }
    }
}

fn unread(pin: &Path) -> impl FnOnce(io::Error) -> KernelError {
    KernelError::io("read the program of the link", pin)
}

/// Replaces all programs or none.
fn replace_all(dir: &Path, all: &[Due], then: impl FnOnce() -> Result<()>) -> Result<BTreeMap<&'static str, usize>> {
    let mut links = BTreeMap::new();
    let Some(last) = all.len().checked_sub(1) else { return then().map(|()| links) };
    let step = |point| abort::or_fail(point).map_err(KernelError::io("replace the programs of links in", "the kernel"));
    step(Point::ProgramsLoaded)?;
    let replaced = all.iter().enumerate().try_for_each(|(number, due)| {
        due.update(dir, due.new.as_fd())?;
        *links.entry(due.name).or_default() += 1;
        if number == last / 2 { step(Point::HalfReplaced) } else { Ok(()) }
    });
    let replaced = replaced.and_then(|()| step(Point::Replaced)).and_then(|()| then());
    if replaced.is_err() {
        // A link that was not replaced yet still has its former program.
        all.iter().rev().for_each(|due| drop(due.update(dir, due.old.as_fd())));
    }
    replaced.map(|()| links)
}
