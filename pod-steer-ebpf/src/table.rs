//! Walking a slot table: first the slots that the hash names, then every member once, then the reserve.

use aya_ebpf::{btf_maps::Array, cty::c_void, helpers::bpf_loop};
use pod_steer_ebpf::{FAMILY_V4, PROBES_MAX, Rule, Slot, WALK_MAX};

use crate::{
    lookup::Packet,
    maps::{is_listening, seed},
};

/// A slot table: each entry is the bytes of a [`Slot`]. (Linux before 6.2 takes no inner map that lacks BTF, as those of
/// the daemon do, where the one declared here has the BTF of a struct: `timer_off` then differs.) The largest array an
/// inner map may be is not known to the verifier, and need not be.
pub type Table = Array<[u64; WORDS], 2, { MMAPABLE | INNER_MAP }>;

/// 64-bit words of a [`Slot`].
const WORDS: usize = size_of::<Slot>() / size_of::<u64>();
const MMAPABLE: usize = 1 << 10;
const INNER_MAP: usize = 1 << 12;
/// The golden section of 2^32.
const GOLDEN: u64 = 0x9E37_79B9;

const _: () =
    assert!(size_of::<Slot>() == size_of::<[u64; WORDS]>() && align_of::<Slot>() == align_of::<[u64; WORDS]>());

#[inline(always)]
fn entry(table: &Table, index: u32) -> Option<&Slot> {
    // SAFETY: as long and as aligned as a Slot, which is integers only, so every bit pattern is a value.
    table.get(index).map(|bytes| unsafe { &*core::ptr::from_ref(bytes).cast() })
}

/// What a visitor of candidate sockets says.
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

/// The hash by which a slot of a rule's table is chosen. Not random and not round robin: a SYN cookie's final ACK repeats the lookup
/// and must come to the same listener.
#[inline(always)]
pub fn hash(packet: &Packet, rule: &Rule) -> u64 {
    let bits = if packet.family == u32::from(FAMILY_V4) { rule.client_bits_v4 } else { rule.client_bits_v6 };
    if bits == 0 { tuple_hash(packet) } else { client_hash(packet, u32::from(bits)) }
}

/// Hash of the first bits of the client's address, and of nothing else.
#[inline(always)]
fn client_hash(packet: &Packet, bits: u32) -> u64 {
    // Those of a word in network byte order, which begins with bit `before` of the address.
    let of = |word: u32, before: u32| {
        let bits = bits.saturating_sub(before).min(32);
        u64::from(word & ((u64::MAX << (32 - bits)) as u32).to_be())
    };
    let [a, b, c, d] = packet.remote;
    let h = mix(seed(), of(a, 0) << 32 | of(b, 32));
    finish(mix(h, of(c, 64) << 32 | of(d, 96)))
}

/// Hash of the connection's 4-tuple.
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

/// Somebody to whom candidate sockets are offered.
pub trait Chooser {
    /// Takes the slot's socket, or not.
    fn offer(&mut self, slot: &Slot) -> Visit;
}

/// A walk over a table's members, as the callback of `bpf_loop` sees it.
struct Walk<'a, C> {
    table: &'a Table,
    chooser: &'a mut C,
    /// Entry of the first member.
    first: u32,
    members: u32,
    /// A power of two, at least as many as the members, less one.
    mask: u32,
    /// Where the walk begins, of `mask + 1` places.
    start: u32,
    taken: bool,
}

/// Offers the first slot of the hash without a look at the table's header, if the table has `slots` slots; else nothing.
#[inline(always)]
pub fn first<C: Chooser>(table: &Table, hash: u64, slots: u32, chooser: &mut C) -> Option<Visit> {
    match entry(table, (hash as u32 & slots.wrapping_sub(1)).wrapping_add(1)) {
        Some(slot) if slots != 0 && slot.slots == slots => Some(chooser.offer(slot)),
        _ => None,
    }
}

/// Offers candidates until one is taken: [`PROBES_MAX`] slots by hash, then the members of the table, then those of the
/// reserve, of each [`WALK_MAX`] at the least if there are so many. So the live sockets of a table are found in this run, however
/// stale it is, unless they are very few of very many. A caller that has tried the [`first`] slot says so.
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

/// Finds out whether a socket of a table listens.
struct Listens;

impl Chooser for Listens {
    #[inline(always)]
    fn offer(&mut self, slot: &Slot) -> Visit {
        if is_listening(slot.cookie) { Visit::Taken } else { Visit::TryNext }
    }
}

/// Whether one of the sockets that are withheld from clients listens still.
#[inline(always)]
pub fn withholds(table: &Table) -> bool {
    let Some(header) = entry(table, 0) else { return false };
    let (members, reserve) = header.counts();
    let first = 1u32.wrapping_add(header.backend).wrapping_add(members).wrapping_add(reserve);
    header.slots != 0 && matches!(walk(table, first, header.slots, 0, &mut Listens), Visit::Taken)
}

/// Offers the sockets of the table as a walk does: its members, its reserve, and those that are withheld from clients.
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

/// Offers each of `members` entries from `first` on once, of which there is one at least; of more than 2 × [`WALK_MAX`] only a part, from
/// all over them. They are visited in steps of an odd number, near the golden section of a power of two: that comes to every place once,
/// and to few that are beside each other. Those that die together are.
#[inline(always)]
fn walk<C: Chooser>(table: &Table, first: u32, members: u32, hash: u64, chooser: &mut C) -> Visit {
    let mask = u32::MAX >> (members.wrapping_sub(1) | 1).leading_zeros();
    let start = (hash >> 32) as u32;
    let mut walk = Walk { table, chooser, first, members, mask, start, taken: false };
    let context = (&raw mut walk).cast();
    // Fewer than half of the places are no member.
    let steps = mask.wrapping_add(1).min(2 * WALK_MAX);
    // SAFETY: the callback has the signature that the helper calls, and `walk` outlives the call. Linux 5.17.
    unsafe { bpf_loop(steps, step::<C> as *mut c_void, context, 0) };
    if walk.taken { Visit::Taken } else { Visit::TryNext }
}

/// One step of the walk: non-zero ends it.
extern "C" fn step<C: Chooser>(i: u32, context: *mut c_void) -> i64 {
    // SAFETY: it is the `walk` of the caller, which nobody else uses meanwhile.
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
