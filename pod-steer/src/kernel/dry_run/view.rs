//! The tables of the programs, read from their pins. The kernel refuses every write by these descriptors.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
};

use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, SockHash, lpm_trie::LpmTrie};
use pod_steer_ebpf::{
    Destination, FORWARDED_WORDS, OwnListener, Rule, RuleKey, SOURCE_SCOPE_BITS, Slot, SocketInfo, SourceKey,
    forwarded_place, port_place,
};
use pod_steer_model::explain::Tables;

use super::{FORWARD, KernelError, Result, bpf, destinations, migration, ports};
use crate::{
    ids::{BackendIndex, NetnsCookie},
    kernel::counters::read_only,
};

/// The tables of one network namespace. Each table of slots is read once.
pub struct View {
    seed: u64,
    netns: NetnsCookie,
    ports: Array<MapData, u64>,
    rules: HashMap<MapData, RuleKey, Rule>,
    by_table: Array<MapData, Rule>,
    switches: Array<MapData, u32>,
    tables: ArrayOfMaps<MapData, MapData>,
    destinations: HashMap<MapData, u32, Destination>,
    own_listeners: HashMap<MapData, OwnListener, u64>,
    /// By scope: the length and address of each network, and its table.
    networks: BTreeMap<u32, BTreeMap<(u32, [u8; 16]), u32>>,
    listening: BTreeSet<u64>,
    sockets: BTreeMap<u64, SocketInfo>,
    forwarded: Vec<u64>,
    /// By index: the tables of slots that have been read.
    read: RefCell<BTreeMap<u32, Rc<[Slot]>>>,
}

impl View {
    /// Reads the state that is pinned below `dir`.
    pub fn open(dir: &Path, netns: NetnsCookie) -> Result<Self> {
        let seed = migration::meta(&dir.join("maps"))?.map_or(0, |meta| meta.seed);
        let sources: LpmTrie<MapData, SourceKey, u32> = read_only(dir, "SOURCES", Map::LpmTrie)?;
        let mut networks: BTreeMap<u32, BTreeMap<_, u32>> = BTreeMap::new();
        for (key, table) in sources.iter().flatten() {
            let SourceKey { scope, addr } = key.data();
            let bits = key.prefix_len().saturating_sub(SOURCE_SCOPE_BITS);
            networks.entry(u32::from_be_bytes(scope)).or_default().insert((bits, addr), table);
        }
        // In this order: a socket is described before it enters the socket map.
        let listeners: SockHash<MapData, u64> = read_only(dir, "LISTENERS", Map::SockHash)?;
        let listening = listeners.keys().flatten().collect();
        let sockets: HashMap<MapData, u64, SocketInfo> = read_only(dir, "SOCKETS", Map::HashMap)?;
        let forwarded = if destinations::forwards(dir, netns) { forwarded(&dir.join(FORWARD))? } else { Vec::new() };
        Ok(Self {
            seed,
            netns,
            ports: pinned(&ports::pin(dir, netns), "PORTS", Map::Array)?,
            rules: read_only(dir, "RULES", Map::HashMap)?,
            by_table: read_only(dir, "TABLE_RULES", Map::Array)?,
            switches: read_only(dir, "SWITCHES", Map::Array)?,
            tables: read_only(dir, "TABLES", Map::ArrayOfMaps)?,
            destinations: read_only(dir, "DESTINATIONS", Map::HashMap)?,
            own_listeners: read_only(dir, "OWN_LISTENERS", Map::HashMap)?,
            networks,
            listening,
            sockets: sockets.iter().flatten().collect(),
            forwarded,
            read: RefCell::default(),
        })
    }

    /// Cookies of the sockets of each backend that are described, whether they still listen or not.
    pub fn sockets(&self) -> BTreeMap<BackendIndex, BTreeSet<u64>> {
        let mut sockets: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
        for (cookie, socket) in &self.sockets {
            sockets.entry(BackendIndex(socket.backend)).or_default().insert(*cookie);
        }
        sockets
    }

    fn read_table(&self, index: u32) -> std::result::Result<Rc<[Slot]>, MapError> {
        let table = Array::<MapData, Slot>::try_from(Map::Array(self.tables.get(&index, 0)?))?;
        table.iter().collect()
    }
}

/// Opens a map for reading only, wherever it is pinned.
fn pinned<T: TryFrom<Map, Error = MapError>>(pin: &Path, name: &'static str, kind: fn(MapData) -> Map) -> Result<T> {
    let fd = bpf::open_read_only(pin).map_err(KernelError::io("open", pin))?;
    MapData::from_fd(fd).map(kind).and_then(T::try_from).map_err(KernelError::map("open", name))
}

/// The words of the map of forwarded ports.
fn forwarded(dir: &Path) -> Result<Vec<u64>> {
    let map: Array<MapData, u64> = pinned(&dir.join("FORWARDED"), "FORWARDED", Map::Array)?;
    (0..FORWARDED_WORDS).map(|word| map.get(&word, 0).map_err(KernelError::map("read", "FORWARDED"))).collect()
}

impl Tables for View {
    fn seed(&self) -> u64 {
        self.seed
    }

    fn netns(&self) -> u64 {
        self.netns.0
    }

    fn port(&self, port: u16, family: u8) -> u16 {
        let (place, shift) = port_place(port, family);
        self.ports.get(&place, 0).map_or(0, |word| (word >> shift) as u16)
    }

    fn rule(&self, key: &RuleKey) -> Option<Rule> {
        self.rules.get(key, 0).ok()
    }

    fn rule_of_table(&self, table: u32) -> Option<Rule> {
        self.by_table.get(&table, 0).ok()
    }

    fn switch(&self, service: u32) -> u32 {
        self.switches.get(&service, 0).unwrap_or_default()
    }

    fn network(&self, scope: u32, client: &[u32; 4]) -> Option<(u32, u32)> {
        let client = super::bytes_of(client);
        let networks = self.networks.get(&scope)?;
        let found = networks.iter().rev().find(|((bits, network), _)| is_in(&client, network, *bits));
        found.map(|((bits, _), table)| (*bits, *table))
    }

    fn table(&self, index: u32) -> Rc<[Slot]> {
        if let Some(read) = self.read.borrow().get(&index) {
            return Rc::clone(read);
        }
        // An index that never had a table has nothing to read.
        let table = self.read_table(index).unwrap_or_default();
        self.read.borrow_mut().insert(index, Rc::clone(&table));
        table
    }

    fn is_listening(&self, cookie: u64) -> bool {
        self.listening.contains(&cookie)
    }

    fn socket(&self, cookie: u64) -> Option<SocketInfo> {
        self.sockets.get(&cookie).copied()
    }

    fn is_forwarded(&self, port: u16) -> bool {
        let (word, bit) = forwarded_place(port, false);
        self.forwarded.get(word as usize).is_some_and(|word| word >> bit & 1 != 0)
    }

    fn destination(&self, backend: u32) -> Option<Destination> {
        self.destinations.get(&backend, 0).ok()
    }

    fn newest(&self, key: &OwnListener) -> Option<u64> {
        self.own_listeners.get(key, 0).ok()
    }
}

/// Whether the first bits of an address are those of a network.
fn is_in(address: &[u8; 16], network: &[u8; 16], bits: u32) -> bool {
    let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
    (u128::from_be_bytes(*address) ^ u128::from_be_bytes(*network)) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_networks_that_begin_as_it_does() {
        let address = |text: &str| crate::procs::address_bytes(text.parse().unwrap());
        let client = address("10.1.2.3");
        for (network, bits) in [("0.0.0.0", 0), ("10.0.0.0", 8), ("10.1.2.2", 31), ("10.1.2.3", 32), ("10.1.2.3", 128)]
        {
            assert!(is_in(&client, &address(network), bits), "{network}/{bits}");
        }
        assert!(!is_in(&client, &address("11.0.0.0"), 8) && !is_in(&client, &address("10.1.2.2"), 32));
        assert!(is_in(&address("2001:db8::1"), &address("2001:db8::"), 64));
    }
}
