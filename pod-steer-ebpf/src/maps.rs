//! The maps, all pinned and shared by every program, and the constants that the daemon sets when it loads a program.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockHash},
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_release},
    macros::btf_map,
};
use pod_steer_ebpf::{
    BACKENDS_MAX_DEFAULT, BackendCounters, CANDIDATES_MAX, Candidate, CandidateKey, Destination, EVENTS_BYTES, Event,
    FLOWS_MAX, FORWARDED_WORDS, Flow, Hidden, LINKS_MAX, LOST_EVENTS, LOST_MAX, Link, ListenRate, MANAGED_PORTS_MAX,
    MISSES_MAX, ManagedBlock, ManagedPorts, Meta, Move, NOTE_BYTES, NOTES_MAX, Network, NoteKey, OWN_CONNECTIONS_MAX,
    OWN_LISTENERS_MAX, OWN_PORTS_MAX, OwnBlock, OwnConnection, OwnListener, OwnPorts, OwnSocket, PENDING_MAX,
    PORT_USERS_MAX, PORT_WORDS, PROBES_UNDER_WAY_MAX, PortKey, PortUser, ProbeKey, Reply, Rule, RuleKey, SERVICES_MAX,
    SOCKETS_MAX, SOURCES_MAX, ServiceCounters, SocketInfo, SourceKey, TABLES_MAX, Tuple, block_of,
};

use crate::table::Table;

const NO_PREALLOC: usize = 1;
const MMAPABLE: usize = 1 << 10;

/// Cookie of the namespace that this instance of the `sk_lookup` program is attached to. This program type has no
/// helper that returns it.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;
/// [`Meta::seed`].
#[unsafe(no_mangle)]
static SEED: u64 = 0;

/// Capacity of the socket map.
#[unsafe(no_mangle)]
static LISTENERS_MAX: u64 = 0;

/// Not zero if packets are forwarded to other namespaces from the one that this instance is attached in.
#[unsafe(no_mangle)]
static FORWARDS: u64 = 0;

/// The last port that programs of this namespace get from the kernel (`net.ipv4.ip_local_port_range`).
#[unsafe(no_mangle)]
static LOCAL_PORT_MAX: u64 = 0;

/// Index of the device by which the packets of a dry run come; else zero. The context of a lookup's dry run cannot tell it: Linux refuses one
/// in which `ingress_ifindex` is set.
#[unsafe(no_mangle)]
static DRY_IFINDEX: u64 = 0;

/// Reads a constant that the loader has set. (`aya_ebpf::Global` would do, but the kernel rejects the BTF name of the
/// union inside it.)
macro_rules! constant {
    ($reader:ident, $name:ident) => {
        #[inline(always)]
        pub fn $reader() -> u64 {
            // SAFETY: an initialised static; volatile, because the loader changes it after compilation.
            unsafe { ptr::read_volatile(&raw const $name) }
        }
    };
}
constant!(netns_cookie, NETNS_COOKIE);
constant!(seed, SEED);
constant!(listeners_max, LISTENERS_MAX);
constant!(forwards, FORWARDS);
constant!(dry_ifindex, DRY_IFINDEX);
constant!(local_port_max, LOCAL_PORT_MAX);

/// Version, seed and limits of this state, in entry 0. Only the daemon reads it.
#[btf_map]
pub static META: Array<Meta, 1> = Array::new();

/// Rules: (namespace, protocol, local address, port) to service and slot table.
#[btf_map]
pub static RULES: HashMap<RuleKey, Rule, { TABLES_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// The rule of each TCP port of this instance's namespace ([`pod_steer_ebpf::port_place`]). Every namespace has its own
/// map, so a packet for an unclaimed port costs one array lookup.
#[btf_map]
pub static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();

/// The rules again, indexed by table: `PORTS` refers to them.
#[btf_map]
pub static TABLE_RULES: Array<Rule, { TABLES_MAX as usize }> = Array::new();

/// Slot tables, each with two sides. Replacing an element of the side in use is one of the two writes that move new
/// connections. Inner maps differ in size.
#[btf_map]
pub static TABLES: ArrayOfMaps<Table, { 2 * TABLES_MAX as usize }> = ArrayOfMaps::new();

/// The other of the two writes: which side of all its tables a service uses.
#[btf_map]
pub static SWITCHES: Array<u32, { SERVICES_MAX as usize }> = Array::new();

/// Tables for clients of single networks: (side of a rule's table, network) to table.
#[btf_map]
pub static SOURCES: LpmTrie<SourceKey, u32, { SOURCES_MAX as usize }> = LpmTrie::new();

/// Probes under way: where each comes from, and the cookie of the socket that it is for.
#[btf_map]
pub static PROBES: HashMap<ProbeKey, u64, { PROBES_UNDER_WAY_MAX as usize }> = HashMap::new();

/// The listening sockets, by cookie. The kernel removes a closing socket before it drops the socket's queue.
#[btf_map]
pub static LISTENERS: SockHash<u64, { SOCKETS_MAX as usize }> = SockHash::new();

/// Descriptions of the listening sockets, by cookie: user space cannot read `LISTENERS`.
#[btf_map]
pub static SOCKETS: HashMap<u64, SocketInfo, { SOCKETS_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Numbers of registered sockets: the total, then one for each backend ([`pod_steer_ebpf::count_of`]). The daemon maps
/// it into its memory and corrects it.
#[btf_map]
pub static SOCKET_COUNTS: Array<u64, { BACKENDS_MAX_DEFAULT as usize + 1 }, MMAPABLE> = Array::new();

/// The rate at which each backend opens listeners.
#[btf_map]
pub static LISTEN_RATES: Array<ListenRate, { BACKENDS_MAX_DEFAULT as usize }> = Array::new();

/// The ports of each backend, and the purposes of each port.
#[btf_map]
pub static MANAGED_PORTS: HashMap<ManagedBlock, ManagedPorts, { MANAGED_PORTS_MAX as usize }, NO_PREALLOC> =
    HashMap::new();

/// The newest listener of each backend, by the port and address that its server asked for.
#[btf_map]
pub static OWN_LISTENERS: HashMap<OwnListener, u64, { OWN_LISTENERS_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// The ports that each backend serves of those that its service has claimed. Written by the daemon.
#[btf_map]
pub static OWN_PORTS: HashMap<OwnBlock, OwnPorts, { OWN_PORTS_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Connections of backends to their own ports, from `connect` until the connecting socket closes. A connection to the
/// same port of another machine is removed when it is established.
#[btf_map]
pub static OWN_CONNECTIONS: HashMap<OwnConnection, OwnSocket, { OWN_CONNECTIONS_MAX as usize }, NO_PREALLOC> =
    HashMap::new();

/// Numbers of these connections, by [`pod_steer_ebpf::own_source`]. The daemon maps it into its memory.
#[btf_map]
pub static OWN_SOURCES: Array<u64, { pod_steer_ebpf::OWN_SOURCES as usize }, MMAPABLE> = Array::new();

/// The user of each shared port: the one whose managed bind to it was the first to succeed.
#[btf_map]
pub static PORT_USERS: HashMap<PortKey, PortUser, { PORT_USERS_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Sockets whose bind was moved to another port. The kernel frees the entry with its socket.
#[btf_map]
pub static HIDDEN: SkStorage<Hidden> = SkStorage::new();

/// Where the packets of the backends that are forwarded to go. A destination is replaced as a whole.
#[btf_map]
pub static DESTINATIONS: HashMap<u32, Destination, { BACKENDS_MAX_DEFAULT as usize }, NO_PREALLOC> = HashMap::new();

/// The backends that may have a connection whose entries are lost.
#[btf_map]
pub static CANDIDATES: HashMap<CandidateKey, Candidate, { CANDIDATES_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// The backends whose packets are handed over to the other end of their pair, with the index of the end in the ingress namespace.
#[btf_map]
pub static PEERS: HashMap<u32, u32, { BACKENDS_MAX_DEFAULT as usize }, NO_PREALLOC> = HashMap::new();

/// Clients that a backend would answer past this machine.
#[btf_map]
pub static LINKS: HashMap<Link, Network, { LINKS_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// The ports that forwarded packets come to and go to ([`pod_steer_ebpf::forwarded_place`]). Packets for other ports pay one lookup.
#[btf_map]
pub static FORWARDED: Array<u64, { FORWARDED_WORDS as usize }> = Array::new();

/// Both directions of each forwarded connection of which a live socket was seen. No other packet can evict one.
#[btf_map]
pub static FLOWS: HashMap<Tuple, Flow, { FLOWS_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Both directions of every connection that was chosen for, and the connections that a socket here was chosen for. What [`FLOWS`] has is
/// read there; when such a connection ends, that is noted here.
#[btf_map]
pub static PENDING: LruHashMap<Tuple, Flow, { PENDING_MAX as usize }> = LruHashMap::new();

/// Connections that were looked for and not found: packets of theirs pass. The value is the time.
#[btf_map]
pub static MISSES: LruHashMap<Tuple, u64, { MISSES_MAX as usize }> = LruHashMap::new();

/// The last reply of each processor that the kernel forwards.
#[btf_map]
pub static REPLY: PerCpuArray<Reply, 1> = PerCpuArray::new();

#[btf_map]
pub static BACKEND_COUNTERS: PerCpuArray<BackendCounters, { BACKENDS_MAX_DEFAULT as usize }> = PerCpuArray::new();

#[btf_map]
pub static SERVICE_COUNTERS: PerCpuArray<ServiceCounters, { SERVICES_MAX as usize }> = PerCpuArray::new();

/// Sums of a backend's counters from before they last started at zero, because their layout had changed. Only the
/// daemon reads and writes it.
#[btf_map]
pub static BACKEND_TOTALS: HashMap<u32, BackendCounters, { BACKENDS_MAX_DEFAULT as usize }, NO_PREALLOC> =
    HashMap::new();

/// The same for the counters of a service.
#[btf_map]
pub static SERVICE_TOTALS: HashMap<u32, ServiceCounters, { SERVICES_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Connections that changed their backend before they were accepted: the cookie, and both backends. When the map is
/// full, further moves are not counted. Evicting an entry would leave the counts of both its backends wrong for ever.
#[btf_map]
pub static MOVED: HashMap<u64, Move, 65_536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

/// Items lost for lack of room, per CPU: events, after which the daemon reads all of `SOCKETS`, and descriptions of
/// sockets.
#[btf_map]
pub static EVENTS_LOST: PerCpuArray<u64, { LOST_MAX as usize }> = PerCpuArray::new();

/// Notes that a daemon leaves for the next one. The kernel keeps them as long as the steering that they describe.
#[btf_map]
pub static NOTES: HashMap<NoteKey, [u8; NOTE_BYTES], { NOTES_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Adds one to a counter. The addition must be one instruction although each CPU has its own copy: a program that runs
/// for a system call can be interrupted by one that runs for a packet, whose addition would otherwise be lost.
#[inline(always)]
pub fn increment(counter: *mut u64) {
    add(counter, 1);
}

/// Adds to a number by one atomic instruction. The sum wraps around.
#[inline(always)]
pub fn add(number: *mut u64, more: u64) {
    // SAFETY: an aligned number in a map's value, which the verifier has checked; other programs only add to it. (The
    // target has this one atomic instruction and no compare-and-swap, so `AtomicU64` offers no addition.)
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(number, more) };
}

/// Reports an event to the daemon, or counts that it was lost.
#[inline(always)]
pub fn emit(event: &Event) {
    if EVENTS.output(event, 0).is_err() {
        lost(LOST_EVENTS);
    }
}

/// Counts an item that was lost for lack of room.
#[inline(always)]
pub fn lost(what: u32) {
    if let Some(count) = EVENTS_LOST.get_ptr_mut(what) {
        increment(count);
    }
}

/// Whether a socket with this cookie is in the socket map. Only for `sk_lookup`, where the verifier knows the type of
/// the value.
#[inline(always)]
pub fn is_listening(cookie: u64) -> bool {
    let map = ptr::from_ref(&LISTENERS).cast_mut().cast();
    // SAFETY: the map and the key are valid. The socket is released without being used.
    unsafe {
        let socket = bpf_map_lookup_elem(map, (&raw const cookie).cast());
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}

/// Adds one to a counter of a backend or a service.
macro_rules! count {
    ($map:expr, $index:expr, $field:ident) => {
        if let Some(counters) = $map.get_ptr_mut($index) {
            // SAFETY: the verifier checked the pointer; only the address of the field is taken.
            $crate::maps::increment(unsafe { &raw mut (*counters).$field });
        }
    };
}
pub(crate) use count;

/// Index plus one of the backend whose cgroup the running program is attached to; zero until the daemon has written it.
/// The storage belongs to the attachment, so programs that run in nested cgroups find it too.
#[expect(deprecated, reason = "its successor, BPF_MAP_TYPE_CGRP_STORAGE, needs Linux 6.2 and no sock_ops has it")]
#[btf_map]
pub static CGROUPS: aya_ebpf::btf_maps::CgroupStorage<u64> = aya_ebpf::btf_maps::CgroupStorage::new();

/// Whether this port of this backend has the given purpose.
#[inline(always)]
pub fn managed(backend: u32, port: u16, proto: u8, purpose: u32) -> bool {
    purposes(backend, port, proto) & purpose != 0
}

/// The purposes of this port of this backend.
#[inline(always)]
pub fn purposes(backend: u32, port: u16, proto: u8) -> u32 {
    let key = ManagedBlock { backend, block: block_of(port), proto, pad: 0 };
    // SAFETY: aligned words are read, each at once.
    unsafe { MANAGED_PORTS.get(key) }.map_or(0, |ports| ports.purposes(port))
}

/// The switch of a service.
#[inline(always)]
pub fn switch(service: u32) -> u32 {
    // One aligned word: a reader sees the old or the new one.
    SWITCHES.get(service).copied().unwrap_or(0)
}

/// Makes a program differ from the one before it, in builds to which tests upgrade.
#[inline(always)]
pub fn differ() {
    if cfg!(feature = "test-program") {
        seed();
    }
}

/// Index of the backend that the calling program is attached for.
#[inline(always)]
pub fn current_backend() -> Option<u32> {
    differ();
    let stored = CGROUPS.get_ptr_mut();
    // SAFETY: bpf_get_local_storage never returns null.
    let stored = unsafe { *stored };
    if stored == 0 { None } else { Some((stored - 1) as u32) }
}
