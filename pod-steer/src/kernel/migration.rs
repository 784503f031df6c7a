//! A starting daemon brings the state of an earlier layout to its own. Maps that have not changed stay, with the
//! sockets, marks and counters in them. Each other map is created anew and filled beside the one in use. Then every
//! link gets a program that uses the new maps, and the old maps are removed.
//!
//! ```text
//! DIR/maps-new      being created and filled; a daemon that finds it removes it
//! DIR/maps-ready    filled, and links are being switched to it; a daemon that finds it continues
//! DIR/maps-old      no longer in use; a daemon that finds it beside `maps` removes it
//! ```
//!
//! Until the last link is switched, some programs write to the old maps and some to the new ones. After that, changes
//! of the old maps since the copy are carried over. The migrate programs are attached to sockets, not by links. What
//! they count until the first resync has attached the new one to every socket is added later ([`LateCounters`]).

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pod_steer_ebpf::{ABI_VERSION, Meta};

use super::{
    KernelError, Result,
    attach::names,
    bpf,
    build_id::{Build, BuildMap},
    elements::Elements,
    filling::{Filling, LateCounters},
    layouts::{self, OLDEST},
    object::{self, Constants},
    pins,
    upgrade::{Release, Replaced},
};
use crate::{
    abort::{self, Point},
    ids::NetnsCookie,
};

const MAPS: &str = "maps";
const NEW: &str = "maps-new";
const READY: &str = "maps-ready";
const OLD: &str = "maps-old";

/// The directories that a migration creates beside the others.
pub(super) const BESIDE: [&str; 3] = [NEW, READY, OLD];

/// A completed migration.
#[derive(Clone, Debug)]
pub struct Migrated {
    /// Version of the layout before.
    pub from: u32,
    /// Version of the layout now.
    pub to: u32,
    /// The maps that have changed.
    pub maps: BTreeSet<&'static str>,
    /// The links that were switched.
    pub replaced: Replaced,
    /// How long it took, including the loading of programs.
    pub took: Duration,
}

/// Reads the description of the state whose maps are pinned in a directory, of whatever version; `None` if there is no
/// state.
pub(super) fn meta(maps: &Path) -> Result<Option<Meta>> {
    let pin = maps.join("META");
    match pin.try_exists() {
        Ok(true) => {}
        // Without the right to look, it is not known whether there is one.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(KernelError::io("look for the map", &pin)(error));
        }
        Ok(false) | Err(_) => return Ok(None),
    }
    let read = Elements::open(&pin).and_then(|map| map.get(&0u32.to_ne_bytes()));
    let bytes = read.map_err(KernelError::io("read the map", &pin))?.unwrap_or_default();
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let seed = bytes.get(8..16).and_then(|seed| seed.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let meta = Meta { abi: word(0), backends_max: word(4), seed };
    // All zero: the daemon that created it died before writing it, so it never steered anything.
    Ok(Some(meta).filter(|meta| meta.abi != 0))
}

/// Checks that this version can read a state of version `abi`.
fn readable(dir: &Path, abi: u32) -> Result<()> {
    match abi {
        newer if newer > ABI_VERSION => Err(KernelError::NewerVersion { dir: dir.to_owned(), found: newer }),
        older if older < OLDEST => Err(KernelError::OlderVersion { dir: dir.to_owned(), found: older }),
        _ => Ok(()),
    }
}

/// Whether a state is pinned below `dir`. An error if this release cannot read it.
pub fn check_readable(dir: &Path) -> Result<bool> {
    let found = meta(&dir.join("maps"))?;
    found.map_or(Ok(false), |found| readable(dir, found.abi).map(|()| true))
}

/// The result of [`prepare`].
pub(super) struct PreparedState {
    pub migrated: Option<Migrated>,
    pub late: LateCounters,
    /// Maps whose pins were gone, recovered from the attached programs.
    pub recovered: Vec<&'static str>,
}

/// Migrates the state below `dir` to this version's layout, if it has another one.
pub(super) fn prepare(dir: &Path, log_level: u8) -> Result<PreparedState> {
    let maps = dir.join(MAPS);
    let (mut finished, mut late) = (None, LateCounters::default());
    if let Some(ready) = meta(&dir.join(READY))? {
        readable(dir, ready.abi)?;
        let (migrated, counters) = finish(dir, &ready, log_level)?;
        (finished, late) = (Some(migrated), counters);
    }
    for residue in [READY, NEW, OLD] {
        remove(&dir.join(residue))?;
    }
    let recovered = pins::recover_maps(dir)?;
    let mut prepared = PreparedState { migrated: finished, late, recovered };
    let Some(found) = meta(&maps)? else { return Ok(prepared) };
    readable(dir, found.abi)?;
    let changed = layouts::changed(&maps, &found)?;
    if !changed.is_empty() {
        let (migrated, late) = migrate(dir, &found, changed, log_level)?;
        (prepared.migrated, prepared.late) = (Some(migrated), late);
    }
    Ok(prepared)
}

/// Marks that a step of the migration is done, where tests can end or fail it.
fn step(point: Point) -> Result<()> {
    abort::or_fail(point).map_err(KernelError::io("migrate the state in", MAPS))
}

fn migrate(
    dir: &Path,
    found: &Meta,
    changed: BTreeSet<&'static str>,
    log_level: u8,
) -> Result<(Migrated, LateCounters)> {
    let (maps, new, ready) = (dir.join(MAPS), dir.join(NEW), dir.join(READY));
    let begun = Instant::now();
    let done = (|| {
        fs::create_dir(&new).map_err(KernelError::io("create the directory", &new))?;
        for name in names(&maps) {
            if object::MAPS.contains(&name.as_str()) && !changed.contains(name.as_str()) {
                let pin = new.join(&name);
                let pinned = bpf::open(&maps.join(&name)).and_then(|map| bpf::pin(map.as_fd(), &pin));
                pinned.map_err(KernelError::io("pin the map", pin))?;
            }
        }
        let constants = constants(found, log_level);
        let build = BuildMap::make(Build::own(log_level))?;
        let programs = object::programs(&new, &constants, &build)?;
        step(Point::MapsMade)?;
        let release = Release { dir, maps: &new, programs: &programs, build: &build, constants: &constants };
        let due = release.outdated()?;
        let mut filling = Filling::new(&maps, &new, found, ABI_VERSION, &changed)?;
        filling.fill()?;
        step(Point::MapsFilled)?;
        fs::rename(&new, &ready).map_err(KernelError::io("rename the directory", &new))?;
        step(Point::MapsReady)?;
        let replaced = due.replace(|| {
            filling.carry_over()?;
            step(Point::CarriedOver)
        });
        Ok((replaced.inspect_err(|_| filling.give_back())?, filling.late()))
    })();
    match done {
        Ok((replaced, late)) => {
            swap(dir)?;
            let took = begun.elapsed();
            Ok((Migrated { from: found.abi, to: ABI_VERSION, maps: changed, replaced, took }, late))
        }
        Err(error) => {
            // The links have their former programs, which use the old maps.
            [&new, &ready].into_iter().for_each(|residue| drop(remove(residue)));
            Err(error)
        }
    }
}

/// Finishes the migration of a daemon that ended after all new maps were filled.
fn finish(dir: &Path, ready: &Meta, log_level: u8) -> Result<(Migrated, LateCounters)> {
    let (maps, new, begun) = (dir.join(MAPS), dir.join(READY), Instant::now());
    let Some(found) = meta(&maps)? else {
        // That daemon ended between the two renames.
        swap(dir)?;
        let (maps, replaced, took) = (BTreeSet::new(), Replaced::default(), begun.elapsed());
        return Ok((Migrated { from: ready.abi, to: ready.abi, maps, replaced, took }, LateCounters::default()));
    };
    let changed = names(&new).into_iter().filter_map(|name| object::MAPS.into_iter().find(|map| *map == name));
    let id = |dir: &Path, name: &str| Elements::open(&dir.join(name)).map(|map| map.info.id).ok();
    let changed: BTreeSet<&'static str> = changed.filter(|name| id(&maps, name) != id(&new, name)).collect();
    let mut filling = Filling::new(&maps, &new, &found, ready.abi, &changed)?;
    let replaced = if ready.abi == ABI_VERSION {
        let constants = constants(ready, log_level);
        let build = BuildMap::make(Build::own(log_level))?;
        let programs = object::programs(&new, &constants, &build)?;
        let release = Release { dir, maps: &new, programs: &programs, build: &build, constants: &constants };
        release.outdated()?.replace(|| filling.carry_over())?
    } else {
        // Its programs are of another release. The next step of this daemon replaces them all.
        filling.carry_over()?;
        Replaced::default()
    };
    swap(dir)?;
    let took = begun.elapsed();
    Ok((Migrated { from: found.abi, to: ready.abi, maps: changed, replaced, took }, filling.late()))
}

fn constants(found: &Meta, log_level: u8) -> Constants {
    Constants { seed: found.seed, netns_cookie: NetnsCookie::default(), log_level, backends_max: found.backends_max }
}

/// Puts the new maps in the place of the old ones, which no link's program uses any more.
fn swap(dir: &Path) -> Result<()> {
    let rename = |from: &str, to: &str| {
        fs::rename(dir.join(from), dir.join(to)).map_err(KernelError::io("rename the directory", dir.join(from)))
    };
    if dir.join(MAPS).exists() {
        remove(&dir.join(OLD))?;
        rename(MAPS, OLD)?;
    }
    abort::here(Point::HalfSwapped);
    rename(READY, MAPS)?;
    abort::here(Point::Swapped);
    remove(&dir.join(OLD))
}

/// Removes a directory of pins.
fn remove(dir: &Path) -> Result<()> {
    for name in names(dir) {
        let pin = dir.join(name);
        fs::remove_file(&pin).map_err(KernelError::io("remove the pin", pin))?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::io("remove the directory", PathBuf::from(dir))(error))
        }
        _ => Ok(()),
    }
}
