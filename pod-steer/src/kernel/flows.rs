//! Removes the entries of forwarded connections that have ended. The kernel programs find a connection without an entry again by its
//! server's socket, so an entry may go too early, but for a server that speaks first.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use pod_steer_ebpf::{FLOW_FIN, FLOW_FIN_REPLY, FLOW_RST, Flow, Tuple};
use rustix::time::{ClockId, clock_gettime};

use super::{Kernel, KernelError, Result, destinations::FORWARD};

/// A connection whose both ends have sent FIN, or one of which was reset, is kept for so long: as long as the kernel waits for segments
/// that were delayed (`TCP_TIMEWAIT_LEN`), twice.
const ENDED_KEPT: Duration = Duration::from_secs(120);
/// One of whose ends one has sent FIN: the other may be gone.
const HALF_CLOSED_KEPT: Duration = Duration::from_secs(3_600);
/// Any other connection without a packet is kept for so long, as `nf_conntrack_tcp_timeout_established` has it.
const SILENT_KEPT: Duration = Duration::from_secs(5 * 24 * 60 * 60);

/// The work that removes entries. It reads all of them, which takes too long for the daemon's loop.
pub struct FlowSweep(PathBuf);

/// Entries of forwarded connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// That are left.
    pub left: usize,
    /// That were removed.
    pub removed: usize,
    /// The ports of those that are left: one that clients come to, or, with `true`, one that forwarded packets go to.
    pub ports: BTreeSet<(u16, bool)>,
}

impl Swept {
    fn keep(&mut self, key: &Tuple, flow: &Flow) {
        self.left += 1;
        self.ports.extend(ports(key, flow));
    }
}

impl FlowSweep {
    /// Removes the entries of connections that have ended.
    pub fn run(self) -> Result<Swept> {
        let (mut flows, mut pending) = (open(&self.0, "FLOWS")?, open(&self.0, "PENDING")?);
        let now = clock_gettime(ClockId::MonotonicCoarse);
        let now_ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
        let mut swept = Swept::default();
        // An entry that is written meanwhile may be seen twice, or not: the next sweep sees it.
        let keys: Vec<Tuple> = flows.keys().flatten().collect();
        for key in keys {
            let Ok(flow) = flows.get(&key, 0) else { continue };
            let back = flow.to.reversed();
            // The other entry may be of another connection.
            let other = flows.get(&back, 0).ok().filter(|other| other.to.reversed() == key);
            match (key.reply, other) {
                // It is looked at with the client's.
                (1, Some(_)) => swept.keep(&key, &flow),
                (_, other) if is_over(&flow, other.as_ref(), now_ns) => {
                    let _ = flows.remove(&key);
                    forget(&mut pending, &key, &flow);
                    swept.removed += 1;
                    if let Some(other) = other {
                        let _ = flows.remove(&back);
                        forget(&mut pending, &back, &other);
                    }
                }
                _ => swept.keep(&key, &flow),
            }
        }
        Ok(swept)
    }
}

fn open(dir: &Path, name: &'static str) -> Result<HashMap<MapData, Tuple, Flow>> {
    let map = MapData::from_pin(dir.join(FORWARD).join(name)).and_then(Map::from_map_data);
    map.and_then(HashMap::try_from).map_err(KernelError::map("open", name))
}

/// Removes what an entry was made from. Its packets would go to that container's address, whose it may not be any more.
fn forget(pending: &mut HashMap<MapData, Tuple, Flow>, key: &Tuple, flow: &Flow) {
    if pending.get(key, 0).is_ok_and(|former| former.to == flow.to) {
        let _ = pending.remove(key);
    }
}

/// The ports of an entry's connection, as [`Swept::ports`] has them.
fn ports(key: &Tuple, flow: &Flow) -> [(u16, bool); 2] {
    let (front, target) = match key.reply {
        0 => (key.destination_port, flow.to.destination_port),
        _ => (flow.to.source_port, key.source_port),
    };
    [(u16::from_be(front), false), (u16::from_be(target), true)]
}

/// Whether the connection of two entries has ended.
fn is_over(flow: &Flow, reply: Option<&Flow>, now_ns: u64) -> bool {
    let flags = flow.flags | reply.map_or(0, |reply| reply.flags);
    let seen_ns = reply.map_or(flow.seen_ns, |reply| reply.seen_ns.max(flow.seen_ns));
    let silent = Duration::from_nanos(now_ns.saturating_sub(seen_ns));
    let has_ended = flags & FLOW_RST != 0 || flags & (FLOW_FIN | FLOW_FIN_REPLY) == FLOW_FIN | FLOW_FIN_REPLY;
    // The kernel programs never leave the server's entry alone.
    let is_alone = flow.to.reply == 1 && reply.is_none();
    silent
        >= match flags & (FLOW_FIN | FLOW_FIN_REPLY) {
            _ if has_ended || is_alone => ENDED_KEPT,
            0 => SILENT_KEPT,
            _ => HALF_CLOSED_KEPT,
        }
}

impl Kernel {
    /// The work that removes the entries of connections that have ended.
    pub fn flow_sweep(&self) -> FlowSweep {
        FlowSweep(self.dir.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_entries_of_a_connection_have_its_ports() {
        let tuple = |source_port: u16, destination_port: u16, reply| Tuple {
            source_port: source_port.to_be(),
            destination_port: destination_port.to_be(),
            reply,
            ..Tuple::default()
        };
        let flow = |to| Flow { to, ..Flow::default() };
        let (request, reply) = (tuple(40_000, 80, 0), tuple(8080, 40_001, 1));
        let expected = [(80, false), (8080, true)];
        assert_eq!(ports(&request, &flow(reply.reversed())), expected);
        assert_eq!(ports(&reply, &flow(request.reversed())), expected);
    }

    #[test]
    fn a_connection_is_kept_while_it_may_go_on() {
        let flow = |flags, seen_s: u64| Flow { flags, seen_ns: seen_s * 1_000_000_000, ..Flow::default() };
        let at = |s: u64| s * 1_000_000_000;
        let day = 24 * 60 * 60;
        assert!(!is_over(&flow(0, 10), Some(&flow(0, 10)), at(10 + day)));
        assert!(is_over(&flow(0, 10), Some(&flow(0, 10)), at(10 + 5 * day)));
        let half_closed = |s: u64| is_over(&flow(FLOW_FIN, 10), Some(&flow(0, 10)), at(10 + s));
        assert!(!half_closed(3_599) && half_closed(3_600));
        let (client, server) = (flow(FLOW_FIN, 10), flow(FLOW_FIN_REPLY, 20));
        assert!(!is_over(&client, Some(&server), at(139)) && is_over(&client, Some(&server), at(140)));
        assert!(!is_over(&flow(FLOW_RST, 10), None, at(129)) && is_over(&flow(FLOW_RST, 10), None, at(130)));
        assert!(!is_over(&flow(0, 10), None, at(5)), "the clocks of two processors may differ");
    }
}
