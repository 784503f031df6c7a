//! How many clients full accept queues have turned away in a network namespace.

use std::{fs, fs::File, io};

use crate::{ids::NetnsCookie, netns};

/// The counter's name in the kernel (`LINUX_MIB_LISTENOVERFLOWS`).
const NAME: &str = "ListenOverflows";

/// How many clients the listeners of a network namespace have turned away since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnedAway {
    /// SYNs and completed handshakes for which an accept queue had no room (`LINUX_MIB_LISTENOVERFLOWS`).
    pub overflows: u64,
    /// The same, with those that were dropped for other reasons, such as lack of memory (`LINUX_MIB_LISTENDROPS`).
    pub drops: u64,
    /// SYNs for which a queue of half-open connections had no room (`LINUX_MIB_TCPREQQFULLDROP`).
    pub syn_drops: u64,
}

/// The counters of a namespace.
pub fn turned_away(ns: &File, cookie: NetnsCookie) -> io::Result<TurnedAway> {
    let text = netns::run_in(ns, cookie, || fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let count =
        |name: &str| value_of(&text, name).ok_or_else(|| io::Error::other(format!("/proc/net/netstat has no {name}")));
    Ok(TurnedAway { overflows: count(NAME)?, drops: count("ListenDrops")?, syn_drops: count("TCPReqQFullDrop")? })
}

/// The number since the namespace was made, of all its listeners. The kernel counts a SYN and a completed handshake for which the accept
/// queue had no room.
pub fn overflows(ns: &File, cookie: NetnsCookie) -> io::Result<u64> {
    let text = netns::run_in(ns, cookie, || fs::read_to_string("/proc/thread-self/net/netstat"))?;
    value_of(&text, NAME).ok_or_else(|| io::Error::other(format!("/proc/net/netstat has no {NAME}")))
}

/// A counter in the format of `/proc/net/netstat`: a line of names and a line of values, both after the name of a protocol.
fn value_of(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        if let Some(at) = names.split_ascii_whitespace().position(|of| of == name) {
            return values.split_ascii_whitespace().nth(at)?.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_its_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 17 19\nIpExt: InNoRoutes\nIpExt: 4\n";
        assert_eq!((value_of(text, NAME), value_of(text, "InNoRoutes")), (Some(17), Some(4)));
        assert_eq!((value_of(text, "Listen"), value_of("TcpExt: ListenOverflows\n", NAME)), (None, None));
        assert_eq!(value_of("TcpExt: ListenOverflows\nTcpExt: many\n", NAME), None);
    }

    #[test]
    fn this_kernel_has_it() {
        let text = fs::read_to_string("/proc/net/netstat").unwrap();
        assert!(value_of(&text, NAME).is_some(), "{text}");
    }
}
