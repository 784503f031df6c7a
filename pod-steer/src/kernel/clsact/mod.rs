//! Attaches programs to network devices by filters of a clsact qdisc, on kernels without TCX, and detaches them. The filters stay without a
//! process. `message` builds and reads messages of rtnetlink(7), `requests` sends them. Choosing devices and programs does not belong here.
//!
//! A filter is ours if it has our priority and its program uses our map of forwarded ports. Pins of that map mark which devices may have our
//! filters (`clsact-COOKIE-INDEX`), and which have a qdisc that we have added (`qdisc-COOKIE-INDEX`). They name the namespace by its cookie,
//! because filters, unlike links, can be removed only from inside of it.

mod message;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::TcAttachType;

use super::{attach::names, bpf, destinations::FORWARD, devices::Device, object::FORWARD_MAPS};
use crate::{ids::NetnsCookie, netns, sys};
use message::CLSACT;
use requests::{Filters, Requests};

pub use message::{Filter, PRIORITY};

const DIRECTIONS: [TcAttachType; 2] = [TcAttachType::Egress, TcAttachType::Ingress];

/// The kinds of marks: the device may have our filters, or its qdisc is ours.
const FILTERS: &str = "clsact";
const QDISC: &str = "qdisc";

/// The namespace and the device in the name of a mark; `None` if it is another name.
pub(super) fn of_mark(name: &str) -> Option<(NetnsCookie, u32)> {
    let (kind, place) = name.split_once('-')?;
    let (cookie, index) = place.split_once('-')?;
    [FILTERS, QDISC].contains(&kind).then(|| Some((cookie.parse().ok()?, index.parse().ok()?)))?
}

/// The devices that may have filters or a qdisc of ours, by their namespaces.
pub(super) fn marked(dir: &Path) -> BTreeMap<NetnsCookie, BTreeSet<u32>> {
    let mut marked: BTreeMap<NetnsCookie, BTreeSet<u32>> = BTreeMap::new();
    for (cookie, index) in names(&dir.join(FORWARD)).iter().filter_map(|name| of_mark(name)) {
        marked.entry(cookie).or_default().insert(index);
    }
    marked
}

/// Removes the marks of a device.
pub(super) fn unmark(dir: &Path, netns: NetnsCookie, index: u32) {
    for kind in [FILTERS, QDISC] {
        let _ = fs::remove_file(mark(dir, kind, netns, index));
    }
}

/// Whether a device has the mark without which `unload` would not find its filters.
pub(super) fn is_marked(dir: &Path, netns: NetnsCookie, index: u32) -> bool {
    mark(dir, FILTERS, netns, index).symlink_metadata().is_ok()
}

fn mark(dir: &Path, kind: &str, netns: NetnsCookie, index: u32) -> PathBuf {
    dir.join(FORWARD).join(format!("{kind}-{netns}-{index}"))
}

/// Reads which filters could be ours, for each of these devices of the calling thread's namespace. One whose filters cannot be read has none:
/// the attempt to attach to it reads them again, and fails for it alone.
pub fn read_filters(devices: &mut [Device]) -> io::Result<()> {
    let mut requests = Requests::open()?;
    for device in devices {
        let read = DIRECTIONS.map(|direction| requests.filters(device.index, direction).unwrap_or_default().candidates);
        device.filters = read.concat();
    }
    Ok(())
}

/// The qdiscs and filters of the namespace of the calling thread.
pub(super) struct Clsact {
    dir: PathBuf,
    netns: NetnsCookie,
    requests: Requests,
    qdiscs: BTreeMap<u32, String>,
    /// The pinned map of forwarded ports, if it is there.
    map: Option<OwnedFd>,
}

impl Clsact {
    /// Reads the qdiscs. `dir` is the directory of pins.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut requests = Requests::open()?;
        let (netns, qdiscs) = (sys::own_netns_cookie()?, requests.qdiscs()?);
        let map = bpf::open(&dir.join(FORWARD).join(FORWARD_MAPS[0])).ok();
        Ok(Self { dir: dir.to_owned(), netns, requests, qdiscs, map })
    }

    /// Attaches a program to a device, or replaces the program of the filter that is ours.
    pub fn attach(
        &mut self,
        device: &Device,
        direction: TcAttachType,
        name: &str,
        program: BorrowedFd<'_>,
    ) -> io::Result<()> {
        self.mark(FILTERS, device.index)?;
        let Filters { candidates, .. } = self.requests.filters(device.index, direction)?;
        if let Some(own) = candidates.iter().find(|filter| self.is_ours(filter)) {
            return self.requests.replace(own, program, name);
        }
        self.make_qdisc(device)?;
        let is_free = |handle: &u32| candidates.iter().all(|filter| filter.handle != *handle);
        let handle = (1..).find(is_free).unwrap_or_default();
        let filter = Filter { device: device.index, direction, handle, program: 0 };
        self.requests.add(&filter, program, name)
    }

    /// Both directions of a device have programs that use the map which is pinned now: its mark becomes one of that map.
    pub fn renew_mark(&self, device: u32) -> io::Result<()> {
        let path = self.path(FILTERS, device);
        let id = |map: &OwnedFd| bpf::map_info(map).map(|info| info.id).ok();
        let marked = bpf::open(&path).ok().as_ref().and_then(id);
        if marked == self.map.as_ref().and_then(id) {
            return Ok(());
        }
        let _ = fs::remove_file(path);
        self.mark(FILTERS, device)
    }

    /// Adds a clsact qdisc if the device has none.
    fn make_qdisc(&mut self, device: &Device) -> io::Result<()> {
        match self.qdiscs.get(&device.index).map(String::as_str) {
            Some(CLSACT) => return Ok(()),
            // It would take a filter for sent packets, and run it for received ones.
            Some(other) => {
                let name = &device.name;
                return Err(io::Error::other(format!(
                    "its qdisc `{other}` leaves no room for clsact; remove it: tc qdisc del dev {name} {other}"
                )));
            }
            None => {}
        }
        // The mark comes first: one without a qdisc does no harm.
        self.mark(QDISC, device.index)?;
        let added = self.requests.add_qdisc(device.index);
        added.inspect_err(|_| drop(fs::remove_file(self.path(QDISC, device.index))))?;
        self.qdiscs.insert(device.index, CLSACT.to_owned());
        Ok(())
    }

    /// Our filters of these devices.
    pub fn own(&mut self, devices: &BTreeSet<u32>) -> io::Result<Vec<Filter>> {
        let mut own = Vec::new();
        for device in devices {
            for direction in DIRECTIONS {
                let Filters { candidates, .. } = self.requests.filters(*device, direction)?;
                own.extend(candidates.into_iter().filter(|filter| self.is_ours(filter)));
            }
        }
        Ok(own)
    }

    /// Replaces the program of a filter. One that is gone, perhaps with its device, needs none.
    pub fn replace(&mut self, filter: &Filter, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let replaced = self.requests.replace(filter, program, name);
        self.unless_gone(filter, replaced)
    }

    /// Removes our filters from a device, and its qdisc if we have added that and no other filter is in it. Returns the number of filters.
    pub fn detach(&mut self, device: u32) -> io::Result<usize> {
        let own = self.own(&BTreeSet::from([device]))?;
        for filter in &own {
            let deleted = self.requests.delete(filter);
            self.unless_gone(filter, deleted)?;
        }
        if self.path(QDISC, device).symlink_metadata().is_ok() && !self.is_used(device)? {
            match self.requests.delete_qdisc(device) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Err(error),
                _ => drop(self.qdiscs.remove(&device)),
            }
        }
        unmark(&self.dir, self.netns, device);
        Ok(own.len())
    }

    /// The same, unless a device has our filters for both directions.
    pub fn detach_unless_whole(&mut self, device: u32) -> io::Result<()> {
        let own = self.own(&BTreeSet::from([device]))?;
        let is_whole = DIRECTIONS.iter().all(|direction| own.iter().any(|filter| filter.direction == *direction));
        if is_whole { Ok(()) } else { self.detach(device).map(drop) }
    }

    /// An error of a change counts only if the filter is still there. The kernel has several for filters that are not.
    fn unless_gone(&mut self, filter: &Filter, changed: io::Result<()>) -> io::Result<()> {
        let Err(error) = changed else { return Ok(()) };
        let Filters { candidates, .. } = self.requests.filters(filter.device, filter.direction)?;
        if candidates.iter().any(|left| left.handle == filter.handle) { Err(error) } else { Ok(()) }
    }

    /// Whether the qdisc of a device is gone, or has filters.
    fn is_used(&mut self, device: u32) -> io::Result<bool> {
        let mut is_used = self.qdiscs.get(&device).is_none_or(|kind| kind != CLSACT);
        for direction in DIRECTIONS {
            let left = self.requests.filters(device, direction)?;
            is_used |= left.has_others || !left.candidates.is_empty();
        }
        Ok(is_used)
    }

    /// A program that was attached before the map was made anew uses the map that the mark is a pin of.
    fn is_ours(&self, filter: &Filter) -> bool {
        let marked = bpf::open(&self.path(FILTERS, filter.device)).ok();
        let ids = self.map.iter().chain(&marked).filter_map(|map| Some(bpf::map_info(map).ok()?.id));
        let used = bpf::program(filter.program).and_then(bpf::maps_of).unwrap_or_default();
        ids.into_iter().any(|id| used.contains(&id))
    }

    /// Pins a mark, unless it is there.
    fn mark(&self, kind: &str, device: u32) -> io::Result<()> {
        let path = self.path(kind, device);
        let Some(map) = &self.map else { return Err(io::Error::other("the map of forwarded ports is not pinned")) };
        if path.symlink_metadata().is_ok() { Ok(()) } else { bpf::pin(map.as_fd(), &path) }
    }

    fn path(&self, kind: &str, device: u32) -> PathBuf {
        mark(&self.dir, kind, self.netns, device)
    }
}

/// Our filters in the namespace of the calling thread.
pub(super) fn own(dir: &Path) -> io::Result<Vec<Filter>> {
    let marked = marked(dir);
    if marked.is_empty() {
        return Ok(Vec::new());
    }
    let mut clsact = Clsact::open(dir)?;
    marked.get(&clsact.netns).map_or_else(|| Ok(Vec::new()), |devices| clsact.own(devices))
}

/// The result of [`detach_all`].
#[derive(Debug, Default)]
pub(super) struct Detached {
    /// Number of filters that were removed.
    pub filters: usize,
    /// Devices and namespaces that still have some, each with the reason. Their marks stay.
    pub failed: Vec<(String, io::Error)>,
}

/// Removes our filters and qdiscs from all devices that are marked, each in its namespace. A namespace that is gone has none. A
/// failure affects only its own device or namespace.
pub(super) fn detach_all(dir: &Path) -> Detached {
    let (marked, mut done) = (marked(dir), Detached::default());
    if marked.is_empty() {
        return done;
    }
    let search = netns::search(&marked.keys().copied().collect());
    for (cookie, devices) in marked {
        let place = format!("the network devices of the namespace with cookie {cookie}");
        match search.found.get(&cookie) {
            Some(ns) => match netns::run_in(ns, cookie, || Ok(detach_each(&mut Clsact::open(dir)?, &devices))) {
                Ok(Detached { filters, failed }) => {
                    done.filters += filters;
                    done.failed.extend(failed);
                }
                Err(error) => done.failed.push((place, error)),
            },
            None if search.incomplete => done.failed.push((place, io::Error::other("the namespace cannot be found"))),
            None => devices.into_iter().for_each(|device| unmark(dir, cookie, device)),
        }
    }
    done
}

fn detach_each(clsact: &mut Clsact, devices: &BTreeSet<u32>) -> Detached {
    let mut done = Detached::default();
    for device in devices {
        match clsact.detach(*device) {
            Ok(filters) => done.filters += filters,
            Err(error) => done.failed.push((format!("the network device with index {device}"), error)),
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_its_namespace_and_device() {
        let place = Some((NetnsCookie(4096), 12));
        assert_eq!([of_mark("clsact-4096-12"), of_mark("qdisc-4096-12")], [place, place]);
        for other in ["12-in", "clsact-12", "clsact-x-12", "qdisc-4096-", "FLOWS", "other-4096-12"] {
            assert_eq!(of_mark(other), None, "{other}");
        }
    }
}
