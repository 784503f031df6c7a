//! Walks a slot table: first the slots that the hash selects, then every member once, then the reserve.

use aya_ebpf::{btf_maps::Array, cty::c_void, helpers::bpf_loop};
use pod_steer_ebpf::{Order, Range, Rule, Slot, first_entry};
#[cfg(doc)]
use pod_steer_ebpf::{PROBES_MAX, WALK_MAX};

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

/// The hash that selects a slot of a rule's table.
#[inline(always)]
pub fn hash(packet: &Packet, rule: &Rule) -> u64 {
    pod_steer_ebpf::hash(seed(), packet, rule)
}

/// Takes or declines candidate sockets.
pub trait Chooser {
    /// A table is walked next: its index.
    #[inline(always)]
    fn walks(&mut self, _table: u32) {}

    /// An entry of it is offered next: its number.
    #[inline(always)]
    fn tries(&mut self, _entry: u32) {}

    /// Takes the slot's socket, or declines it.
    fn offer(&mut self, slot: &Slot) -> Visit;
}

/// A visit of a table's entries, passed to the callback of `bpf_loop`.
struct Walk<'a, C> {
    table: &'a Table,
    chooser: &'a mut C,
    order: Order,
    taken: bool,
}

/// Offers the hash's first slot without reading the table's header, if the table has `slots` slots; otherwise returns
/// `None`.
#[inline(always)]
pub fn first<C: Chooser>(table: &Table, hash: u64, slots: u32, chooser: &mut C) -> Option<Visit> {
    let at = first_entry(hash, slots);
    match entry(table, at) {
        Some(slot) if slots != 0 && slot.slots == slots => {
            chooser.tries(at);
            Some(chooser.offer(slot))
        }
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
    let Some(order) = Order::of_table(header, hash, tried) else { return Visit::TryNext };
    walk(Walk { table, chooser, order, taken: false })
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
    walk(Walk { table, chooser, order: Order::of_range(range), taken: false })
}

#[inline(always)]
fn walk<C: Chooser>(mut walk: Walk<'_, C>) -> Visit {
    let steps = walk.order.steps();
    let context = (&raw mut walk).cast();
    // SAFETY: the callback has the signature that the helper calls, and `walk` outlives the call. Needs Linux 5.17.
    unsafe { bpf_loop(steps, step::<C> as *mut c_void, context, 0) };
    if walk.taken { Visit::Taken } else { Visit::TryNext }
}

/// One step of a visit. A non-zero result ends it.
extern "C" fn step<C: Chooser>(i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `context` is the `walk` of the caller, which nothing else uses meanwhile.
    let walk = unsafe { &mut *context.cast::<Walk<'_, C>>() };
    if let Some(at) = walk.order.entry(i)
        && let Some(slot) = entry(walk.table, at)
    {
        walk.chooser.tries(at);
        if let Visit::Taken = walk.chooser.offer(slot) {
            walk.taken = true;
            return 1;
        }
    }
    0
}
