use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn member(cookie: u64, weight: u64) -> Member {
    Member { cookie: SocketCookie(cookie), backend: BackendIndex(cookie as u32 ^ 7), weight, is_forwarded: false }
}

/// Members with cookies as the kernel gives them: small numbers that grow, not always by one.
fn in_a_row(first: u64, weights: impl IntoIterator<Item = u64>) -> Vec<Member> {
    weights.into_iter().enumerate().map(|(i, weight)| member(first + 3 * i as u64, weight)).collect()
}

/// Cookie of the owner of each slot.
fn owners(table: &SlotTable) -> Vec<u64> {
    table.slots.iter().map(|&i| table.members[i as usize].cookie.0).collect()
}

fn slots_by_cookie(table: &SlotTable) -> BTreeMap<u64, u32> {
    let mut owned: BTreeMap<u64, u32> = table.members.iter().map(|m| (m.cookie.0, 0)).collect();
    owners(table).iter().for_each(|cookie| *owned.get_mut(cookie).unwrap() += 1);
    owned
}

/// The effect on the slots of a change of the member `changed`.
#[derive(Debug)]
struct Disturbance {
    /// Slots that belonged to other members before and after, so that none of them had to move.
    others: usize,
    /// Those of `others` that went from one of the others to another one. The smaller, the better.
    moved: usize,
    /// Slots that the changed member won or lost, at least: the change itself.
    necessary: usize,
}

fn disturbance(before: &SlotTable, after: &SlotTable, changed: u64) -> Disturbance {
    let (a, b) = (owners(before), owners(after));
    assert_eq!(a.len(), b.len(), "the number of slots changed");
    let others: Vec<_> = a.iter().zip(&b).filter(|(x, y)| **x != changed && **y != changed).collect();
    let moved = others.iter().filter(|(x, y)| x != y).count();
    let owned = |table| slots_by_cookie(table).get(&changed).copied().unwrap_or(0);
    Disturbance { others: others.len(), moved, necessary: owned(before).abs_diff(owned(after)) as usize }
}

/// The promise for members of equal weight: of the others' slots at most 1/N + 2 % move.
fn assert_quiet_equal(before: &SlotTable, after: &SlotTable, changed: u64) {
    let n = before.members.len().max(after.members.len());
    let d = disturbance(before, after, changed);
    let allowed = d.others as f64 * (1.0 / n as f64 + 0.02);
    assert!(d.moved as f64 <= allowed, "{d:?} of {n} members, allowed {allowed}");
}

/// The promise for any weights and any change of one: the others exchange at most 2 % of the table, plus 1/N of it or
/// as much as the changed member won or lost, whichever is more. (Counted on the whole table: beside one member with
/// 99 % of the weight, "the others' slots" are a handful.)
fn assert_quiet(before: &SlotTable, after: &SlotTable, changed: u64) {
    let n = before.members.len().max(after.members.len());
    let d = disturbance(before, after, changed);
    let slots = before.slots.len() as f64;
    let allowed = (slots / n as f64).max(d.necessary as f64) + 0.02 * slots;
    assert!(d.moved as f64 <= allowed, "{d:?} of {n} members, allowed {allowed}");
}

/// Every slot has an owner; every member owns its share of the weights to less than one slot, and so to 1 %.
fn assert_shares(table: &SlotTable) {
    let slots = table.slots.len() as u128;
    assert_eq!(slots, u128::from(slot_count(table.members.len())));
    let total: u128 = table.members.iter().map(|m| u128::from(m.weight)).sum();
    let owned = slots_by_cookie(table);
    for m in &table.members {
        // Both sides times the total weight: no rounding.
        let (has, is_due) = (u128::from(owned[&m.cookie.0]) * total, u128::from(m.weight) * slots);
        assert!(has.abs_diff(is_due) < total, "{m:?} owns {} of {slots}, total weight {total}", owned[&m.cookie.0]);
        assert!(has.abs_diff(is_due) * 100 <= total * slots, "{m:?} owns {} of {slots}", owned[&m.cookie.0]);
    }
}

#[test]
fn the_number_of_slots_is_a_power_of_two() {
    let counts = [0, 1, 2, 256, 257, 2_048, 2_049, 65_536, 1_000_000].map(slot_count);
    assert_eq!(counts, [0, 1, 4_096, 4_096, 32_768, 32_768, 65_536, 65_536, 65_536]);
}

#[test]
fn tables_of_no_and_one_member() {
    assert_eq!(build(&[]), SlotTable::default());
    assert_eq!(build(&[member(9, 0)]), SlotTable::default());
    assert_eq!(build(&[member(9, 3), member(4, 0)]), SlotTable { slots: vec![0], members: vec![member(9, 3)] });
}

#[test]
fn a_socket_of_weight_0_is_no_member() {
    let mut members = in_a_row(4_097, [5, 0, 7, 0, 1]);
    let with = build(&members);
    members.retain(|m| m.weight > 0);
    assert_eq!(with, build(&members));
    assert_eq!(with.members, members);
}

#[test]
fn a_cookie_counts_once() {
    let twice = build(&[member(1, 5), member(2, 5), member(1, 5)]);
    assert_eq!(twice, build(&[member(1, 5), member(2, 5)]));
}

#[test]
fn shares_of_round_weights_are_exact() {
    let owned = slots_by_cookie(&build(&in_a_row(1, [1, 1, 2, 4])));
    assert_eq!(owned.into_values().collect::<Vec<_>>(), [512, 512, 1_024, 2_048]);
}

#[test]
fn the_largest_weights_do_not_overflow() {
    assert_shares(&build(&in_a_row(1, [u64::MAX; 300])));
    assert_shares(&build(&in_a_row(1, [u64::MAX, 1, u64::MAX, 1 << 40, 2])));
    let light = build(&in_a_row(1, (0..3_000).map(|i| if i == 500 { u64::MAX } else { 1 })));
    assert_eq!(slots_by_cookie(&light)[&1_501], 65_536);
    assert_eq!(light.members.len(), 3_000, "members without a slot are still members");
}

#[test]
fn more_members_than_slots() {
    let members = in_a_row(1, (0..66_000).map(|i| if i < 100 { 1 } else { 1_000 }));
    let table = build(&members);
    assert_eq!((table.slots.len(), table.members.len()), (65_536, 65_536));
    assert_eq!(table.slots.iter().collect::<BTreeSet<_>>().len(), 65_536, "one slot each");
    assert!(table.members.is_sorted());
    let light = table.members.iter().filter(|m| m.weight == 1).count();
    assert!(light <= 2, "a thousandth of a slot each, 100 of them: {light} got one");
}

/// Every N of the promise, in one fixed run; [`change_of_one_of_equal_members`] draws others.
#[test]
fn removal_of_one_of_2_to_200() {
    for n in 2..=200 {
        let members = in_a_row(100 * n, vec![1; n as usize]);
        let before = build(&members);
        for gone in [0, n as usize / 2, n as usize - 1] {
            let mut left = members.clone();
            let changed = left.remove(gone).cookie.0;
            let after = build(&left);
            if before.slots.len() == after.slots.len() {
                assert_quiet_equal(&before, &after, changed);
            }
        }
    }
}

/// Ties of whole classes of weights: the case in which the largest remainder would exchange half of the roundings.
#[test]
fn removal_among_two_classes_of_weights() {
    for n in (100..=200).step_by(5) {
        let members = in_a_row(5_000 * n, (0..n).map(|i| 1 + 2 * (i % 2)));
        let before = build(&members);
        for gone in [0, 1] {
            let mut left = members.clone();
            let changed = left.remove(gone).cookie.0;
            assert_quiet_equal(&before, &build(&left), changed);
        }
    }
}

/// Claims keep the pace of their weights, and slow down as their weights say: otherwise the quotas would have to undo
/// what the claims decide, and two to four times as many slots would move.
#[test]
fn removal_among_many_weights() {
    let few = (0..40).map(|i| in_a_row(1 + 100 * i, [1, 5, 2, 10])).collect::<Vec<_>>();
    let many = vec![in_a_row(1, (0..30).map(|i| 1 << (i % 6)))];
    for (tables, limit) in [(few, 0.006), (many, 0.011)] {
        let (mut moved, mut slots) = (0, 0);
        for members in tables {
            let before = build(&members);
            for gone in 0..members.len() {
                let mut left = members.clone();
                let changed = left.remove(gone).cookie.0;
                moved += disturbance(&before, &build(&left), changed).moved;
                slots += before.slots.len();
            }
        }
        let share = moved as f64 / slots as f64;
        assert!(share < limit, "{share} of the slots moved on average");
    }
}

#[test]
fn a_large_table_is_quiet_too() {
    let members = in_a_row(1, vec![1; 400]);
    let before = build(&members);
    assert_shares(&before);
    assert_quiet_equal(&before, &build(&members[1..]), members[0].cookie.0);
}

/// The slot that a hash falls on says nothing about the next: no member owns a stretch of the table.
#[test]
fn neighbouring_slots_have_different_owners() {
    let owners = owners(&build(&in_a_row(70_000, [1; 4])));
    let same = owners.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!((900..1_150).contains(&same), "{same} of 4095, a quarter expected");
}

fn any_members() -> impl Strategy<Value = Vec<Member>> {
    let weight = prop_oneof![Just(1u64), 1..=10u64, 1..=65_535u64, (0..64u32).prop_map(|bit| 1 << bit), any::<u64>()];
    prop_oneof![
        // A few different weights, as people set them, and all different.
        (any::<u32>(), prop::collection::vec(0..4usize, 1..=200), prop::collection::vec(weight.clone(), 4))
            .prop_map(|(first, kinds, weights)| in_a_row(first.into(), kinds.into_iter().map(|k| weights[k]))),
        prop::collection::btree_map(any::<u64>(), weight, 1..=200)
            .prop_map(|members| members.into_iter().map(|(cookie, weight)| member(cookie, weight)).collect()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn shares_are_right_for_any_weights(members in any_members()) {
        let table = build(&members);
        assert_shares(&table);
        let expected: Vec<_> = members.into_iter().filter(|m| m.weight > 0).collect();
        prop_assert_eq!(table.members, expected);
    }

    #[test]
    fn order_does_not_matter(members in any_members(), seed in any::<u64>()) {
        let mut shuffled = members.clone();
        shuffled.sort_by_key(|m| mix(m.cookie.0 ^ seed));
        prop_assert_eq!(build(&members), build(&shuffled));
        prop_assert_eq!(build(&members), build(&members));
    }

    #[test]
    fn change_of_one_of_equal_members(
        first in any::<u32>(), n in 2..=200usize, which in any::<prop::sample::Index>(), weight in 1..1_000u64,
    ) {
        let members = in_a_row(first.into(), vec![weight; n]);
        let changed = members[which.index(n)].cookie.0;
        let with = |new_weight| {
            let change = |m: &Member| if m.cookie.0 == changed { Member { weight: new_weight, ..*m } } else { *m };
            build(&members.iter().map(change).collect::<Vec<_>>())
        };
        let table = with(weight);
        if n > 2 {
            let without = with(0);
            assert_quiet_equal(&table, &without, changed);
            assert_quiet_equal(&without, &table, changed);
        }
        assert_quiet_equal(&table, &with(2 * weight), changed);
        assert_quiet_equal(&with(2 * weight), &table, changed);
    }

    #[test]
    fn change_of_one_of_any_members(
        members in any_members(), which in any::<prop::sample::Index>(), new_weight in 0..200_000u64,
    ) {
        let which = which.index(members.len());
        let mut changed = members.clone();
        changed[which].weight = new_weight;
        let (before, after) = (build(&members), build(&changed));
        if before.slots.len() == after.slots.len() {
            assert_quiet(&before, &after, members[which].cookie.0);
        }
    }
}
