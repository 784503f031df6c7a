//! Lost SYNs. wrk only sees that a connection took a second longer, and does not count them.

use std::fs;

use anyhow::{Context as _, Result};
use pod_steer_tests::netns::NetNs;

use super::{lab::Lab, ways::Running};

/// Retransmitted SYNs, and SYNs that a listener dropped because its queue was full, of which `ListenOverflows` is a part.
const COUNTERS: [&str; 2] = ["TCPSynRetrans", "ListenDrops"];

/// Their number wherever connections of a contestant begin or end: at the client, on the host, at the servers.
pub fn syns(lab: &Lab, running: &Running) -> Result<u64> {
    let mut places = vec![lab.client.ns.try_clone()?, lab.host.net().try_clone()?];
    for server in running.servers.all() {
        places.extend(server.pids.first().map(|pid| NetNs::of_pid(*pid)).transpose()?);
    }
    let (mut seen, mut sum) = (Vec::new(), 0);
    for place in places {
        let id = place.id()?;
        if !seen.contains(&id) {
            seen.push(id);
            let table = place.run(|| fs::read_to_string("/proc/thread-self/net/netstat"));
            sum += count(&table.context("reading the counters of TCP")?).context("TCP has no counters of lost SYNs")?;
        }
    }
    Ok(sum)
}

/// A line of names, then one of numbers, each after `TcpExt:`.
fn count(table: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let fields: Vec<_> = names.split(' ').zip(numbers.split(' ')).collect();
    let number = |name: &&str| fields.iter().find(|(key, _)| key == name)?.1.parse::<u64>().ok();
    COUNTERS.iter().map(number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let table = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPSynRetrans\nTcpExt: 1 20 300 4000\n\
                     IpExt: ListenDrops\nIpExt: 7\n";
        assert_eq!(count(table), Some(4300));
        assert_eq!(count("TcpExt: ListenDrops\nTcpExt: 300\n"), None);
    }
}
