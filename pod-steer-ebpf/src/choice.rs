//! The choice of a slot, as far as it is arithmetic: the hash of a packet, and the order in which the entries of a table are tried. The
//! kernel programs walk tables by it, and `pod-steer explain` checks them with it.

use crate::{FAMILY_V4, PROBES_MAX, PROTO_TCP, Rule, Slot, Tuple, WALK_MAX};

/// 2^32 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9;
/// 2^64 divided by the golden ratio.
const GOLDEN_64: u64 = 0x9E37_79B9_7F4A_7C15;

/// Whether one of a packet's addresses is valid on a single link (`fe80::/10`): such a packet is not forwarded.
#[inline(always)]
pub const fn is_on_link(family: u32, source: &[u32; 4], destination: &[u32; 4]) -> bool {
    family != FAMILY_V4 as u32 && (is_link_local(source) || is_link_local(destination))
}

#[inline(always)]
const fn is_link_local(address: &[u32; 4]) -> bool {
    u32::from_be(address[0]) >> 22 == 0xfe80 >> 6
}

/// The fields of a packet that a choice depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// [`FAMILY_V4`] or [`FAMILY_V6`](crate::FAMILY_V6).
    pub family: u32,
    /// Number of the protocol in the IP header.
    pub protocol: u32,
    /// In host byte order.
    pub local_port: u32,
    /// In network byte order.
    pub remote_port: u16,
    /// The device by which it came in, which the kernel compares with a listener's; of one that belongs to a VRF, the VRF. 0 if there
    /// is none.
    pub ifindex: u32,
    /// In network byte order; IPv4 in the first word, the others zero.
    pub local: [u32; 4],
    /// The same.
    pub remote: [u32; 4],
}

impl Packet {
    /// A TCP packet that has come by a device.
    #[inline(always)]
    pub fn of_tuple(tuple: &Tuple, ifindex: u32) -> Self {
        Self {
            family: tuple.family as u32,
            protocol: PROTO_TCP as u32,
            local_port: u16::from_be(tuple.destination_port) as u32,
            remote_port: tuple.source_port,
            ifindex,
            local: tuple.destination,
            remote: tuple.source,
        }
    }
}

/// One step of the multiply-and-rotate hash; [`finish`] makes its low bits usable.
#[inline(always)]
pub const fn mix(h: u64, value: u64) -> u64 {
    (h ^ value).wrapping_mul(GOLDEN_64).rotate_left(29)
}

/// The finaliser of `splitmix64` (Steele, Lea, Flood 2014): every input bit reaches every output bit.
#[inline(always)]
pub const fn finish(mut h: u64) -> u64 {
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

/// The hash that selects a slot of a rule's table, given the seed of the state. It is neither random nor round robin: the final ACK of a SYN
/// cookie repeats the lookup and must reach the same listener.
#[inline(always)]
pub fn hash(seed: u64, packet: &Packet, rule: &Rule) -> u64 {
    let bits = if packet.family == u32::from(FAMILY_V4) { rule.client_bits_v4 } else { rule.client_bits_v6 };
    if bits == 0 { tuple_hash(seed, packet) } else { client_hash(seed, packet, u32::from(bits)) }
}

/// Hashes the first bits of the client's address, and nothing else.
#[inline(always)]
fn client_hash(seed: u64, packet: &Packet, bits: u32) -> u64 {
    // The selected bits of a word in network byte order, which begins with bit `before` of the address.
    let of = |word: u32, before: u32| {
        let bits = bits.saturating_sub(before).min(32);
        u64::from(word & ((u64::MAX << (32 - bits)) as u32).to_be())
    };
    let [a, b, c, d] = packet.remote;
    let h = mix(seed, of(a, 0) << 32 | of(b, 32));
    finish(mix(h, of(c, 64) << 32 | of(d, 96)))
}

/// Hashes the connection's 4-tuple.
#[inline(always)]
fn tuple_hash(seed: u64, packet: &Packet) -> u64 {
    let mut h = mix(seed, u64::from(packet.local_port) << 32 | u64::from(packet.remote_port));
    h = mix(h, u64::from(packet.remote[0]) << 32 | u64::from(packet.local[0]));
    if packet.family != u32::from(FAMILY_V4) {
        h = mix(h, u64::from(packet.remote[1]) << 32 | u64::from(packet.remote[2]));
        h = mix(h, u64::from(packet.local[1]) << 32 | u64::from(packet.local[2]));
        h = mix(h, u64::from(packet.remote[3]) << 32 | u64::from(packet.local[3]));
    }
    finish(h)
}

/// The entry of the slot that a hash selects first, in a table of `slots` slots (a power of two).
#[inline(always)]
pub const fn first_entry(hash: u64, slots: u32) -> u32 {
    (hash as u32 & slots.wrapping_sub(1)).wrapping_add(1)
}

/// The order in which entries of a table are tried: slots by hash, then one or two ranges of entries.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The number of slots, minus one.
    slots: u32,
    /// Slots that are tried by hash.
    probes: u32,
    /// Selects the next of them.
    hash: u64,
    /// The first of them has been tried.
    tried: bool,
    /// Place at which the walk over a range begins, of `mask + 1` places.
    start: u32,
    range: Range,
    last: Range,
}

impl Order {
    /// Of the table with this header: [`PROBES_MAX`] slots by hash, then its members, then its reserve. `None` if it is empty. `tried` says
    /// that the first slot has been tried.
    #[inline(always)]
    pub fn of_table(header: &Slot, hash: u64, tried: bool) -> Option<Self> {
        let slots = header.backend;
        let (members, reserve) = header.counts();
        if slots == 0 || members == 0 {
            return None;
        }
        let first = slots.wrapping_add(1);
        let range = Range::new(first, members);
        let last = Range::new(first.wrapping_add(members), reserve);
        let (slots, start) = (slots.wrapping_sub(1), (hash >> 32) as u32);
        Some(Self { slots, probes: PROBES_MAX, hash, tried, start, range, last })
    }

    /// Each entry of a range once.
    #[inline(always)]
    pub fn of_range(range: Range) -> Self {
        let last = Range { first: 0, members: 0, mask: 0, steps: 0 };
        Self { slots: 0, probes: 0, hash: 0, tried: false, start: 0, range, last }
    }

    /// The number of steps.
    #[inline(always)]
    pub fn steps(&self) -> u32 {
        self.probes + self.range.steps + self.last.steps
    }

    /// The entry that is tried in this step; `None` if none is. The steps are taken in order.
    #[inline(always)]
    pub fn entry(&mut self, step: u32) -> Option<u32> {
        if step < self.probes {
            let at = (self.hash as u32 & self.slots).wrapping_add(1);
            self.hash = self.hash.rotate_right(16).wrapping_mul(GOLDEN_64);
            return if self.tried && step == 0 { None } else { Some(at) };
        }
        let step = step - self.probes;
        if step < self.range.steps {
            self.range.entry(self.start, step)
        } else {
            self.last.entry(self.start, step - self.range.steps)
        }
    }
}

/// A range of entries that are all tried, in a scattered order.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The first entry.
    first: u32,
    /// Their number.
    members: u32,
    /// A power of two that is not below the number of members, minus one.
    mask: u32,
    /// Steps of the walk over them.
    steps: u32,
}

impl Range {
    /// Of more than 2 × [`WALK_MAX`] entries only a part is tried, spread over all of them.
    #[inline(always)]
    pub fn new(first: u32, members: u32) -> Self {
        let mask = u32::MAX >> (members.wrapping_sub(1) | 1).leading_zeros();
        // At most half of the places have no member.
        let steps = if members == 0 { 0 } else { mask.wrapping_add(1).min(2 * WALK_MAX) };
        Self { first, members, mask, steps }
    }

    /// The entry of a step. The stride is an odd number near the golden section of a power of two: it reaches every place once, and
    /// few neighbours one after the other. Neighbours tend to die together.
    #[inline(always)]
    fn entry(&self, start: u32, step: u32) -> Option<u32> {
        let stride = ((self.mask as u64 * GOLDEN) >> 32) as u32 | 1;
        let at = start.wrapping_add(step.wrapping_mul(stride)) & self.mask;
        if at < self.members { Some(self.first.wrapping_add(at)) } else { None }
    }
}
