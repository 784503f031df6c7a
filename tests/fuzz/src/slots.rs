//! Slot tables of arbitrary members: every slot has an owner, and every member its exact share.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use pod_steer::{
    ids::{BackendIndex, SocketCookie},
    slots::{Member, SlotTable, build, slot_count},
};

/// Most members: beyond 256 the table is larger, and beyond 2,048 larger again, which takes too long here.
const MEMBERS_MAX: usize = 300;

pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let mut members = Vec::new();
    while members.len() < MEMBERS_MAX && !input.is_empty() {
        let Ok(member) = member(&mut input) else { break };
        members.push(member);
    }
    let table = build(&members);
    check_table(&table);
    members.reverse();
    // Of two members with one cookie either may be the one that counts.
    let cookies: BTreeMap<SocketCookie, &Member> = members.iter().map(|member| (member.cookie, member)).collect();
    if cookies.len() == members.len() {
        assert_eq!(build(&members), table, "the order of the members shows");
    }
}

fn member(input: &mut Unstructured<'_>) -> Result<Member> {
    // Cookies are small numbers in a row, weights small or large.
    let cookie = if input.arbitrary()? { input.arbitrary::<u8>()?.into() } else { input.arbitrary()? };
    let weight = if input.arbitrary()? { input.arbitrary::<u16>()?.into() } else { input.arbitrary()? };
    let backend = BackendIndex(input.arbitrary::<u8>()?.into());
    Ok(Member { cookie: SocketCookie(cookie), backend, weight, is_forwarded: false })
}

/// Fails unless every member owns its share of the slots to less than one slot.
pub fn check_table(table: &SlotTable) {
    let slots = table.slots.len();
    assert_eq!(slots, slot_count(table.members.len()) as usize);
    let mut owned = vec![0u128; table.members.len()];
    table.slots.iter().for_each(|owner| owned[*owner as usize] += 1);
    let total: u128 = table.members.iter().map(|member| u128::from(member.weight)).sum();
    for (member, owned) in table.members.iter().zip(owned) {
        // Both sides times the total weight: nothing is rounded.
        let (has, due) = (owned * total, u128::from(member.weight) * slots as u128);
        assert!(has.abs_diff(due) < total, "{member:?} owns {owned} of {slots} slots, total weight {total}");
    }
    assert!(table.members.is_sorted_by(|a, b| a.cookie < b.cookie));
}
