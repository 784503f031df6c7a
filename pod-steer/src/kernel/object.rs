//! Loads the object. Maps are opened by their pins, or created and pinned; programs are always loaded anew, with this
//! daemon's constants.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap, HashSet},
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, CgroupStorage, Map, MapData, MapError, RingBuf, SkStorage, SockHash},
    programs::{Program, ProgramError},
};
use pod_steer_ebpf::{ABI_VERSION, Flow, Hidden, Link, Meta, Network, Reply, SOCKETS_MAX, Tuple};

use super::{
    Kernel, KernelError, Opened, Result,
    alive::Alive,
    apply::Published,
    backend_ports::BackendPorts,
    bpf,
    build_id::{Build, BuildMap},
    counters::Counters,
    destinations::Destinations,
    limits,
    migration::{self, PreparedState},
    own::Own,
    pins::{self, Pins},
    ports::Rules,
    publish::{self, Publisher},
    quota::SocketCounts,
    sources::Sources,
    switch::Switches,
    upgrade::Release,
    workers::Outer,
};
use crate::ids::NetnsCookie;

pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod-steer.bpf.o"));

/// Every map of the object except `PORTS`, of which each namespace has its own. All are pinned under their own names.
pub(super) const MAPS: [&str; 30] = [
    "META",
    "RULES",
    "TABLE_RULES",
    "TABLES",
    "SWITCHES",
    "SOURCES",
    "PROBES",
    "LISTENERS",
    "SOCKETS",
    "SOCKET_COUNTS",
    "LISTEN_RATES",
    "MANAGED_PORTS",
    "OWN_LISTENERS",
    "OWN_PORTS",
    "OWN_CONNECTIONS",
    "OWN_SOURCES",
    "PORT_USERS",
    "HIDDEN",
    "DESTINATIONS",
    "CANDIDATES",
    "BACKEND_COUNTERS",
    "SERVICE_COUNTERS",
    "BACKEND_TOTALS",
    "SERVICE_TOTALS",
    "MOVED",
    "EVENTS",
    "EVENTS_LOST",
    "NOTES",
    "CGROUPS",
    "AYA_LOGS",
];

/// The programs that the daemon keeps loaded. `steer` is loaded once per ingress namespace.
const PROGRAMS: [&str; 9] = [
    "bind4",
    "bind6",
    "post_bind4",
    "post_bind6",
    "getsockname4",
    "getsockname6",
    "refuse_mptcp",
    "tcp_events",
    "migrate",
];

/// The programs of a device in a namespace from which packets are forwarded: by the direction, for devices with Ethernet headers and
/// for those without. The last one is for the ports of a bridge.
pub const FORWARDERS: [&str; 6] = ["from_wire", "from_bridge", "from_tunnel", "to_wire", "to_tunnel", "from_pair"];

/// The maps that only programs of such a namespace use.
pub(super) const FORWARD_MAPS: [&str; 7] = ["FORWARDED", "FLOWS", "PENDING", "MISSES", "PEERS", "LINKS", "REPLY"];

/// The `AYA_LOG_LEVEL` that logs decisions (debug), and the one with which the verifier removes the calls.
pub(super) const LOG_DECISIONS: u8 = 4;
pub(super) const LOG_NOTHING: u8 = 0;

/// Constants and limits with which an instance is loaded.
#[derive(Clone, Copy)]
pub(super) struct Constants {
    pub seed: u64,
    pub netns_cookie: NetnsCookie,
    pub log_level: u8,
    pub backends_max: u32,
}

/// The maps that the programs which choose only read: a dry run uses the pinned ones, and has all others for itself.
const READ_BY_CHOICES: [&str; 11] = [
    "RULES",
    "TABLE_RULES",
    "TABLES",
    "SWITCHES",
    "SOURCES",
    "PROBES",
    "LISTENERS",
    "OWN_LISTENERS",
    "OWN_SOURCES",
    "DESTINATIONS",
    "CANDIDATES",
];
/// The same of the maps of forwarding.
const READ_BY_FORWARDERS: [&str; 3] = ["FORWARDED", "PEERS", "LINKS"];
/// Entries of the maps that a dry run has for itself and writes to.
const DRY_ENTRIES: u32 = 1_024;

/// Where the maps of an instance are pinned. It has maps of its own in place of those that are not.
#[derive(Clone, Copy, Default)]
pub(super) struct MapPins<'a> {
    /// For dry runs of packets that come by the device with this index: only the maps that are read are those that are pinned.
    pub dry: Option<u32>,
    /// The directory of the shared ones.
    pub shared: Option<&'a Path>,
    /// The map of the ports of its namespace.
    pub ports: Option<&'a Path>,
    /// The directory of those that only an instance uses from whose namespace packets are forwarded.
    pub forward: Option<&'a Path>,
}

/// Loads an instance of the object.
pub(super) fn instance(pins: MapPins<'_>, constants: &Constants) -> Result<Ebpf> {
    let forwards = u64::from(pins.forward.is_some());
    if pins.dry.is_none() {
        pins.forward.into_iter().for_each(drop_other_layouts);
    }
    let local_port_max = local_port_max();
    let dry_ifindex = u64::from(pins.dry.unwrap_or(0));
    let listeners_max = u64::from(limits::limit("LISTENERS", SOCKETS_MAX));
    let mut loader = EbpfLoader::new();
    loader
        // The programs need no relocation against the kernel's types. Reading those takes half a second in a debug
        // build, and the daemon would notice no container meanwhile.
        .btf(None)
        .override_global("SEED", &constants.seed, true)
        .override_global("NETNS_COOKIE", &constants.netns_cookie.0, true)
        .override_global("AYA_LOG_LEVEL", &constants.log_level, true)
        .override_global("LISTENERS_MAX", &listeners_max, true)
        .override_global("FORWARDS", &forwards, true)
        .override_global("DRY_IFINDEX", &dry_ifindex, true)
        .override_global("LOCAL_PORT_MAX", &local_port_max, true)
        .map_max_entries("BACKEND_COUNTERS", constants.backends_max)
        .map_max_entries("BACKEND_TOTALS", constants.backends_max)
        .map_max_entries("DESTINATIONS", constants.backends_max)
        .map_max_entries("LISTEN_RATES", constants.backends_max)
        .map_max_entries("SOCKET_COUNTS", constants.backends_max + 1);
    let has_limit = |map: &str| MAPS.contains(&map) || FORWARD_MAPS.contains(&map);
    for (map, entries) in limits::chosen().iter().filter(|(map, _)| has_limit(map)) {
        loader.map_max_entries(map, *entries);
    }
    let is_shared =
        |map: &str| pins.dry.is_none() || READ_BY_CHOICES.contains(&map) || READ_BY_FORWARDERS.contains(&map);
    if let Some(shared) = pins.shared {
        for map in MAPS.into_iter().filter(|map| is_shared(map)) {
            loader.map_pin_path(map, shared.join(map));
        }
    }
    match pins.ports {
        Some(ports) => loader.map_pin_path("PORTS", ports),
        None => loader.map_max_entries("PORTS", 1),
    };
    for map in FORWARD_MAPS {
        match pins.forward {
            Some(forward) if is_shared(map) => loader.map_pin_path(map, forward.join(map)),
            Some(_) => loader.map_max_entries(map, DRY_ENTRIES),
            None => loader.map_max_entries(map, 1),
        };
    }
    if pins.forward.is_some() {
        loader.map_max_entries("PEERS", constants.backends_max);
    }
    loader.load(OBJECT).map_err(|source| KernelError::Load(Box::new(source)))
}

/// The last port that the kernel gives to programs of the namespace of the calling thread, which need not ask for one.
fn local_port_max() -> u64 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let last = range.ok().and_then(|range| range.split_whitespace().nth(1)?.parse::<u16>().ok());
    last.unwrap_or(u16::MAX).into()
}

/// An instance for dry runs of the programs of a namespace. Every map that they could write to is one of its own, so a run changes nothing.
pub(super) fn dry_instance(pins: MapPins<'_>, constants: &Constants) -> Result<Ebpf> {
    let pinned = |dir: Option<&Path>, maps: &[&str]| -> Vec<PathBuf> {
        dir.into_iter().flat_map(|dir| maps.iter().map(|map| dir.join(map)).collect::<Vec<_>>()).collect()
    };
    let needed = [pinned(pins.shared, &READ_BY_CHOICES), pinned(pins.forward, &READ_BY_FORWARDERS)].concat();
    for pin in needed.into_iter().chain(pins.ports.map(Path::to_owned)) {
        // The loader would create a map that is missing.
        fs::metadata(&pin).map_err(KernelError::io("open", &pin))?;
    }
    instance(pins, constants)
}

/// Unpins the maps of forwarding that have other elements than those of this release, which no release makes: connections go on only if
/// their client sends the next packet.
fn drop_other_layouts(forward: &Path) {
    let sizes = |map| match map {
        "FORWARDED" => [4, 8],
        "PEERS" => [4, 4],
        "LINKS" => [size_of::<Link>(), size_of::<Network>()],
        "MISSES" => [size_of::<Tuple>(), 8],
        "REPLY" => [4, size_of::<Reply>()],
        _ => [size_of::<Tuple>(), size_of::<Flow>()],
    };
    for map in FORWARD_MAPS {
        let pin = forward.join(map);
        let info = bpf::open(&pin).and_then(bpf::map_info);
        if info.is_ok_and(|info| [info.sizes[0] as usize, info.sizes[1] as usize] != sizes(map)) {
            let _ = fs::remove_file(pin);
        }
    }
}

/// Loads one program of an instance. With `build`, other processes can read which build it is of.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str, build: Option<&BuildMap>) -> Result<()> {
    match ebpf.program_mut(name) {
        Some(Program::SkLookup(program)) => program.load(),
        Some(Program::SkReuseport(program)) => program.load(),
        Some(Program::SockOps(program)) => program.load(),
        Some(Program::SchedClassifier(program)) => program.load(),
        Some(Program::CgroupSock(program)) => program.load(),
        Some(Program::CgroupSockAddr(program)) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(KernelError::load(name))?;
    match (build, ebpf.program(name)) {
        (Some(build), Some(program)) => build.bind(program.fd().map_err(KernelError::load(name))?),
        _ => Ok(()),
    }
}

/// An instance with every program for cgroups and sockets loaded.
pub(super) fn programs(maps: &Path, constants: &Constants, build: &BuildMap) -> Result<Ebpf> {
    let mut programs = instance(MapPins { shared: Some(maps), ..MapPins::default() }, constants)?;
    for name in PROGRAMS {
        load(&mut programs, name, Some(build))?;
    }
    Ok(programs)
}

/// A loaded program of an instance.
pub(super) fn program_fd<'a>(programs: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>> {
    let failed = |source| KernelError::Program { name, source: Box::new(source) };
    let program = programs.program(name).ok_or_else(|| failed(ProgramError::UnexpectedProgramType))?;
    Ok(program.fd().map_err(failed)?.as_fd())
}

/// The name under which [`probe`] reports the replacement of a slot table.
pub const TABLES: &str = "slot tables";

/// A program, or the slot tables, and whether this kernel accepts it.
pub struct ProbedProgram {
    /// Its name.
    pub name: &'static str,
    /// The verifier's or the loader's answer.
    pub result: Result<()>,
}

/// Loads every program and replaces a slot table once, for `doctor`. Pins nothing, and frees everything.
pub fn probe() -> Result<Vec<ProbedProgram>> {
    let constants =
        Constants { seed: 0, netns_cookie: NetnsCookie::default(), log_level: LOG_NOTHING, backends_max: 1 };
    let mut ebpf = instance(MapPins::default(), &constants)?;
    let all = PROGRAMS.into_iter().chain(["steer"]).chain(FORWARDERS);
    let mut probed: Vec<_> = all.map(|name| ProbedProgram { name, result: load(&mut ebpf, name, None) }).collect();
    let published = map::<Outer>(&mut ebpf, "TABLES").and_then(|mut tables| publish::try_once(&mut tables));
    probed.push(ProbedProgram { name: TABLES, result: published });
    Ok(probed)
}

pub(super) fn map<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(MapError::KeyNotFound);
    map.and_then(T::try_from).map_err(KernelError::map("open", name))
}

pub(super) fn open(dir: &Path, backends_max: u32, log_decisions: bool) -> Result<Opened> {
    let maps = dir.join("maps");
    let log_level = if log_decisions { LOG_DECISIONS } else { LOG_NOTHING };
    let PreparedState { migrated, late, recovered } = migration::prepare(dir, log_level)?;
    let found = migration::meta(&maps)?;
    let adopted = found.is_some() || !recovered.is_empty();
    let meta = found.unwrap_or_else(|| Meta {
        abi: ABI_VERSION,
        // The counters still exist if only the description was lost.
        backends_max: pins::entries(&maps.join("BACKEND_COUNTERS")).unwrap_or(backends_max),
        seed: RandomState::new().build_hasher().finish(),
    });
    // Created only now: any state that exists is known to be ours.
    for made in [dir].into_iter().map(Path::to_owned).chain(pins::DIRS.map(|sub| dir.join(sub))) {
        fs::create_dir_all(&made).map_err(KernelError::io("create the directory", made))?;
    }
    let constants =
        Constants { seed: meta.seed, netns_cookie: NetnsCookie::default(), log_level, backends_max: meta.backends_max };
    let build = BuildMap::make(Build::own(log_level))?;
    let mut programs = programs(&maps, &constants, &build)?;
    let release = Release { dir, maps: &maps, programs: &programs, build: &build, constants: &constants };
    let replaced = release.outdated()?.replace(|| Ok(()))?;
    let mut meta_map: Array<MapData, Meta> = map(&mut programs, "META")?;
    meta_map.set(0, meta, 0).map_err(KernelError::map("write", "META"))?;

    let rules = Rules::new(map(&mut programs, "RULES")?, map(&mut programs, "TABLE_RULES")?, dir);
    let by_table = rules.tables();
    let sources = Sources::new(map(&mut programs, "SOURCES")?, &by_table);
    let used = by_table.into_iter().chain(sources.tables());
    let publisher = Publisher::new(&maps.join("TABLES"), used)?;
    // The contents of the tables are compared when they are next published.
    let known = |(key, rule)| (key, Published { rule, ..Published::default() });
    let published: BTreeMap<_, _> = rules.read().map(known).collect();
    let events = map::<RingBuf<MapData>>(&mut programs, "EVENTS")?;
    let cgroups: CgroupStorage<MapData, u64> = map(&mut programs, "CGROUPS")?;
    let mut listeners: SockHash<MapData, u64> = map(&mut programs, "LISTENERS")?;
    // If the map is full, the daemon starts without it and tries again.
    let alive = Alive::announce(&mut listeners).ok();
    let hidden: SkStorage<MapData, Hidden> = map(&mut programs, "HIDDEN")?;
    let kernel = Kernel {
        dir: dir.to_owned(),
        pins: Pins::open(dir)?,
        log_level,
        build,
        seed: meta.seed,
        backends_max: meta.backends_max,
        rules,
        sockets: map(&mut programs, "SOCKETS")?,
        socket_counts: SocketCounts::open(&mut programs, meta.backends_max)?,
        moved: map(&mut programs, "MOVED")?,
        listeners,
        alive,
        ports: BackendPorts::new(map(&mut programs, "MANAGED_PORTS")?, map(&mut programs, "OWN_PORTS")?),
        cgroups,
        port_users: map(&mut programs, "PORT_USERS")?,
        hidden,
        counters: Counters::of(&mut programs)?,
        late,
        publisher,
        switches: Switches::new(map(&mut programs, "SWITCHES")?),
        switched: None,
        sources,
        published,
        migration_targets: StdHashMap::new(),
        holds: Default::default(),
        targets_written: HashSet::new(),
        forgotten: Default::default(),
        closed: Default::default(),
        listening: None,
        own: Own::open(&mut programs)?,
        destinations: Destinations::new(map(&mut programs, "DESTINATIONS")?, map(&mut programs, "CANDIDATES")?, dir),
        programs,
    };
    let mut opened = Opened { kernel, events, logs: None, adopted, recovered, replaced, migrated };
    if log_decisions {
        opened.logs = aya_log::EbpfLogger::init(&mut opened.kernel.programs).ok();
    }
    Ok(opened)
}
