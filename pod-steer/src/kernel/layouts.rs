//! Decides which maps of an earlier state can be used as they are, and how the others are filled. Every release that
//! changes a map adds to [`STEPS`]. Nothing here depends on running state.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use pod_steer_ebpf::{ABI_VERSION, Meta};

use super::{
    KernelError, Result,
    bpf::MapInfo,
    elements::{Bytes, Elements},
    limits, object,
};

/// The oldest state that this version can migrate.
pub(super) const OLDEST: u32 = 6;

/// A change of one map's elements in one version of the contract.
struct Step {
    /// [`ABI_VERSION`] of the first release with the new form.
    to: u32,
    map: &'static str,
    /// Converts an element of the version before. `None` leaves the element out.
    convert: fn(Bytes, Bytes) -> Option<(Bytes, Bytes)>,
}

/// Every change of a layout since [`OLDEST`], oldest first.
#[cfg(not(feature = "test-layout"))]
const STEPS: &[Step] = &[];
#[cfg(feature = "test-layout")]
mod later;
#[cfg(feature = "test-layout")]
use later::STEPS;

/// How a changed map is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// It cannot be filled: it holds what belongs to sockets, cgroups or memory of the kernel, which user space cannot
    /// copy. So its layout never changes; a release that needs more adds another map.
    Never,
    /// It starts empty: a ring of events, or entries that live only for a moment.
    Empty,
    /// Its counters start at zero, and the former ones are added to the totals in the map of this name. New counters
    /// are only ever added at the end of a value.
    Totals(&'static str),
    /// It holds such totals.
    WithCounters,
    /// Slot tables, each a map.
    Tables,
    /// [`Meta`].
    Meta,
    /// Element by element.
    Copied,
}

/// How the map of this name is filled.
pub(super) fn filled(map: &str) -> Filled {
    match map {
        "LISTENERS" | "HIDDEN" | "CGROUPS" | "OWN_SOURCES" => Filled::Never,
        "EVENTS" | "EVENTS_LOST" | "AYA_LOGS" | "PROBES" => Filled::Empty,
        "BACKEND_COUNTERS" => Filled::Totals("BACKEND_TOTALS"),
        "SERVICE_COUNTERS" => Filled::Totals("SERVICE_TOTALS"),
        "BACKEND_TOTALS" | "SERVICE_TOTALS" => Filled::WithCounters,
        "TABLES" => Filled::Tables,
        "META" => Filled::Meta,
        _ => Filled::Copied,
    }
}

/// Whether any release after `from` has changed the elements of a map.
fn has_steps(map: &str, from: u32) -> bool {
    STEPS.iter().any(|step| step.map == map && step.to > from)
}

/// Converts an element from one version's layout to another's.
pub(super) fn convert(map: &str, (from, to): (u32, u32), key: Bytes, value: Bytes) -> Option<(Bytes, Bytes)> {
    let mut steps = STEPS.iter().filter(|step| step.map == map && step.to > from && step.to <= to);
    steps.try_fold((key, value), |(key, value), step| (step.convert)(key, value))
}

/// A map as the object declares it.
struct Wanted {
    kind: u32,
    flags: u32,
    sizes: [u32; 3],
}

/// Every shared map of this version, with the sizes of this state.
fn wanted(backends_max: u32) -> Result<BTreeMap<&'static str, Wanted>> {
    let object = aya_obj::Object::parse(object::OBJECT).map_err(|error| KernelError::Load(Box::new(error.into())))?;
    let of = |name: &'static str| {
        let map = object.maps.get(name)?;
        let entries = match name {
            "BACKEND_COUNTERS" | "BACKEND_TOTALS" | "LISTEN_RATES" | "DESTINATIONS" => backends_max,
            "SOCKET_COUNTS" => backends_max + 1,
            _ => map.max_entries(),
        };
        let sizes = [map.key_size(), map.value_size(), limits::limit(name, entries)];
        Some((name, Wanted { kind: map.map_type(), flags: map.map_flags(), sizes }))
    };
    Ok(object::MAPS.into_iter().filter_map(of).collect())
}

impl Wanted {
    /// Whether the elements of a map have the same form.
    fn has_same_elements(&self, info: &MapInfo) -> bool {
        self.kind == info.kind && self.sizes[..2] == info.sizes[..2]
    }

    fn is(&self, info: &MapInfo) -> bool {
        self.has_same_elements(info) && self.flags == info.flags && self.sizes[2] == info.sizes[2]
    }
}

/// Whether a map of version `from` cannot be used as it is. An error if it cannot be filled anew either; no release is
/// built so.
fn is_changed(name: &str, info: &MapInfo, wanted: &Wanted, from: u32) -> std::result::Result<bool, ()> {
    let same_elements = wanted.has_same_elements(info);
    let steps = has_steps(name, from);
    match filled(name) {
        Filled::Never if steps => Err(()),
        // A raised limit applies to new states only. Within one version, only the limits of tests differ.
        Filled::Never if same_elements => Ok(false),
        _ if from == ABI_VERSION && same_elements => Ok(false),
        Filled::Never => Err(()),
        _ if from == ABI_VERSION => Err(()),
        Filled::Copied if !same_elements && !steps => Err(()),
        _ => Ok(steps || !wanted.is(info)),
    }
}

/// The maps pinned in a directory that cannot be used as they are. `found` describes their state.
pub(super) fn changed(maps: &Path, found: &Meta) -> Result<BTreeSet<&'static str>> {
    let mut changed = BTreeSet::new();
    for (name, wanted) in wanted(found.backends_max)? {
        let pin = maps.join(name);
        // A missing map is new in this version, or lost.
        let Ok(pinned) = Elements::open(&pin) else { continue };
        match is_changed(name, &pinned.info, &wanted, found.abi) {
            Ok(false) => {}
            Ok(true) => drop(changed.insert(name)),
            Err(()) => return Err(KernelError::Unreadable { pin, found: found.abi }),
        }
    }
    // Totals are written anew together with the counters that are added to them, so it is safe to do that twice.
    let totals = |name: &&'static str| match filled(name) {
        Filled::Totals(totals) => Some(totals),
        _ => None,
    };
    let with_counters: Vec<_> = changed.iter().filter_map(totals).collect();
    changed.extend(with_counters);
    if found.abi < ABI_VERSION {
        changed.insert("META");
    }
    Ok(changed)
}

#[cfg(all(test, not(feature = "test-layout")))]
mod tests {
    use super::*;

    /// Fails if a map has changed and the next daemon would not know.
    #[test]
    fn a_changed_layout_has_another_version() {
        let line = |(name, wanted): (&str, Wanted)| {
            let [key, value, entries] = wanted.sizes;
            format!("{name} type {} key {key} value {value} entries {entries} flags {:#x}\n", wanted.kind, wanted.flags)
        };
        let lines: String = wanted(pod_steer_ebpf::BACKENDS_MAX_DEFAULT).unwrap().into_iter().map(line).collect();
        let (slot, event) = (size_of::<pod_steer_ebpf::Slot>(), size_of::<pod_steer_ebpf::Event>());
        let lines = format!("version {ABI_VERSION}\n{lines}slot {slot}\nevent {event}\n");
        assert_eq!(
            lines,
            include_str!("layouts.txt"),
            "a map has changed: raise ABI_VERSION, add the change to STEPS, and write this to layouts.txt:\n{lines}"
        );
    }

    /// While one release takes over from another, programs of both use these maps, and a reply without an entry reaches no client. So a
    /// release that needs more of a connection adds another map.
    #[test]
    fn the_maps_of_flows_never_change() {
        let object = aya_obj::Object::parse(object::OBJECT).unwrap();
        let layouts = object::FORWARD_MAPS.map(|name| {
            let map = &object.maps[name];
            (name, map.map_type(), map.key_size(), map.value_size(), map.map_flags())
        });
        let known = [
            ("FORWARDED", 2, 4, 8, 0),
            ("FLOWS", 1, 40, 80, 1),
            ("PENDING", 9, 40, 80, 0),
            ("MISSES", 9, 40, 8, 0),
            ("PEERS", 1, 4, 4, 1),
            ("LINKS", 1, 12, 32, 1),
            ("REPLY", 6, 4, 96, 0),
        ];
        assert_eq!(layouts, known);
    }

    #[test]
    fn maps_that_cannot_be_filled_keep_their_layout() {
        let wanted = |entries| Wanted { kind: 1, flags: 0, sizes: [8, 16, entries] };
        let info = |value| MapInfo { id: 1, name: String::new(), kind: 1, flags: 0, sizes: [8, value, 64] };
        let before = ABI_VERSION - 1;
        assert_eq!(is_changed("LISTENERS", &info(16), &wanted(128), before), Ok(false), "it keeps its size");
        assert_eq!(is_changed("LISTENERS", &info(8), &wanted(64), before), Err(()));
        assert_eq!(is_changed("SOCKETS", &info(16), &wanted(64), before), Ok(false));
        assert_eq!(is_changed("SOCKETS", &info(16), &wanted(128), before), Ok(true), "it is copied");
        assert_eq!(is_changed("SOCKETS", &info(16), &wanted(128), ABI_VERSION), Ok(false), "a limit of a test");
        assert_eq!(is_changed("SOCKETS", &info(8), &wanted(64), before), Err(()), "there is no step");
        assert_eq!(is_changed("BACKEND_COUNTERS", &info(8), &wanted(64), before), Ok(true), "a counter more");
        assert_eq!(is_changed("EVENTS", &info(8), &wanted(64), before), Ok(true));
    }
}
