//! The commands of bpf(2) on pins, links, programs and maps that aya does not offer. All exist in Linux 5.10.
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper for these commands")]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_PROG_BIND_MAP: libc::c_long = 35;

const BPF_F_RDONLY: u32 = 1 << 3;

/// The type of an object of bpf(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A map.
    Map,
    /// A program.
    Program,
    /// A link.
    Link,
}

/// The program and the target of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its id.
    pub id: u32,
    /// Id of its program.
    pub program: u32,
    /// Inode of the network namespace, or id of the cgroup, that it is attached to. 0 if it is detached.
    pub target: u64,
}

/// The properties of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// Its id.
    pub id: u32,
    /// Its name: the first 15 bytes of the one in the object.
    pub name: String,
    /// Its type: `enum bpf_map_type`.
    pub kind: u32,
    /// The flags that it was created with.
    pub flags: u32,
    /// Bytes of a key, bytes of a value, and entries.
    pub sizes: [u32; 3],
}

impl MapInfo {
    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.sizes[0] as usize
    }

    /// Bytes of a value.
    pub fn value_size(&self) -> usize {
        self.sizes[1] as usize
    }
}

/// Calls bpf(2). `attributes` is the part of `union bpf_attr` that the command reads. The caller keeps alive what it
/// points to.
fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are a live local of the stated size, laid out as the command reads them.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>() as libc::c_uint) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as libc::c_int) }
}

fn call_for_fd<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens the object that is pinned at `path`.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    call_for_fd(BPF_OBJ_GET, &mut Pin { path: path.as_ptr() as u64, fd: 0, flags: 0 })
}

/// Opens the map that is pinned at `path`. The kernel refuses every write by this descriptor.
pub fn open_read_only(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    call_for_fd(BPF_OBJ_GET, &mut Pin { path: path.as_ptr() as u64, fd: 0, flags: BPF_F_RDONLY })
}

/// Pins an object at `path`, which must not exist.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let fd = object.as_raw_fd().cast_unsigned();
    call(BPF_OBJ_PIN, &mut Pin { path: path.as_ptr() as u64, fd, flags: 0 }).map(drop)
}

/// Returns the type of a descriptor of bpf(2).
pub fn object(fd: impl AsFd) -> io::Result<Object> {
    let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?;
    match target.as_os_str().as_bytes() {
        b"anon_inode:bpf-map" => Ok(Object::Map),
        b"anon_inode:bpf-prog" => Ok(Object::Program),
        // Renamed from one to the other after Linux 6.1.
        b"anon_inode:bpf_link" | b"anon_inode:bpf-link" => Ok(Object::Link),
        _ => Err(io::Error::other(format!("`{}` is not an object of bpf(2)", target.display()))),
    }
}

fn by_id(command: libc::c_long, id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Id {
        id: u32,
        next_id: u32,
        open_flags: u32,
    }
    call_for_fd(command, &mut Id { id, next_id: 0, open_flags: 0 })
}

/// Opens the program with this id.
pub fn program(id: u32) -> io::Result<OwnedFd> {
    by_id(BPF_PROG_GET_FD_BY_ID, id)
}

/// Opens the map with this id.
pub fn map(id: u32) -> io::Result<OwnedFd> {
    by_id(BPF_MAP_GET_FD_BY_ID, id)
}

/// Fills `info`, whose fields are integers only. The kernel fills as much of it as it knows.
fn info<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Info {
        fd: u32,
        len: u32,
        info: u64,
    }
    let len = size_of::<T>() as u32;
    let mut attributes = Info { fd: fd.as_raw_fd().cast_unsigned(), len, info: &raw mut *info as u64 };
    call(BPF_OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
}

/// The beginning of `struct bpf_link_info` (`include/uapi/linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct RawLink {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    /// For a namespace its inode, for a network device its index, each with the attach type in the upper half. For a cgroup: its id.
    target: u64,
    attach_type: u64,
}

/// `BPF_LINK_TYPE_NETNS`.
const NETNS: u32 = 5;
/// `BPF_LINK_TYPE_TCX`.
const TCX: u32 = 11;

/// Reads the program and the target of a link.
pub fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    if object(&link)? != Object::Link {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a link"));
    }
    let mut raw = RawLink::default();
    info(link.as_fd(), &mut raw)?;
    let bytes = raw.target.to_ne_bytes();
    let lower = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let target = if matches!(raw.kind, NETNS | TCX) { lower.into() } else { raw.target };
    Ok(LinkInfo { id: raw.id, program: raw.program, target })
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct RawProgram {
    kind: u32,
    id: u32,
    tag: u64,
    jited_len: u32,
    translated_len: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    created_by: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; NAME_BYTES],
}

/// `BPF_OBJ_NAME_LEN`.
const NAME_BYTES: usize = 16;

fn text(name: [u8; NAME_BYTES]) -> String {
    name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}

/// The name of a program: at most 15 bytes.
pub fn program_name(program: impl AsFd) -> io::Result<String> {
    let mut raw = RawProgram::default();
    info(program.as_fd(), &mut raw)?;
    Ok(text(raw.name))
}

/// Ids of the maps that a program uses.
pub fn maps_of(program: impl AsFd) -> io::Result<Vec<u32>> {
    /// More than any of our programs uses (`MAX_USED_MAPS` is 64).
    const MAPS_MAX: usize = 64;
    let mut ids = vec![0u32; MAPS_MAX];
    let mut raw = RawProgram { maps: MAPS_MAX as u32, map_ids: ids.as_mut_ptr() as u64, ..RawProgram::default() };
    info(program.as_fd(), &mut raw)?;
    ids.truncate(raw.maps as usize);
    Ok(ids)
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct RawMap {
    kind: u32,
    id: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
}

/// Reads the properties of a map.
pub fn map_info(map: impl AsFd) -> io::Result<MapInfo> {
    if object(&map)? != Object::Map {
        return Err(io::Error::other("it is not a map"));
    }
    let mut raw = RawMap::default();
    info(map.as_fd(), &mut raw)?;
    let name = text(raw.name);
    Ok(MapInfo { id: raw.id, name, kind: raw.kind, flags: raw.flags, sizes: [raw.key, raw.value, raw.entries] })
}

/// Replaces the program of a link. The update is atomic: the target of the link is never without a program.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let (link, program) = (link.as_raw_fd().cast_unsigned(), program.as_raw_fd().cast_unsigned());
    call(BPF_LINK_UPDATE, &mut Update { link, program, flags: 0, old_program: 0 }).map(drop)
}

/// The part of `union bpf_attr` for queries of attached programs.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Whether programs can be attached to network devices by links (Linux 6.6): asks how many the loopback device has.
pub fn has_tcx() -> bool {
    const LOOPBACK: u32 = 1;
    const BPF_TCX_INGRESS: u32 = 46;
    call(BPF_PROG_QUERY, &mut Query { target: LOOPBACK, attach_type: BPF_TCX_INGRESS, ..Query::default() }).is_ok()
}

/// Ids of the `sk_lookup` programs of a network namespace, in the order in which they run.
pub fn lookup_programs(netns: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const BPF_SK_LOOKUP: u32 = 36;
    /// A namespace has at most 64 (`netns_bpf_max_progs` in `kernel/bpf/net_namespace.c`).
    const PROGRAMS_MAX: u32 = 64;
    let mut ids = vec![0u32; PROGRAMS_MAX as usize];
    let target = netns.as_raw_fd().cast_unsigned();
    let programs = ids.as_mut_ptr() as u64;
    let mut query = Query { target, attach_type: BPF_SK_LOOKUP, programs, count: PROGRAMS_MAX, ..Query::default() };
    call(BPF_PROG_QUERY, &mut query)?;
    ids.truncate(query.count as usize);
    Ok(ids)
}

/// Keeps a map alive as long as a program. The program need not use it.
pub fn bind_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Bind {
        program: u32,
        map: u32,
        flags: u32,
    }
    let (program, map) = (program.as_raw_fd().cast_unsigned(), map.as_raw_fd().cast_unsigned());
    call(BPF_PROG_BIND_MAP, &mut Bind { program, map, flags: 0 }).map(drop)
}

/// Runs a program once on a packet and a context of its type, and returns its result (`BPF_PROG_TEST_RUN`; of `sk_lookup` programs since
/// Linux 5.12). It runs in the network namespace of the calling thread. Its own changes of packet and context are in `packet` and `context`
/// afterwards. Neither may be empty if the type has it.
pub fn test_run(program: BorrowedFd<'_>, packet: &mut [u8], context: &mut [u8]) -> io::Result<u32> {
    #[repr(C)]
    struct TestRun {
        program: u32,
        result: u32,
        packet_in_bytes: u32,
        packet_out_bytes: u32,
        packet_in: u64,
        packet_out: u64,
        repeat: u32,
        duration: u32,
        context_in_bytes: u32,
        context_out_bytes: u32,
        context_in: u64,
        context_out: u64,
    }
    // The kernel takes no pointer to a packet of a type that has none.
    let at = |bytes: &mut [u8]| if bytes.is_empty() { 0 } else { bytes.as_mut_ptr() as u64 };
    let (packet_at, context_at) = (at(packet), at(context));
    let mut attributes = TestRun {
        program: program.as_raw_fd().cast_unsigned(),
        result: 0,
        packet_in_bytes: packet.len() as u32,
        packet_out_bytes: packet.len() as u32,
        packet_in: packet_at,
        packet_out: packet_at,
        repeat: 1,
        duration: 0,
        context_in_bytes: context.len() as u32,
        context_out_bytes: context.len() as u32,
        context_in: context_at,
        context_out: context_at,
    };
    call(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(attributes.result)
}
