//! Slot tables: which socket each slot of a service names. Pure: the same members give the same table, in any order, in
//! every process and after every restart.
//!
//! It is Maglev (Eisenbud et al., NSDI 2016) with two changes, because plain Maglev with exact shares moves up to 7 %
//! of the slots when one of 200 members leaves:
//!
//! - **Quotas.** How many slots a member owns is computed first, exactly: its share of the weights, rounded down, or
//!   up for as many members as it takes to fill the table. Maglev gets its shares from the turns.
//! - **Claims that keep their place.** A member walks its own permutation of the slots and claims one at a time. The
//!   time of a claim depends only on its place in the permutation and on the member's weight, not on earlier claims of
//!   others. A slot belongs to the earliest claim on it. In Maglev a member that meets a taken slot takes the next free
//!   one in the same turn, so one member less shifts all later claims.
//!
//! Without quotas the earliest claim would be weighted rendezvous hashing: only what must move does, but shares are
//! only roughly right. With quotas it is a stable matching (Gale and Shapley 1962) of members that prefer their early
//! claims and slots that prefer the earliest claim. That matching is unique, so the order of the work does not matter.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use crate::ids::{BackendIndex, SocketCookie};

/// Slots of a table of at most [`SMALL_MEMBERS_MAX`] members.
const SMALL_SLOTS: u32 = 4_096;
/// Members of the largest table of [`SMALL_SLOTS`].
const SMALL_MEMBERS_MAX: usize = 256;
/// Slots of the next larger tables. As in a small one, a member of average weight has at least 16. More would be more
/// exact, but the time to build a table grows with its slots.
const MEDIUM_SLOTS: u32 = 32_768;
/// Members of the largest table of [`MEDIUM_SLOTS`].
const MEDIUM_MEMBERS_MAX: usize = 2_048;
/// Slots of larger tables, and so the most members of any.
const LARGE_SLOTS: u32 = 65_536;

/// Fractional bits of [`turn_times`].
const TURN_BITS: u32 = 24;
/// Bits of the heaviest member's period: two weights that differ by less than 2^-16 may claim at the same pace.
const PERIOD_BITS: u32 = 16;
/// Longest period. A member 2^19 times lighter than the heaviest claims no more slowly than this; its quota is right
/// all the same. The limit keeps a claim's time within 64 bits: 35 + 24 bits, and 4 for the sum of 1/1 … 1/65,536,
/// which is below 12.
const PERIOD_MAX: u128 = 1 << 35;

/// A listening socket with its weight among the sockets of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Cookie of the socket: its identity, and the only input of its permutation.
    pub cookie: SocketCookie,
    /// Index of the backend that owns the socket.
    pub backend: BackendIndex,
    /// Share of new connections relative to the other members'. A socket with 0 is not a member.
    pub weight: u64,
    /// Its namespace is not the ingress namespace, and packets are forwarded to it.
    pub is_forwarded: bool,
}

/// The result of [`build`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotTable {
    /// For each slot, the index in `members` of its owner. Their number is [`slot_count`].
    pub slots: Vec<u32>,
    /// Every member once, by ascending cookie. A member whose share is below one slot may own none.
    pub members: Vec<Member>,
}

/// Number of slots of a table with so many members: none, one, or a power of two (the kernel program masks a hash with
/// it).
///
/// Where the number changes (1 to 2 members, 256 to 257, 2,048 to 2,049), the slots of the two tables are unrelated.
pub const fn slot_count(members: usize) -> u32 {
    match members {
        0 => 0,
        1 => 1,
        2..=SMALL_MEMBERS_MAX => SMALL_SLOTS,
        members if members <= MEDIUM_MEMBERS_MAX => MEDIUM_SLOTS,
        _ => LARGE_SLOTS,
    }
}

/// The table of these members. Each owns its exact share of the slots rounded down or up, never more than that off.
///
/// A cookie that occurs twice counts once. If there are more members than slots, those with the most slots remain.
pub fn build(members: &[Member]) -> SlotTable {
    let mut members: Vec<Member> = members.iter().copied().filter(|m| m.weight > 0).collect();
    members.sort_unstable();
    members.dedup_by_key(|m| m.cookie);
    let slots = slot_count(members.len());
    let mut quotas = quotas(&members, slots);
    if members.len() > slots as usize {
        // The quotas add up to the number of slots, so a member that is cut off had none.
        let mut by_quota: Vec<(u32, Member)> = quotas.into_iter().zip(members).collect();
        by_quota.sort_by_key(|&(quota, m)| (std::cmp::Reverse((quota, m.weight)), m.cookie));
        by_quota.truncate(slots as usize);
        by_quota.sort_unstable_by_key(|&(_, m)| m.cookie);
        (quotas, members) = by_quota.into_iter().unzip();
    }
    SlotTable { slots: fill(&members, &quotas, slots), members }
}

/// The number of slots of each member, `slots` in total: the exact share rounded down, or up for the members that are
/// furthest above a threshold of their own.
///
/// If all had the same threshold (the largest remainder), a member that leaves could reverse the order of all other
/// remainders, and half of the members would lose a slot to the other half.
fn quotas(members: &[Member], slots: u32) -> Vec<u32> {
    let total: u128 = members.iter().map(|m| u128::from(m.weight)).sum();
    let mut left = slots;
    let mut quotas = Vec::with_capacity(members.len());
    let mut above = Vec::new();
    for (i, m) in members.iter().enumerate() {
        let share = u128::from(m.weight) * u128::from(slots);
        let (quota, remainder) = ((share / total) as u32, share % total);
        quotas.push(quota);
        left -= quota;
        if remainder > 0 {
            let hash = mix(m.cookie.0 ^ 0xA5A5_A5A5_A5A5_A5A5);
            let threshold = (total * u128::from(hash >> 33)) >> 31;
            above.push((remainder.cast_signed() - threshold.cast_signed(), hash, i));
        }
    }
    // The remainders add up to `left` totals and each is less than one: there are always more of them.
    above.sort_unstable_by(|a, b| b.cmp(a));
    for &(_, _, i) in &above[..left as usize] {
        quotas[i] += 1;
    }
    quotas
}

/// A slot's earliest claim so far. Time and owner are stored together, because a table of many members is larger than
/// the fast caches, and claims are scattered.
#[derive(Clone, Copy)]
struct Claim {
    time: u64,
    owner: u32,
}

/// Lets every member claim slots until each holds as many as its quota.
fn fill(members: &[Member], quotas: &[u32], slots: u32) -> Vec<u32> {
    const FREE: u64 = u64::MAX;
    let turns = turn_times(slots);
    let heaviest = members.iter().map(|m| m.weight).max().unwrap_or(1);
    let mut walks: Vec<Walk> = members.iter().map(|m| Walk::new(m, heaviest, slots)).collect();
    let mut claims = vec![Claim { time: FREE, owner: 0 }; slots as usize];

    for (i, &quota) in quotas.iter().enumerate() {
        for _ in 0..quota {
            // A member that loses a slot to an earlier claim goes on claiming, until a free slot ends the chain.
            let mut claimant = i;
            loop {
                let (slot, time) = walks[claimant].next_claim(turns);
                let best = claims[slot];
                // For equal times the smaller index wins, that is, the smaller cookie, in whichever order they claim.
                if time > best.time || (time == best.time && claimant > best.owner as usize) {
                    continue;
                }
                claims[slot] = Claim { time, owner: claimant as u32 };
                if best.time == FREE {
                    break;
                }
                claimant = best.owner as usize;
            }
        }
    }
    claims.into_iter().map(|claim| claim.owner).collect()
}

/// When the claims of a member with period 1 fall due, in table lengths: the sums of 1/n, 1/(n-1), 1/(n-2) …
///
/// They are the expected times of an exponential clock for each slot. With evenly spaced claims, the heavier of two
/// members would win more slots than its weight allows, and the quotas would have to take them away again.
///
/// There are four sizes of tables, so each is computed once.
fn turn_times(slots: u32) -> &'static [u64] {
    static ONE: OnceLock<Vec<u64>> = OnceLock::new();
    static SMALL: OnceLock<Vec<u64>> = OnceLock::new();
    static MEDIUM: OnceLock<Vec<u64>> = OnceLock::new();
    static LARGE: OnceLock<Vec<u64>> = OnceLock::new();
    let known = match slots {
        LARGE_SLOTS => &LARGE,
        MEDIUM_SLOTS => &MEDIUM,
        SMALL_SLOTS => &SMALL,
        _ => &ONE,
    };
    let gap = |left: u32| (1 << TURN_BITS) / u64::from(left);
    // This is also called for an empty table, maybe first.
    let compute =
        || (1..=slots.max(1)).rev().scan(0, |time, left| Some(std::mem::replace(time, *time + gap(left)))).collect();
    known.get_or_init(compute)
}

/// A member's walk through its permutation of the slots.
///
/// Maglev's permutation is `offset`, `offset + skip`, `offset + 2 skip` … modulo the number of slots, here a power of
/// two, so that any odd skip reaches every slot. But two members with related skips would meet the slots of the whole
/// table in the same order, and one of them would come second everywhere. So the halves of that number are folded and
/// spread by one more odd factor of the member's own, which again reaches every slot once.
struct Walk {
    at: u32,
    skip: u32,
    spread: u32,
    mask: u32,
    fold: u32,
    turn: u32,
    /// Time from one claim to the next, the inverse of the weight.
    period: u64,
    /// Time of the first claim, within the first period: members of equal weight do not all claim at the same time.
    start: u64,
}

impl Walk {
    fn new(member: &Member, heaviest: u64, slots: u32) -> Self {
        let hash = mix(member.cookie.0);
        let more = mix(hash);
        // The unit depends on the heaviest member by a power of two only: when that member leaves, all times are scaled
        // alike and keep their order.
        let unit = 1u128 << (heaviest.ilog2() + 1 + PERIOD_BITS);
        let period = (unit / u128::from(member.weight)).min(PERIOD_MAX) as u64;
        let first_gap = u128::from(period) * ((1 << TURN_BITS) / u128::from(slots));
        let start = (u128::from(more) * first_gap) >> 64;
        Self {
            at: (hash >> 32) as u32,
            skip: hash as u32 | 1,
            spread: more as u32 | 1,
            mask: slots - 1,
            fold: slots.ilog2() / 2,
            turn: 0,
            period,
            start: start as u64,
        }
    }

    /// The slot that the member claims next, and the time of the claim. There always is one: while a member lacks a
    /// slot, some slot is free, and the member has not claimed it yet.
    fn next_claim(&mut self, turns: &[u64]) -> (usize, u64) {
        let at = self.at & self.mask;
        let slot = (at ^ (at >> self.fold)).wrapping_mul(self.spread) & self.mask;
        let time = turns[self.turn as usize] * self.period + self.start;
        self.at = self.at.wrapping_add(self.skip);
        self.turn += 1;
        (slot as usize, time)
    }
}

/// `splitmix64` (Steele, Lea, Flood 2014): every input bit reaches every output bit. Cookies are small consecutive
/// numbers.
const fn mix(value: u64) -> u64 {
    let mut h = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    h = (h ^ (h >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ (h >> 31)
}

#[cfg(test)]
mod tests;
