//! Memory of the kernel.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::netns::NetNs;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    recv, sendto, socket_with,
};

/// Objects of the kernel by their slab cache: their number and size. Objects, not pages: memory that a contestant frees leaves gaps,
/// whose reuse would not count for the next one.
pub struct Objects(BTreeMap<String, (u64, u64)>);

impl Objects {
    /// The current ones.
    pub fn now() -> Result<Self> {
        let table = fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?;
        let objects = Self::parse(&table);
        ensure!(!objects.0.is_empty(), "no objects in /proc/slabinfo");
        Ok(objects)
    }

    /// `name active_objs num_objs objsize ...`, after two lines of heading.
    fn parse(table: &str) -> Self {
        let cache = |line: &str| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?.to_owned();
            let active = fields.next()?.parse().ok()?;
            Some((name, (active, fields.nth(1)?.parse().ok()?)))
        };
        Self(table.lines().skip(2).filter_map(cache).collect())
    }

    /// Bytes by which they have grown since `before`, for so many things of one kind. A cache that has grown by less than one object for
    /// each [`FEW`] of them is left out, since other activity of the machine explains it.
    pub fn growth_b(&self, before: &Self, things: u64) -> u64 {
        let grown = |(name, (active, size)): (&String, &(u64, u64))| {
            let more = active.saturating_sub(before.0.get(name).map_or(0, |(active, _)| *active));
            if more * FEW >= things { more * size } else { 0 }
        };
        self.0.iter().map(grown).sum()
    }
}

const FEW: u64 = 4;

/// Flushes the tracked connections of a namespace, as `conntrack --flush` does. Entries of ended connections would last up to a minute.
pub fn forget_connections(ns: &NetNs) -> Result<()> {
    ns.run(flush).context("flushing the table of tracked connections")
}

fn flush() -> Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    let mut message = Vec::new();
    // nlmsghdr: length, type (subsystem 1, conntrack; message 2, delete), flags (request, acknowledge), sequence, port;
    // then nfgenmsg: any family, version 0, no resource. Without attributes it applies to all entries.
    message.extend(20_u32.to_ne_bytes());
    message.extend(0x0102_u16.to_ne_bytes());
    message.extend(5_u16.to_ne_bytes());
    message.extend([0; 12]);
    sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 256];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::empty())?;
    // nlmsgerr: the error number follows the header.
    let errno = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    ensure!(errno == Some(0), "the kernel answers {errno:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_grow_with_connections_are_counted() {
        let table = |tcp: u64, filp: u64| {
            Objects::parse(&format!(
                "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize> ...\n\
                 TCP {tcp} 130 2368 13 8 : tunables 0 0 0 : slabdata 10 10 0\nfilp {filp} 672 192 21 1 : tunables\n"
            ))
        };
        assert_eq!(table(53, 90).growth_b(&table(3, 80), 50), 50 * 2368);
        assert_eq!(table(53, 100).growth_b(&table(3, 80), 50), 50 * 2368 + 20 * 192);
        assert_eq!(table(3, 8).growth_b(&table(53, 80), 50), 0);
    }
}
