//! Walks a slot table: first the slots that the hash selects, then every member once, then the reserve.

use aya_ebpf::{btf_maps::Array, cty::c_void, helpers::bpf_loop};
use pod_steer_ebpf::{FAMILY_V4, PROBES_MAX, Rule, Slot, WALK_MAX};

use crate::{
    lookup::Packet,
    maps::{is_listening, seed},
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
fn mix(h: u64, value: u64) -> u64 {
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

/// A walk over a table's members, passed to the callback of `bpf_loop`.
struct Walk<'a, C> {
    table: &'a Table,
    chooser: &'a mut C,
    /// Entry of the first member.
    first: u32,
    members: u32,
    /// A power of two that is not below the number of members, minus one.
    mask: u32,
    /// Place at which the walk begins, of `mask + 1` places.
    start: u32,
    taken: bool,
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
#[inline(always)]
pub fn visit<C: Chooser>(table: &Table, hash: u64, tried: bool, chooser: &mut C) -> Visit {
    let Some(header) = entry(table, 0) else { return Visit::TryNext };
    let slots = header.backend;
    let (members, reserve) = header.counts();
    if slots == 0 || members == 0 {
        return Visit::TryNext;
    }
    let mut h = hash;
    for probe in 0..PROBES_MAX {
        if !(tried && probe == 0)
            && let Some(slot) = entry(table, (h as u32 & slots.wrapping_sub(1)).wrapping_add(1))
            && let Visit::Taken = chooser.offer(slot)
        {
            return Visit::Taken;
        }
        h = h.rotate_right(16).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    let first = slots.wrapping_add(1);
    if let Visit::Taken = walk(table, first, members, hash, chooser) {
        return Visit::Taken;
    }
    if reserve == 0 {
        return Visit::TryNext;
    }
    walk(table, first.wrapping_add(members), reserve, hash, chooser)
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
    header.slots != 0 && matches!(walk(table, first, header.slots, 0, &mut Listens), Visit::Taken)
}

/// Offers the table's sockets in one walk: its members, its reserve and its withheld sockets.
#[inline(always)]
pub fn every<C: Chooser>(table: &Table, chooser: &mut C) -> Visit {
    let Some(header) = entry(table, 0) else { return Visit::TryNext };
    let (members, reserve) = header.counts();
    let all = members.wrapping_add(reserve).wrapping_add(header.slots);
    if all == 0 {
        return Visit::TryNext;
    }
    walk(table, header.backend.wrapping_add(1), all, 0, chooser)
}

/// Offers each of `members` entries (at least one) from `first` on once; of more than 2 × [`WALK_MAX`] only a part,
/// spread over all of them. The stride is an odd number near the golden section of a power of two: it reaches every
/// place once, and few neighbours one after the other. Neighbours tend to die together.
#[inline(always)]
fn walk<C: Chooser>(table: &Table, first: u32, members: u32, hash: u64, chooser: &mut C) -> Visit {
    let mask = u32::MAX >> (members.wrapping_sub(1) | 1).leading_zeros();
    let start = (hash >> 32) as u32;
    let mut walk = Walk { table, chooser, first, members, mask, start, taken: false };
    let context = (&raw mut walk).cast();
    // At most half of the places have no member.
    let steps = mask.wrapping_add(1).min(2 * WALK_MAX);
    // SAFETY: the callback has the signature that the helper calls, and `walk` outlives the call. Needs Linux 5.17.
    unsafe { bpf_loop(steps, step::<C> as *mut c_void, context, 0) };
    if walk.taken { Visit::Taken } else { Visit::TryNext }
}

/// One step of the walk. A non-zero result ends it.
extern "C" fn step<C: Chooser>(i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the `walk` of the caller, which nothing else uses meanwhile.
    let walk = unsafe { &mut *context.cast::<Walk<'_, C>>() };
    let stride = ((u64::from(walk.mask) * GOLDEN) >> 32) as u32 | 1;
    let at = walk.start.wrapping_add(i.wrapping_mul(stride)) & walk.mask;
    if at < walk.members
        && let Some(slot) = entry(walk.table, walk.first.wrapping_add(at))
        && let Visit::Taken = walk.chooser.offer(slot)
    {
        walk.taken = true;
        return 1;
    }
    0
}
