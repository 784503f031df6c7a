//! Walks a slot table: first the slots that the hash selects, then every member once, then the reserve.

use aya_ebpf::{btf_maps::Array, cty::c_void, helpers::bpf_loop};
use pod_steer_ebpf::{FAMILY_V4, PROBES_MAX, Rule, Slot, WALK_MAX};

use crate::{
    maps::{is_listening, seed},
    packet::Packet,
};

/// A slot table. Each entry holds the bytes of a [`Slot`], but is not declared as one: Linux before 6.2 rejects an
/// inner map without BTF, such as the daemon makes, if the inner map declared here has the BTF of a struct, because
/// `timer_off` differs. The verifier does not know how large an inner map is, and does not need to.
pub type Table = Array<[u64; WORDS], 2, { MMAPABLE | INNER_MAP }>;

/// 64-bit words of a [`Slot`].
const WORDS: usize = size_of::<Slot>() / size_of::<u64>();
const MMAPABLE: usize = 1 << 10;
const INNER_MAP: usize = 1 << 12;
/// 2^32 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9;

const _: () =
    assert!(size_of::<Slot>() == size_of::<[u64; WORDS]>() && align_of::<Slot>() == align_of::<[u64; WORDS]>());

#[inline(always)]
fn entry(table: &Table, index: u32) -> Option<&Slot> {
    // SAFETY: the bytes have the size and the alignment of a Slot, which holds only integers, so every bit pattern is
    // valid.
    table.get(index).map(|bytes| unsafe { &*core::ptr::from_ref(bytes).cast() })
}

/// A [`Chooser`]'s answer to a candidate socket.
pub enum Visit {
    Taken,
    TryNext,
}

/// One step of the multiply-and-rotate hash; `finish` makes its low bits usable.
#[inline(always)]
pub fn mix(h: u64, value: u64) -> u64 {
    (h ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// The finaliser of `splitmix64` (Steele, Lea, Flood 2014): every input bit reaches every output bit.
#[inline(always)]
pub fn finish(mut h: u64) -> u64 {
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

/// The hash that selects a slot of a rule's table. It is neither random nor round robin: the final ACK of a SYN cookie
/// repeats the lookup and must reach the same listener.
#[inline(always)]
pub fn hash(packet: &Packet, rule: &Rule) -> u64 {
    let bits = if packet.family == u32::from(FAMILY_V4) { rule.client_bits_v4 } else { rule.client_bits_v6 };
    if bits == 0 { tuple_hash(packet) } else { client_hash(packet, u32::from(bits)) }
}

/// Hashes the first bits of the client's address, and nothing else.
#[inline(always)]
fn client_hash(packet: &Packet, bits: u32) -> u64 {
    // The selected bits of a word in network byte order, which begins with bit `before` of the address.
    let of = |word: u32, before: u32| {
        let bits = bits.saturating_sub(before).min(32);
        u64::from(word & ((u64::MAX << (32 - bits)) as u32).to_be())
    };
    let [a, b, c, d] = packet.remote;
    let h = mix(seed(), of(a, 0) << 32 | of(b, 32));
    finish(mix(h, of(c, 64) << 32 | of(d, 96)))
}

/// Hashes the connection's 4-tuple.
#[inline(always)]
fn tuple_hash(packet: &Packet) -> u64 {
    let mut h = mix(seed(), u64::from(packet.local_port) << 32 | u64::from(packet.remote_port));
    h = mix(h, u64::from(packet.remote[0]) << 32 | u64::from(packet.local[0]));
    if packet.family != u32::from(FAMILY_V4) {
        h = mix(h, u64::from(packet.remote[1]) << 32 | u64::from(packet.remote[2]));
        h = mix(h, u64::from(packet.local[1]) << 32 | u64::from(packet.local[2]));
        h = mix(h, u64::from(packet.remote[3]) << 32 | u64::from(packet.local[3]));
    }
    finish(h)
}

/// Takes or declines candidate sockets.
pub trait Chooser {
    /// Takes the slot's socket, or declines it.
    fn offer(&mut self, slot: &Slot) -> Visit;
}

/// A visit of a table's entries, passed to the callback of `bpf_loop`: slots by hash, then one or two ranges of entries.
struct Walk<'a, C> {
    table: &'a Table,
    chooser: &'a mut C,
    /// The number of slots, minus one.
    slots: u32,
    /// Slots that are offered by hash.
    probes: u32,
    /// Selects the next of them.
    hash: u64,
    /// The first of them has been offered.
    tried: bool,
    taken: bool,
    /// Place at which the walk over a range begins, of `mask + 1` places.
    start: u32,
    range: Range,
    last: Range,
}

/// A range of entries that are all offered, in a scattered order.
struct Range {
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
    /// Of more than 2 × [`WALK_MAX`] entries only a part is offered, spread over all of them.
    #[inline(always)]
    fn new(first: u32, members: u32) -> Self {
        let mask = u32::MAX >> (members.wrapping_sub(1) | 1).leading_zeros();
        // At most half of the places have no member.
        let steps = if members == 0 { 0 } else { mask.wrapping_add(1).min(2 * WALK_MAX) };
        Self { first, members, mask, steps }
    }

    /// The entry of a step. The stride is an odd number near the golden section of a power of two: it reaches every place once, and
    /// few neighbours one after the other. Neighbours tend to die together.
    #[inline(always)]
    fn entry(&self, start: u32, step: u32) -> Option<u32> {
        let stride = ((u64::from(self.mask) * GOLDEN) >> 32) as u32 | 1;
        let at = start.wrapping_add(step.wrapping_mul(stride)) & self.mask;
        if at < self.members { Some(self.first.wrapping_add(at)) } else { None }
    }
}

/// Offers the hash's first slot without reading the table's header, if the table has `slots` slots; otherwise returns
/// `None`.
#[inline(always)]
pub fn first<C: Chooser>(table: &Table, hash: u64, slots: u32, chooser: &mut C) -> Option<Visit> {
    match entry(table, (hash as u32 & slots.wrapping_sub(1)).wrapping_add(1)) {
        Some(slot) if slots != 0 && slot.slots == slots => Some(chooser.offer(slot)),
        _ => None,
    }
}

/// Offers candidates until one is taken: [`PROBES_MAX`] slots by hash, then the members of the table, then its reserve.
/// A walk visits at least [`WALK_MAX`] of each if there are that many. So one run finds a live socket of a table,
/// however stale it is, unless very few of very many live. `tried` says that the caller has already offered the
/// [`first`] slot.
#[inline(never)]
pub fn visit<C: Chooser>(table: &Table, hash: u64, tried: bool, chooser: &mut C) -> Visit {
    let Some(header) = entry(table, 0) else { return Visit::TryNext };
    let slots = header.backend;
    let (members, reserve) = header.counts();
    if slots == 0 || members == 0 {
        return Visit::TryNext;
    }
    let first = slots.wrapping_add(1);
    let range = Range::new(first, members);
    let last = Range::new(first.wrapping_add(members), reserve);
    let (slots, start) = (slots.wrapping_sub(1), (hash >> 32) as u32);
    walk(Walk { table, chooser, slots, probes: PROBES_MAX, hash, tried, taken: false, start, range, last })
}

/// Takes a socket if it listens.
struct Listens;

impl Chooser for Listens {
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        if is_listening(slot.cookie) { Visit::Taken } else { Visit::TryNext }
    }
}

/// Whether one of the table's withheld sockets still listens.
#[inline(always)]
pub fn withholds(table: &Table) -> bool {
    let Some(header) = entry(table, 0) else { return false };
    let (members, reserve) = header.counts();
    let first = 1u32.wrapping_add(header.backend).wrapping_add(members).wrapping_add(reserve);
    header.slots != 0 && matches!(all(table, Range::new(first, header.slots), &mut Listens), Visit::Taken)
}

/// Offers the table's sockets in one walk: its members, its reserve and its withheld sockets.
#[inline(always)]
pub fn every<C: Chooser>(table: &Table, chooser: &mut C) -> Visit {
    let Some(header) = entry(table, 0) else { return Visit::TryNext };
    let (members, reserve) = header.counts();
    let count = members.wrapping_add(reserve).wrapping_add(header.slots);
    if count == 0 {
        return Visit::TryNext;
    }
    all(table, Range::new(header.backend.wrapping_add(1), count), chooser)
}

/// Offers each entry of a range once.
#[inline(always)]
fn all<C: Chooser>(table: &Table, range: Range, chooser: &mut C) -> Visit {
    let last = Range { first: 0, members: 0, mask: 0, steps: 0 };
    walk(Walk { table, chooser, slots: 0, probes: 0, hash: 0, tried: false, taken: false, start: 0, range, last })
}

#[inline(always)]
fn walk<C: Chooser>(mut walk: Walk<'_, C>) -> Visit {
    let steps = walk.probes + walk.range.steps + walk.last.steps;
    let context = (&raw mut walk).cast();
    // SAFETY: the callback has the signature that the helper calls, and `walk` outlives the call. Needs Linux 5.17.
    unsafe { bpf_loop(steps, step::<C> as *mut c_void, context, 0) };
    if walk.taken { Visit::Taken } else { Visit::TryNext }
}

/// One step of a visit. A non-zero result ends it.
extern "C" fn step<C: Chooser>(i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the `walk` of the caller, which nothing else uses meanwhile.
    let walk = unsafe { &mut *context.cast::<Walk<'_, C>>() };
    let at = if i < walk.probes {
        let at = (walk.hash as u32 & walk.slots).wrapping_add(1);
        walk.hash = walk.hash.rotate_right(16).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        if walk.tried && i == 0 { None } else { Some(at) }
    } else {
        let i = i - walk.probes;
        if i < walk.range.steps {
            walk.range.entry(walk.start, i)
        } else {
            walk.last.entry(walk.start, i - walk.range.steps)
        }
    };
    if let Some(at) = at
        && let Some(slot) = entry(walk.table, at)
        && let Visit::Taken = walk.chooser.offer(slot)
    {
        walk.taken = true;
        return 1;
    }
    0
}
