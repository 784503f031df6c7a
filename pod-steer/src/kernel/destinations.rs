//! Where packets of forwarded backends go, and the ports of these packets. A port's bits are set before a table names a socket behind
//! it, and removed after the destination: programs of devices look at no packet whose port has no bit.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Instant,
};

use aya::maps::{Array, HashMap, Map, MapData};
use ipnet::IpNet;
use pod_steer_ebpf::{self as contract, Candidate, CandidateKey, FAMILY_V4, FAMILY_V6, Link, Network};

use super::{
    Kernel, KernelError, Result,
    attach::names,
    bpf,
    kept::Kept,
    marked::{EarlierPorts, PORTS_KEPT, bits_of, ports_of},
    object,
};
use crate::{
    ids::{BackendIndex, NetnsCookie, ServiceIndex},
    world::Destination,
};

/// The directory of what only forwarding needs: its maps, and the links of devices.
pub(super) const FORWARD: &str = "forward";

/// Writes the destinations and the ports.
pub(super) struct Destinations {
    map: HashMap<MapData, u32, contract::Destination>,
    /// Those that this daemon has written.
    written: BTreeMap<BackendIndex, Destination>,
    /// Those that it has removed, and when. Their connections may go on: a container that changes its network has none for a moment.
    former: BTreeMap<BackendIndex, (Destination, Instant)>,
    /// Connections may use the ports of one of these.
    is_former_used: bool,
    candidates: HashMap<MapData, CandidateKey, Candidate>,
    /// Those in the map.
    known: BTreeMap<CandidateKey, Candidate>,
    /// The bits of ports that are set, if that map is open.
    ports: Option<(Array<MapData, u64>, Vec<u64>)>,
    /// Those that an earlier daemon has set, while connections may use them.
    earlier: Option<EarlierPorts>,
    /// The backends whose packets are handed over to the other end of their pair, if that map is open.
    peers: Option<Kept<u32, u32>>,
    /// Where clients come from that a backend cannot answer at their own address, if that map is open.
    links: Option<Kept<Link, Network>>,
    dir: PathBuf,
}

impl Destinations {
    /// `dir` is the directory of pins.
    pub fn new(
        map: HashMap<MapData, u32, contract::Destination>,
        candidates: HashMap<MapData, CandidateKey, Candidate>,
        dir: &Path,
    ) -> Self {
        let known = candidates.iter().flatten().collect();
        let mut new = Self {
            map,
            written: BTreeMap::new(),
            former: BTreeMap::new(),
            is_former_used: false,
            candidates,
            known,
            ports: None,
            earlier: None,
            peers: None,
            links: None,
            dir: dir.to_owned(),
        };
        // Without the map, no packet is forwarded yet.
        let _ = new.open_ports();
        new.earlier = new.ports.as_ref().map(|(_, bits)| EarlierPorts { bits: bits.clone(), found: Instant::now() });
        new
    }

    /// Opens the maps that are there once a program of a namespace forwards.
    fn open_ports(&mut self) -> Result<()> {
        let pin = |map| MapData::from_pin(self.dir.join(FORWARD).join(map));
        let map = pin("FORWARDED").map(Map::Array).and_then(Array::try_from);
        let map = map.map_err(KernelError::map("open", "FORWARDED"))?;
        let bits = map.iter().map(|word| word.unwrap_or(u64::MAX)).collect();
        self.ports = Some((map, bits));
        let forward = self.dir.join(FORWARD);
        self.peers = Some(Kept::open(&forward, "PEERS")?);
        self.links = Some(Kept::open(&forward, "LINKS")?);
        Ok(())
    }

    /// Writes what is new of a plan, before the tables that refer to it.
    pub fn add(
        &mut self,
        planned: &BTreeMap<BackendIndex, Destination>,
        services: &BTreeMap<String, ServiceIndex>,
    ) -> Result<()> {
        // A failure affects only that destination.
        let mut failed = Ok(());
        for (index, destination) in planned {
            let mut destination = destination.clone();
            if let Some(written) = self.written.get(index).filter(|written| written.netns == destination.netns) {
                // A listener may have closed, and its connections go on.
                destination.keep_ports_of(written);
                if *written == destination {
                    continue;
                }
            }
            let result = self.map.insert(index.0, in_contract(&destination), 0);
            match result.map_err(KernelError::map("write a destination to", "DESTINATIONS")) {
                Ok(()) => drop(self.written.insert(*index, destination)),
                Err(error) => failed = Err(error),
            }
        }
        // A count comes after the candidates that it counts.
        let (counts, own): (Vec<_>, Vec<_>) =
            candidates(&self.written, services).into_iter().partition(|(key, _)| key.number == 0);
        for (key, candidate) in own.into_iter().chain(counts) {
            if self.known.get(&key) != Some(&candidate) {
                let written = self.candidates.insert(key, candidate, 0);
                match written.map_err(KernelError::map("write a candidate to", "CANDIDATES")) {
                    Ok(()) => drop(self.known.insert(key, candidate)),
                    Err(error) => failed = Err(error),
                }
            }
        }
        failed.and(self.set_ways()).and(self.set_ports(|before, now| before | now))
    }

    /// Removes what is not in a plan any more, after the tables that referred to it.
    pub fn remove(
        &mut self,
        planned: &BTreeMap<BackendIndex, Destination>,
        services: &BTreeMap<String, ServiceIndex>,
    ) -> Result<()> {
        let former: Vec<BackendIndex> =
            self.map.keys().flatten().map(BackendIndex).filter(|index| !planned.contains_key(index)).collect();
        for index in former {
            let _ = self.map.remove(&index.0);
            if let Some(former) = self.written.remove(&index) {
                self.former.insert(index, (former, Instant::now()));
                self.is_former_used = true;
            }
        }
        let wanted = candidates(&self.written, services);
        let former: Vec<CandidateKey> = self.known.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in former {
            let _ = self.candidates.remove(&key);
            self.known.remove(&key);
        }
        self.set_ways().and(self.set_ports(|_, now| now))
    }

    /// Writes how the packets of backends are handed over.
    fn set_ways(&mut self) -> Result<()> {
        if self.links.is_none() && self.ports.is_some() {
            // Programs of an earlier release had no such map.
            self.links = Kept::open(&self.dir.join(FORWARD), "LINKS").ok();
        }
        let peers = self.written.iter().filter_map(|(index, destination)| Some((index.0, destination.peer?)));
        let links = self.written.iter().flat_map(|(index, destination)| {
            destination.elsewhere.iter().map(|(device, network)| link(*index, *device, network))
        });
        let peers = self.peers.as_mut().map(|map| map.set(peers.collect()));
        let links = self.links.as_mut().map(|map| map.set(links.collect()));
        peers.into_iter().chain(links).collect()
    }

    fn set_ports(&mut self, becomes: impl Fn(u64, u64) -> u64) -> Result<()> {
        let Some((map, bits)) = &mut self.ports else { return Ok(()) };
        let all = self.written.values().chain(self.former.values().map(|(former, _)| former));
        let mut wanted = bits_of(all.flat_map(ports_of));
        for (wanted, earlier) in wanted.iter_mut().zip(self.earlier.iter().flat_map(|earlier| &earlier.bits)) {
            *wanted |= earlier;
        }
        for ((number, bits), wanted) in (0..).zip(bits).zip(wanted) {
            let word = becomes(*bits, wanted);
            if word != *bits {
                map.set(number, word, 0).map_err(KernelError::map("write a port to", "FORWARDED"))?;
                *bits = word;
            }
        }
        Ok(())
    }
}

/// For each service and port that clients come to: the backends that may have their connections, and how many there are.
fn candidates(
    planned: &BTreeMap<BackendIndex, Destination>,
    services: &BTreeMap<String, ServiceIndex>,
) -> BTreeMap<CandidateKey, Candidate> {
    let mut all = BTreeMap::new();
    for (index, destination) in planned {
        let Some(service) = services.get(&destination.service) else { continue };
        for (front, targets) in &destination.ports {
            let key = |number| CandidateKey { service: service.0, front: *front, number };
            for port in targets {
                let count: &mut Candidate = all.entry(key(0)).or_default();
                let Ok(number) = u16::try_from(count.backend + 1) else { continue };
                count.backend += 1;
                all.insert(key(number), Candidate { backend: index.0, port: *port, pad: 0 });
            }
        }
    }
    all
}

fn in_contract(destination: &Destination) -> contract::Destination {
    let Destination { ingress, netns, nsid, v4, v6, device, gateway_v4, gateway_v6, .. } = destination;
    let v4_word = |address: &Option<Ipv4Addr>| address.map_or(0, |address| v4_words(address)[0]);
    let v6_words = |address: &Option<Ipv6Addr>| address.map_or([0; 4], v6_words);
    contract::Destination {
        ingress_cookie: ingress.0,
        netns_cookie: netns.0,
        v4: v4_word(v4),
        nsid: *nsid,
        v6: v6_words(v6),
        gateway_v4: v4_word(gateway_v4),
        device: *device,
        gateway_v6: v6_words(gateway_v6),
    }
}

/// The clients of one device that a backend would answer past the ingress namespace.
fn link(backend: BackendIndex, device: u32, network: &IpNet) -> (Link, Network) {
    let (family, address, mask) = match network {
        IpNet::V4(v4) => (FAMILY_V4, v4_words(v4.network()), v4_words(v4.netmask())),
        IpNet::V6(v6) => (FAMILY_V6, v6_words(v6.network()), v6_words(v6.netmask())),
    };
    (Link { backend: backend.0, device, family: family.into() }, Network { address, mask })
}

fn v4_words(address: Ipv4Addr) -> [u32; 4] {
    [u32::from_ne_bytes(address.octets()), 0, 0, 0]
}

fn v6_words(address: Ipv6Addr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address.octets().as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// Whether the program of a namespace forwards, by its pinned link.
pub(super) fn forwards(dir: &Path, cookie: NetnsCookie) -> bool {
    let link = bpf::open(&dir.join("netns").join(cookie.to_string()));
    link.and_then(bpf::link_info).and_then(|info| uses_pinned(dir, info.program)).unwrap_or(false)
}

/// Whether a program uses the pinned maps of forwarding.
pub(super) fn uses_pinned(dir: &Path, program: u32) -> io::Result<bool> {
    let used = bpf::maps_of(bpf::program(program)?)?;
    // Every program that forwards uses this one.
    let pinned = bpf::map_info(bpf::open(&dir.join(FORWARD).join(object::FORWARD_MAPS[0]))?)?;
    Ok(used.contains(&pinned.id))
}

impl Kernel {
    /// Whether the program of a link forwards, by the maps that are pinned.
    pub(super) fn forwards_by(&self, link: &OwnedFd) -> bool {
        bpf::link_info(link).and_then(|info| uses_pinned(&self.dir, info.program)).unwrap_or(false)
    }

    /// Whether packets are forwarded from a namespace as far as its own program goes.
    pub fn forwards_from(&self, cookie: NetnsCookie) -> bool {
        self.pins.link(cookie).is_some_and(|link| self.forwards_by(link))
    }

    /// Whether packets are forwarded, or ever were since the directory of pins was made.
    pub fn has_forwarded(&self) -> bool {
        !names(&self.dir.join(FORWARD)).is_empty()
    }

    /// The program of a namespace forwards: from now on the ports are written. Every plan after this writes them.
    pub fn begin_forwarding(&mut self) -> Result<()> {
        self.destinations.open_ports()
    }

    /// The ports of all connections that are forwarded. The next plan leaves those unmarked that only an earlier daemon or a former destination
    /// has marked, and that no connection uses.
    pub fn ports_in_use(&mut self, ports: &BTreeSet<(u16, bool)>) {
        self.destinations.earlier.take_if(|earlier| !earlier.use_only(ports, Instant::now()));
        self.destinations.is_former_used = false;
        self.destinations.former.retain(|_, (former, removed)| {
            let is_used = ports_of(former).any(|port| ports.contains(&port));
            self.destinations.is_former_used |= is_used;
            is_used || removed.elapsed() < PORTS_KEPT
        });
    }

    /// Whether connections may go on at backends that are no destination any more.
    pub fn has_former_connections(&self) -> bool {
        self.destinations.is_former_used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewritten_ports_are_none_that_the_kernel_gives_to_programs() {
        let ends = |number, local_max| {
            let ports = || (0..=u64::from(u16::MAX)).map(|hash| contract::source_port(hash, number, 40_000, local_max));
            (ports().min(), ports().max())
        };
        assert_eq!([ends(0, 60_999), ends(5, 60_999)], [(Some(61_000), Some(65_535)); 2]);
        assert_eq!(ends(0, 50_000), (Some(50_001), Some(65_535)));
        assert_eq!(ends(0, 65_535), (Some(61_000), Some(65_535)), "programs may get any port");
        assert_eq!(ends(6, 60_999), (Some(40_000), Some(40_000)), "the client's own, when those are in use");
        assert_eq!(ends(7, 60_999), (Some(1_024), Some(32_767)), "another client has the same");
    }

    #[test]
    fn a_link_holds_the_bits_of_its_network() {
        let (key, value) = link(BackendIndex(3), 7, &"172.18.0.0/16".parse().unwrap());
        assert_eq!(key, Link { backend: 3, device: 7, family: FAMILY_V4.into() });
        let words = |octets: [u8; 4]| [u32::from_ne_bytes(octets), 0, 0, 0];
        assert_eq!(value, Network { address: words([172, 18, 0, 0]), mask: words([255, 255, 0, 0]) });
        let (_, all) = link(BackendIndex(3), 1, &"::/0".parse().unwrap());
        assert_eq!(all, Network::default(), "every address is in it");
    }

    #[test]
    fn the_candidates_of_a_port_are_numbered_behind_their_count() {
        let of = |service: &str, ports: &[(u16, &[u16])]| Destination {
            ingress: NetnsCookie(1),
            netns: NetnsCookie(2),
            nsid: 0,
            v4: None,
            v6: None,
            device: 0,
            gateway_v4: None,
            gateway_v6: None,
            elsewhere: BTreeSet::new(),
            peer: None,
            service: service.to_owned(),
            ports: ports
                .iter()
                .map(|(front, targets)| (*front, targets.iter().copied().collect::<BTreeSet<_>>()))
                .collect(),
        };
        let planned =
            [of("web", &[(80, &[8080])]), of("web", &[(80, &[8080, 45_000]), (81, &[9000])]), of("new", &[(80, &[1])])];
        let planned = (0..).map(BackendIndex).zip(planned).collect();
        let services = BTreeMap::from([("web".to_owned(), ServiceIndex(7))]);
        let all: Vec<(u16, u16, u32, u16)> = candidates(&planned, &services)
            .into_iter()
            .map(|(key, of)| {
                assert_eq!(key.service, 7, "a service without an index has no counters either");
                (key.front, key.number, of.backend, of.port)
            })
            .collect();
        let web =
            [(80, 0, 3, 0), (80, 1, 0, 8080), (80, 2, 1, 8080), (80, 3, 1, 45_000), (81, 0, 1, 0), (81, 1, 1, 9000)];
        assert_eq!(all, web);
    }
}
