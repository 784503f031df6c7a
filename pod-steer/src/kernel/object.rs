//! Loads the object. Maps are opened by their pins, or created and pinned; programs are always loaded anew, with this
//! daemon's constants.

use std::{
    collections::{BTreeMap, HashMap as StdHashMap, HashSet},
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, CgroupStorage, Map, MapData, MapError, RingBuf, SkStorage, SockHash},
    programs::{Program, ProgramError},
};
use pod_steer_ebpf::{ABI_VERSION, Hidden, Meta, SOCKETS_MAX};

use super::{
    Kernel, KernelError, Opened, Result,
    alive::Alive,
    apply::Published,
    backend_ports::BackendPorts,
    build_id::{Build, BuildMap},
    counters::Counters,
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
pub(super) const MAPS: [&str; 28] = [
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

/// The `AYA_LOG_LEVEL` that logs decisions (debug), and the one with which the verifier removes the calls.
const LOG_DECISIONS: u8 = 4;
const LOG_NOTHING: u8 = 0;

/// Constants and limits with which an instance is loaded.
#[derive(Clone, Copy)]
pub(super) struct Constants {
    pub seed: u64,
    pub netns_cookie: NetnsCookie,
    pub log_level: u8,
    pub backends_max: u32,
}

/// Loads an instance of the object. Its maps are those pinned in `pins`, or unpinned ones of its own.
///
/// `ports` is where the map of its namespace's ports is pinned; an instance without one does not use that map.
pub(super) fn instance(pins: Option<&Path>, ports: Option<&Path>, constants: &Constants) -> Result<Ebpf> {
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
        .map_max_entries("BACKEND_COUNTERS", constants.backends_max)
        .map_max_entries("BACKEND_TOTALS", constants.backends_max)
        .map_max_entries("LISTEN_RATES", constants.backends_max)
        .map_max_entries("SOCKET_COUNTS", constants.backends_max + 1);
    for (map, entries) in limits::chosen().iter().filter(|(map, _)| MAPS.contains(&map.as_str())) {
        loader.map_max_entries(map, *entries);
    }
    if let Some(pins) = pins {
        for map in MAPS {
            loader.map_pin_path(map, pins.join(map));
        }
    }
    match ports {
        Some(ports) => loader.map_pin_path("PORTS", ports),
        None => loader.map_max_entries("PORTS", 1),
    };
    loader.load(OBJECT).map_err(|source| KernelError::Load(Box::new(source)))
}

/// Loads one program of an instance. With `build`, other processes can read which build it is of.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str, build: Option<&BuildMap>) -> Result<()> {
    let failed = |source| KernelError::Program { name, source: Box::new(source) };
    match ebpf.program_mut(name) {
        Some(Program::SkLookup(program)) => program.load(),
        Some(Program::SkReuseport(program)) => program.load(),
        Some(Program::SockOps(program)) => program.load(),
        Some(Program::CgroupSock(program)) => program.load(),
        Some(Program::CgroupSockAddr(program)) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
    .map_err(failed)?;
    match (build, ebpf.program(name)) {
        (Some(build), Some(program)) => build.bind(program.fd().map_err(failed)?),
        _ => Ok(()),
    }
}

/// An instance with every program for cgroups and sockets loaded.
pub(super) fn programs(maps: &Path, constants: &Constants, build: &BuildMap) -> Result<Ebpf> {
    let mut programs = instance(Some(maps), None, constants)?;
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
    let mut ebpf = instance(None, None, &constants)?;
    let all = PROGRAMS.into_iter().chain(["steer"]);
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
        targets_written: HashSet::new(),
        forgotten: Default::default(),
        closed: Default::default(),
        listening: None,
        own: Own::open(&mut programs)?,
        programs,
    };
    let mut opened = Opened { kernel, events, logs: None, adopted, recovered, replaced, migrated };
    if log_decisions {
        opened.logs = aya_log::EbpfLogger::init(&mut opened.kernel.programs).ok();
    }
    Ok(opened)
}
