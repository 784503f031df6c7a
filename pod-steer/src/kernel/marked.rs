//! The ports whose packets the programs of devices look at, and how long those of former destinations are among them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use pod_steer_ebpf::{FORWARDED_WORDS, forwarded_place};

use crate::world::Destination;

/// The ports of a destination that was removed, and those that an earlier daemon has marked, stay marked for so long at least, and while
/// connections use them.
pub const PORTS_KEPT: Duration = Duration::from_secs(60);

/// The ports that clients of a destination come to, and, with `true`, those that their packets go to.
pub fn ports_of(destination: &Destination) -> impl Iterator<Item = (u16, bool)> {
    let fronts = destination.ports.keys().map(|port| (*port, false));
    fronts.chain(destination.ports.values().flatten().map(|port| (*port, true)))
}

/// The bits of ports: those that clients come to, and, with `true`, those that forwarded packets go to.
pub fn bits_of(ports: impl IntoIterator<Item = (u16, bool)>) -> Vec<u64> {
    let mut bits = vec![0; FORWARDED_WORDS as usize];
    for (port, is_target) in ports {
        let (word, bit) = forwarded_place(port, is_target);
        bits[word as usize] |= 1 << bit;
    }
    bits
}

/// The ports that were marked when this daemon began. It does not know which connections are behind those of a listener that has closed, or
/// of a destination that is gone.
pub struct EarlierPorts {
    pub bits: Vec<u64>,
    pub found: Instant,
}

impl EarlierPorts {
    /// Of all ports, connections use these ones now. False when no other port is left that only an earlier daemon has marked.
    pub fn use_only(&mut self, in_use: &BTreeSet<(u16, bool)>, now: Instant) -> bool {
        if now.saturating_duration_since(self.found) < PORTS_KEPT {
            return true;
        }
        for (bits, in_use) in self.bits.iter_mut().zip(bits_of(in_use.iter().copied())) {
            *bits &= in_use;
        }
        self.bits.iter().any(|bits| *bits != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_an_earlier_daemon_stay_marked_while_connections_use_them() {
        let found = Instant::now();
        let mut earlier = EarlierPorts { bits: bits_of([(80, false), (8080, true), (45_000, true)]), found };
        let after = |s| found + Duration::from_secs(s);
        assert!(earlier.use_only(&BTreeSet::new(), after(59)));
        assert_eq!(earlier.bits, bits_of([(80, false), (8080, true), (45_000, true)]), "a container may be on its way");
        assert!(earlier.use_only(&BTreeSet::from([(80, false), (45_000, true), (9000, true)]), after(60)));
        assert_eq!(earlier.bits, bits_of([(80, false), (45_000, true)]), "port 9000 is not one of its");
        assert!(!earlier.use_only(&BTreeSet::from([(80, true), (9000, true)]), after(90)));
        assert_eq!(earlier.bits, bits_of([]));
    }
}
