//! BPF objects of a daemon, found by what it owns: its pins, its descriptors and the namespaces that it steers.
//!
//! Other users of BPF make and remove objects while a test runs, so nothing here lists the objects of the whole machine, and an
//! object that is gone is an answer and not an error. `bpftool` lists all of them: tests use it for single objects only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    daemon::BPFFS,
    host::Host,
    netns::NetNs,
    process::run,
    programs::{BPF_SK_LOOKUP, bpf, made, open_pin},
    wait,
};

const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;
/// `BPF_MAP_TYPE_SK_STORAGE`: its values belong to sockets.
pub const SK_STORAGE: u32 = 24;

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A program.
    Program,
    /// A map.
    Map,
    /// A link.
    Link,
}

/// What identifies an object. The kernel counts ids up, so that of a removed object is not given to another one soon.
pub type Id = (Kind, u32);

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A program.
    Program {
        /// The first 15 bytes of its name.
        name: String,
        /// The hash of its instructions.
        tag: u64,
        /// Ids of the maps that it uses.
        maps: Vec<u32>,
    },
    /// A map.
    Map {
        /// The first 15 bytes of its name.
        name: String,
        /// Its type: `enum bpf_map_type`.
        kind: u32,
    },
    /// A link.
    Link(Link),
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its id.
    pub id: u32,
    /// Id of its program.
    pub program: u32,
    /// What the program is attached to.
    pub target: Target,
}

/// What a link attaches its program to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The network namespace with this inode.
    Netns(u64),
    /// The cgroup with this id.
    Cgroup(u64),
    /// Something else, or nothing: the link was detached.
    Other,
}

/// Some objects.
pub type Objects = BTreeMap<Id, Object>;

/// The objects of a daemon: those that it has open, those that are pinned in its host, and all that these use.
pub fn of_daemon(host: &Host, pid: u32) -> Result<Objects> {
    let mut owned = pinned(host)?;
    let mut wanted = open_by(pid)?;
    // Links use programs, programs use maps.
    wanted.extend(owned.values().flat_map(uses));
    while let Some(id) = wanted.pop() {
        if owned.contains_key(&id) {
            continue;
        }
        if let Some(fd) = open(id)? {
            let (_, object) = describe(&fd, id.0)?;
            wanted.extend(uses(&object));
            owned.insert(id, object);
        }
    }
    Ok(owned)
}

/// Those of `owned` that the kernel still has.
pub fn left(owned: &Objects) -> Result<Objects> {
    let mut left = Objects::new();
    for (id, object) in owned {
        if open(*id)?.is_some() {
            left.insert(*id, object.clone());
        }
    }
    Ok(left)
}

/// Waits until the kernel has none of these. It frees a program when the last run of it is over.
pub fn until_gone(owned: &Objects) -> Result<()> {
    wait::until_ok("the kernel to free everything", || Ok(left(owned)?.is_empty().then_some(())))
        .with_context(|| format!("left: {:?}", left(owned)))
}

/// Every object that is pinned in a host's directory of pins.
pub fn pinned(host: &Host) -> Result<Objects> {
    let mut found = Objects::new();
    for path in files_below(&host.path(BPFFS)) {
        let Some(fd) = some(open_pin(&path)).with_context(|| format!("opening {}", path.display()))? else { continue };
        let Some(kind) = kind_of(&fd)? else { continue };
        let (id, object) = describe(&fd, kind)?;
        found.insert((kind, id), object);
    }
    Ok(found)
}

/// The links that are pinned in a host's directory of pins.
pub fn links(host: &Host) -> Result<Vec<Link>> {
    let links = pinned(host)?.into_values().filter_map(|object| match object {
        Object::Link(link) => Some(link),
        _ => None,
    });
    Ok(links.collect())
}

/// Detaches a link. Its pin stays.
pub fn detach(link: u32) -> Result<()> {
    let fd = open((Kind::Link, link))?.with_context(|| format!("link {link} is gone"))?;
    bpf(BPF_LINK_DETACH, &mut [fd.as_raw_fd() as u64]).map(drop).context("detaching a link")
}

/// The program with this id, if the kernel still has it.
pub fn program(id: u32) -> Result<Option<Object>> {
    open((Kind::Program, id))?.map(|fd| Ok(describe(&fd, Kind::Program)?.1)).transpose()
}

/// How many `sk_lookup` programs are attached to a network namespace.
pub fn attached_to(net: &NetNs) -> Result<u32> {
    // The attributes as of Linux 6.6: the kernel writes the number of programs to byte 24.
    let mut query = [0u64; 8];
    query[0] = net.as_fd().as_raw_fd() as u64 | u64::from(BPF_SK_LOOKUP) << 32;
    bpf(BPF_PROG_QUERY, &mut query).context("asking for the programs of a namespace")?;
    Ok(query[3] as u32)
}

/// Cookies of the namespaces that have a pin of the daemon's in this directory: `netns` or `ports`.
pub fn pinned_namespaces(host: &Host, dir: &str) -> Result<BTreeSet<u64>> {
    let names = run(host.command("find")?.args([&format!("{BPFFS}/{dir}"), "-mindepth", "1", "-printf", "%f\n"]))?;
    names.lines().map(|name| name.parse().with_context(|| format!("a pin {name} in {dir}"))).collect()
}

/// The entries of a pinned map, as `bpftool` prints them.
pub fn entries(host: &Host, map: &str) -> Result<Vec<Value>> {
    let pin = format!("{BPFFS}/maps/{map}");
    let dump = run(host.command("bpftool")?.args(["--json", "map", "dump", "pinned", &pin]))?;
    serde_json::from_str(&dump).with_context(|| format!("bpftool map dump {map}: {dump}"))
}

/// Every file below a directory, which may be absent and change meanwhile.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        Ok(kind) if kind.is_file() => vec![entry.path()],
        _ => vec![],
    });
    files.collect()
}

/// Ids of what a process has open.
fn open_by(pid: u32) -> Result<Vec<Id>> {
    let mut open = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("reading the daemon's descriptors")? {
        // A descriptor may be closed meanwhile.
        let info = fs::read_to_string(entry?.path()).unwrap_or_default();
        for (kind, field) in [(Kind::Program, "prog_id:"), (Kind::Map, "map_id:"), (Kind::Link, "link_id:")] {
            let id = info.lines().find_map(|line| line.strip_prefix(field));
            open.extend(id.and_then(|id| id.trim().parse().ok()).map(|id| (kind, id)));
        }
    }
    Ok(open)
}

/// Ids of what an object uses.
fn uses(object: &Object) -> Vec<Id> {
    match object {
        Object::Link(link) => vec![(Kind::Program, link.program)],
        Object::Program { maps, .. } => maps.iter().map(|map| (Kind::Map, *map)).collect(),
        Object::Map { .. } => vec![],
    }
}

/// Opens an object by its id, if the kernel still has it.
fn open((kind, id): Id) -> Result<Option<OwnedFd>> {
    let command = match kind {
        Kind::Program => BPF_PROG_GET_FD_BY_ID,
        Kind::Map => BPF_MAP_GET_FD_BY_ID,
        Kind::Link => BPF_LINK_GET_FD_BY_ID,
    };
    some(made(bpf(command, &mut [u64::from(id), 0]))).with_context(|| format!("opening {kind:?} {id}"))
}

/// `None` if it is gone.
fn some(opened: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// What kind of object a descriptor is of.
fn kind_of(fd: &OwnedFd) -> Result<Option<Kind>> {
    let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).context("looking at a descriptor")?;
    Ok(match target.to_str() {
        Some("anon_inode:bpf-prog") => Some(Kind::Program),
        Some("anon_inode:bpf-map") => Some(Kind::Map),
        // Renamed from one to the other after Linux 6.1.
        Some("anon_inode:bpf_link" | "anon_inode:bpf-link") => Some(Kind::Link),
        _ => None,
    })
}

/// The id of an object, and what it is. The fields of `struct bpf_prog_info`, `bpf_map_info` and `bpf_link_info` are read by their
/// places in words of 32 bits.
fn describe(fd: &OwnedFd, kind: Kind) -> Result<(u32, Object)> {
    /// `MAX_USED_MAPS`
    const MAPS_MAX: usize = 64;
    let mut maps = vec![0u32; MAPS_MAX];
    let mut info = [0u32; 20];
    let at = maps.as_mut_ptr() as u64;
    if kind == Kind::Program {
        info[13..16].copy_from_slice(&[MAPS_MAX as u32, at as u32, (at >> 32) as u32]);
    }
    let mut words = [fd.as_raw_fd() as u64 | (size_of_val(&info) as u64) << 32, info.as_mut_ptr() as u64];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut words).with_context(|| format!("describing a {kind:?}"))?;
    let long = |at: usize| u64::from(info[at]) | u64::from(info[at + 1]) << 32;
    let object = match kind {
        Kind::Program => {
            maps.truncate(info[13] as usize);
            Object::Program { name: name(&info[16..20]), tag: long(2), maps }
        }
        Kind::Map => Object::Map { name: name(&info[6..10]), kind: info[0] },
        Kind::Link => {
            let target = match info[0] {
                BPF_LINK_TYPE_NETNS if info[4] != 0 => Target::Netns(info[4].into()),
                BPF_LINK_TYPE_CGROUP if long(4) != 0 => Target::Cgroup(long(4)),
                _ => Target::Other,
            };
            Object::Link(Link { id: info[1], program: info[2], target })
        }
    };
    Ok((info[1], object))
}

fn name(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    bytes.take_while(|byte| *byte != 0).map(char::from).collect()
}
