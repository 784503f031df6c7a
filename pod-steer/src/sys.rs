//! The system calls that no library offers safely.
#![allow(unsafe_code, reason = "this module is where they are")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use log::Log;

use pod_steer_ebpf::{Event, Slot, Traced};
use pod_steer_model::ids::{NetnsCookie, SocketCookie};
use rustix::net::{AddressFamily, SocketType};
use tokio::io::{Interest, unix::AsyncFd};

/// Integers, of which every bit pattern is a value.
trait Plain: Copy + Default {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for [u32; 9] {}

/// `getsockopt` of an option whose value is a plain integer.
fn get_option<T: Plain>(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointers are to live locals of the stated length; every bit pattern is a value of the integer type.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &mut len) };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// The beginning of `struct tcp_info` as this program reads it. A kernel with a shorter one leaves the rest zero.
pub type TcpInfo = [u8; 144];

/// The kernel's description of a TCP connection (`TCP_INFO`).
pub fn tcp_info(socket: &impl AsFd) -> io::Result<TcpInfo> {
    let mut info = [0; size_of::<TcpInfo>()];
    let mut len = info.len() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointers are to live locals of the stated length, and any bytes are valid there.
    let done = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut len) };
    if done == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// Returns memory that glibc keeps after loading programs, which takes 20 MiB for a moment. Also limits the number of arenas: by default
/// each helper thread gets one, which keeps the memory of its largest task.
pub fn shrink_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: both take plain integers, and may be called at any time from any thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::malloc_trim(0);
    }
}

/// Closes all descriptors from `first` on. No value in this process may own one of them. Since Linux 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: no memory is passed. That the descriptors have no owner is the caller's promise.
    // By its number, since the libc crate declares no such function for musl.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Cookie of a socket (`SO_COOKIE`, Linux 4.12).
pub fn socket_cookie(socket: &impl AsFd) -> io::Result<SocketCookie> {
    Ok(SocketCookie(rustix::net::sockopt::socket_cookie(socket)?))
}

/// Cookie of the network namespace that a socket lives in (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    get_option(socket, SO_NETNS_COOKIE).map(NetnsCookie)
}

/// Index of the device that a socket is bound to, or zero (`SO_BINDTOIFINDEX`, Linux 5.0).
pub fn bound_device(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    get_option(socket, SO_BINDTOIFINDEX)
}

/// Cookie of the calling thread's network namespace.
pub fn own_netns_cookie() -> io::Result<NetnsCookie> {
    // Neither bound nor connected: all it has is a namespace.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    netns_cookie(socket.as_fd())
}

/// A pidfd of the process at the other end of a unix socket (`SO_PEERPIDFD`, Linux 6.5).
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let fd: libc::c_int = get_option(socket, SO_PEERPIDFD)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Supplementary groups of the process at the other end of a unix socket (`SO_PEERGROUPS`, Linux 4.13).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const SO_PEERGROUPS: libc::c_int = 59;
    let mut groups = vec![0u32; 1024];
    let mut len = size_of_val(groups.as_slice()) as libc::socklen_t;
    // SAFETY: the buffer is live and `len` is its size in bytes.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERGROUPS, groups.as_mut_ptr().cast(), &mut len)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(len as usize / size_of::<u32>());
    Ok(groups)
}

/// A map of memory that is undone on drop.
struct Mapping {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn new(map: BorrowedFd<'_>, entries: usize, writable: bool) -> io::Result<Self> {
        Self::of_bytes(map, entries * size_of::<Slot>(), writable)
    }

    fn of_bytes(map: BorrowedFd<'_>, bytes: usize, writable: bool) -> io::Result<Self> {
        let prot = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // All of it is read or written: its pages are asked for at once.
        // SAFETY: a fresh mapping of a whole file at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), bytes, prot, libc::MAP_SHARED | libc::MAP_POPULATE, map.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { at, bytes }) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it outlives us.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

/// Numbers of a memory-mapped array map, which kernel programs change at the same time.
pub struct Counters(Mapping);

// SAFETY: all access to the mapping is atomic, from whatever thread.
unsafe impl Send for Counters {}

impl Counters {
    /// `map` is an array of this many numbers of 64 bits, made with `BPF_F_MMAPABLE` (Linux 5.5).
    pub fn open(map: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        Mapping::of_bytes(map, entries as usize * size_of::<u64>(), true).map(Self)
    }

    /// Adds to the number at this index, and wraps around; nothing happens if there is none.
    pub fn add(&self, index: u32, number: u64) {
        self.at(index).map(|at| at.fetch_add(number, Ordering::Relaxed));
    }

    /// Takes one from the number at this index.
    pub fn decrement(&self, index: u32) {
        self.add(index, u64::MAX);
    }

    /// The number at this index; zero if there is none.
    pub fn get(&self, index: u32) -> u64 {
        self.at(index).map_or(0, |at| at.load(Ordering::Relaxed))
    }

    /// Writes a number if it is still what it was, and says whether it did.
    pub fn replace(&self, index: u32, was: u64, number: u64) -> bool {
        self.at(index).is_some_and(|at| at.compare_exchange(was, number, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }

    fn at(&self, index: u32) -> Option<&AtomicU64> {
        let at = index as usize * size_of::<u64>();
        // SAFETY: within the mapping, which lives as long as `self`, and aligned, as the mapping begins a page; kernel
        // programs change it by atomic instructions only.
        (at + size_of::<u64>() <= self.0.bytes)
            .then(|| unsafe { AtomicU64::from_ptr(self.0.at.cast::<u8>().add(at).cast()) })
    }
}

/// Fills a memory-mapped array map that nobody reads yet.
pub fn write_slots(map: BorrowedFd<'_>, slots: &[Slot]) -> io::Result<()> {
    let mapping = Mapping::new(map, slots.len(), true)?;
    // SAFETY: the mapping is as long as `slots`, page-aligned, and no program sees the map yet.
    unsafe { ptr::copy_nonoverlapping(slots.as_ptr(), mapping.at.cast(), slots.len()) };
    Ok(())
}

/// Whether a memory-mapped array map that nobody writes any more holds just these slots.
pub fn same_slots(map: BorrowedFd<'_>, slots: &[Slot]) -> io::Result<bool> {
    let mapping = Mapping::new(map, slots.len(), false)?;
    let held = mapping.at.cast::<Slot>();
    // By atomic reads: a reference would promise that nothing writes to memory that the kernel shares.
    let same = |(index, slot): (usize, &Slot)| {
        // SAFETY: within the mapping, which is as long as `slots`, page-aligned, and lives until the end of this function.
        let (cookie, backend, of) = unsafe {
            let held = held.add(index);
            (
                AtomicU64::from_ptr(&raw mut (*held).cookie).load(Ordering::Relaxed),
                AtomicU32::from_ptr(&raw mut (*held).backend).load(Ordering::Relaxed),
                AtomicU32::from_ptr(&raw mut (*held).slots).load(Ordering::Relaxed),
            )
        };
        Slot::new(cookie, backend, of) == *slot
    };
    Ok(slots.iter().enumerate().all(same))
}

/// The id of the map that an array of maps has at this index (`BPF_MAP_LOOKUP_ELEM`). aya opens that map too, and closes it.
pub fn inner_map(maps: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
    /// The part of `union bpf_attr` for elements (`include/uapi/linux/bpf.h`).
    #[repr(C)]
    struct Attributes {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut id = 0u32;
    let mut attributes = Attributes {
        map_fd: maps.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: &raw const index as u64,
        value: &raw mut id as u64,
        flags: 0,
    };
    // SAFETY: key and value live during the call and have four bytes, as those of an array of maps.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &raw mut attributes, size_of::<Attributes>() as libc::c_uint)
    };
    if done == 0 { Ok(id) } else { Err(io::Error::last_os_error()) }
}

/// Sets elements of a map in this order, by one system call (`BPF_MAP_UPDATE_BATCH`, Linux 5.6), which aya does not
/// offer. Keys and values are 32 bits each, as of a map of maps, whose values are descriptors.
pub fn update_batch(map: BorrowedFd<'_>, keys: &[u32], values: &[u32]) -> io::Result<()> {
    const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
    /// The part of `union bpf_attr` for batches (`include/uapi/linux/bpf.h`).
    #[repr(C)]
    struct Attributes {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    assert!(keys.len() == values.len(), "a value for each key");
    let mut attributes = Attributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: both arrays live during the call and have `count` elements of the sizes that the map was made with.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_BATCH, &raw mut attributes, size_of::<Attributes>() as libc::c_uint)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a socket drop every packet that comes for it: a classic filter that returns 0.
pub fn drop_everything(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut code = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    // SAFETY: the program and its one instruction live during the call, which copies them.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Packets that a socket has dropped. For a listener these are mostly SYNs that found its accept queue full
/// (`SO_MEMINFO`, Linux 4.12; `SK_MEMINFO_DROPS`).
pub fn drops(socket: &impl AsFd) -> io::Result<u32> {
    const SO_MEMINFO: libc::c_int = 55;
    const SK_MEMINFO_DROPS: usize = 8;
    get_option::<[u32; 9]>(socket.as_fd(), SO_MEMINFO).map(|values| values[SK_MEMINFO_DROPS])
}

/// Attaches an `sk_reuseport` program to the group of a socket (`SO_ATTACH_REUSEPORT_EBPF`, Linux 4.5). aya offers it
/// on the loaded program only, which a helper thread does not have.
pub fn attach_reuseport(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let fd = program.as_raw_fd();
    // SAFETY: the option takes one descriptor number; both descriptors are open for the whole call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const fd).cast(),
            size_of_val(&fd) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads an event out of the ring's bytes, which may be unaligned.
pub fn read_event(bytes: &[u8]) -> Event {
    assert!(bytes.len() == size_of::<Event>(), "the caller has checked the length");
    // SAFETY: as long as an Event, which is integers only, so every bit pattern is a value.
    unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() }
}

/// Reads a traced choice out of its ring's bytes, in the same way.
pub fn read_traced(bytes: &[u8]) -> Traced {
    assert!(bytes.len() == size_of::<Traced>(), "the caller has checked the length");
    // SAFETY: as long as a Traced, which is integers only, so every bit pattern is a value.
    unsafe { bytes.as_ptr().cast::<Traced>().read_unaligned() }
}

/// An owner of one descriptor, which keeps the same descriptor open as long as it lives.
///
/// # Safety
///
/// `AsFd` alone does not promise that: the implementer does.
pub unsafe trait Owner: AsRawFd {}
// SAFETY: it is one descriptor.
unsafe impl Owner for OwnedFd {}
// SAFETY: it has its map's, which it never replaces.
unsafe impl Owner for RingBuf<MapData> {}
// SAFETY: it has its ring's, which it never replaces.
unsafe impl<T: Log> Owner for EbpfLogger<T> {}

/// Waits for a descriptor to become readable.
pub fn readable<T: Owner>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `Owner` promises it, and AsyncFd owns the owner.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}
