//! Judgements of versions that are better, equal and worse, on counts.

use pod_steer_ebpf::{first_byte_bucket, first_byte_end_ns};

use super::{share::Share, *};

const MS: u64 = 1_000_000;

/// A version that has answered so many connections with one request each: all but every hundredth within `fast_ns`, those within `slow_ns`.
fn side(connections: u64, fast_ns: u64, slow_ns: u64) -> Side {
    let mut observed = Observed {
        opened: connections,
        ended: connections,
        asked: connections,
        answered: connections,
        classes: [connections, 0, 0, 0],
        spoken: connections,
        ..Observed::default()
    };
    let slow = connections / 50;
    observed.first_byte[first_byte_bucket(fast_ns)] += connections - slow;
    observed.first_byte[first_byte_bucket(slow_ns)] += slow;
    Side { observed, old_connections: connections, ..Side::default() }
}

fn compare(new: Side, old: Side) -> Judgement {
    let others = "v1".to_owned();
    let compared = Compared { new, old, others, one_of: [1, 4], reads_http: true, ..Compared::default() };
    judge("v2", &compared, &Judging::default(), 4, 2)
}

fn worse(new: Side, old: Side) -> String {
    compare(new, old).worse.expect("it is worse")
}

#[test]
fn a_bucket_has_the_times_up_to_its_end() {
    let mut at = 0;
    for ns in (0..40).flat_map(|bits| [1u64 << bits, (1u64 << bits) + 1, (1u64 << bits) * 3 / 2]) {
        let bucket = first_byte_bucket(ns);
        if ns < 1 << 36 {
            assert!(ns < first_byte_end_ns(bucket), "{ns}");
            assert!(bucket == 0 || ns >= first_byte_end_ns(bucket - 1), "{ns}");
        }
        at = at.max(bucket);
    }
    assert_eq!(at, pod_steer_ebpf::FIRST_BYTE_BUCKETS - 1, "longer times are in the last one");
    let width = |bucket: usize| first_byte_end_ns(bucket) as f64 / first_byte_end_ns(bucket - 1) as f64;
    assert!((16..pod_steer_ebpf::FIRST_BYTE_BUCKETS).all(|bucket| width(bucket) <= 1.0 + 1.0 / 16.0));
}

#[test]
fn an_equal_version_is_not_worse() {
    let judgement = compare(side(10_000, 5 * MS, 50 * MS), side(40_000, 5 * MS, 50 * MS));
    assert_eq!(judgement.worse, None);
    assert_eq!(judgement.unjudged, Vec::<String>::new());
    assert!(!judgement.is_blind);
    assert!(judgement.figures.starts_with("v2: 10000 connections, 0 reset"), "{}", judgement.figures);
    assert!(judgement.figures.contains("v1 (one of 4 connections): 40000"), "{}", judgement.figures);
}

#[test]
fn every_kind_of_fault_is_found() {
    let old = side(5_000, 5 * MS, 50 * MS);
    let with = |change: fn(&mut Side)| {
        let mut side = side(1_000, 5 * MS, 50 * MS);
        change(&mut side);
        worse(side, old)
    };
    let said = with(|side| side.observed.reset = 20);
    assert!(said.starts_with("v2 resets more connections: 20 of 1000 connections (2.0%), v1 0 of 5000"), "{said}");
    assert!(said.ends_with("chance explains that in less than one of 1000 canaries"), "{said}");
    assert!(with(|side| side.observed.empty = 20).contains("closes more connections without an answer"));
    assert!(with(|side| side.observed.left = 20).contains("clients that left without an answer"));
    assert!(
        with(|side| side.overdue = 50)
            .contains("leaves clients waiting on more connections: 50 of 1000 older connections")
    );
    let said = with(|side| (side.observed.failing, side.observed.classes) = (50, [950, 0, 0, 50]));
    assert!(said.contains("answers with 5xx on more connections: 50 of 1000 HTTP connections (5.0%)"), "{said}");
    // As many of the answers, and more on each connection.
    let (mut new, mut other) = (side(1_000, 5 * MS, 50 * MS), old);
    (new.observed.classes, new.observed.failing) = ([99_000, 0, 0, 1_000], 630);
    (other.observed.classes, other.observed.failing) = ([4_950, 0, 0, 50], 50);
    assert_eq!(compare(new, other).worse, None);
    // One client that asks for a bad page again and again.
    let mut new = side(1_000, 5 * MS, 50 * MS);
    (new.observed.classes, new.observed.failing) = ([1_000, 0, 0, 100_000], 1);
    assert_eq!(compare(new, old).worse, None);
}

#[test]
fn a_difference_that_chance_explains_is_none() {
    let (mut new, mut old) = (side(1_000, MS, 2 * MS), side(1_000, MS, 2 * MS));
    (new.observed.reset, old.observed.reset) = (20, 10);
    assert_eq!(compare(new, old).worse, None);
    // One that is certain and does not matter is none either.
    let (mut new, old) = (side(10_000_000, MS, 2 * MS), side(10_000_000, MS, 2 * MS));
    new.observed.reset = 5_000;
    assert_eq!(compare(new, old).worse, None);
    new.observed.reset = 20_000;
    assert!(compare(new, old).worse.is_some());
}

#[test]
fn a_slower_version_is_found_by_its_slowest_answers() {
    let old = side(20_000, 5 * MS, 50 * MS);
    let said = worse(side(5_000, 5 * MS, 70 * MS), old);
    assert!(
        said.starts_with(
            "v2 is slower by more than 25%: 99% of its answers begin within 71 ms, those of v1 within 50 ms"
        ),
        "{said}"
    );
    assert_eq!(compare(side(5_000, 5 * MS, 58 * MS), old).worse, None, "it is slower by less");
    assert_eq!(compare(side(5_000, 6 * MS, 30 * MS), old).worse, None, "the slowest ones are faster");
    // Whatever the percentage, half a millisecond is not worth a rollback.
    assert_eq!(compare(side(5_000, MS / 10, MS / 2), side(20_000, MS / 20, MS / 10)).worse, None);
    // At another time, the machine may have been less busy.
    let (new, others) = (side(5_000, 5 * MS, 70 * MS), "v1".to_owned());
    let compared = Compared { new, old, others, is_before: true, ..Compared::default() };
    let judgement = judge("v2", &compared, &Judging::default(), 4, 2);
    assert!(judgement.worse.is_none() && judgement.slower.is_some(), "{judgement:?}");
    // All are slower.
    assert!(compare(side(2_000, 28 * MS, 28 * MS), side(20_000, 20 * MS, 20 * MS)).worse.is_some());
}

#[test]
fn what_is_too_few_is_not_judged() {
    let judgement = compare(side(40, MS, 2 * MS), side(5_000, MS, 2 * MS));
    assert!(judgement.is_blind && judgement.worse.is_none(), "{judgement:?}");
    let said = judgement.unjudged.join("; ");
    assert!(said.starts_with("ends of connections: 40 and 5000 of at least 50; answers that do not come: connections that are old enough: 40 and 5000 of at least 50; status codes: connections with an answer by HTTP/1: 40 and"), "{said}");
    assert!(said.contains("time to the first byte: 40 and 5000 of at least "), "{said}");
    let judgement = compare(side(400, MS, 2 * MS), side(5_000, MS, 2 * MS));
    assert!(!judgement.is_blind, "ends are judged");
    assert_eq!(judgement.unjudged.len(), 1, "{judgement:?}");
}

#[test]
fn what_it_cannot_read_is_said() {
    let mut new = side(2_000, MS, 2 * MS);
    (new.observed.unread, new.observed.classes, new.observed.spoken) = (2_000, [0; 4], 0);
    let old = new;
    let said = compare(new, old).unjudged.join("; ");
    assert!(said.contains("an answer by HTTP/1: 0 and 0 of at least 50"), "{said}");
    assert!(said.contains("2000 answers and 2000 answers are not HTTP/1 in plain text"), "{said}");
    // Beside some that are.
    (new.observed.classes[0], new.observed.spoken) = (100, 100);
    assert!(compare(new, new).unjudged.join("; ").starts_with("2000 answers and 2000 answers are not HTTP/1"));
    let compared = Compared { new, old, others: "v1".to_owned(), ..Compared::default() };
    let said = judge("v2", &compared, &Judging::default(), 1, 1).unjudged.join("; ");
    assert!(said.contains("pod-steer.observe=http reads those of HTTP/1"), "{said}");
}

/// Random numbers that are the same in each run (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Versions that are alike, looked at as often as a canary of four steps looks: the error that is promised is for all looks together.
#[test]
fn equal_versions_are_hardly_ever_told_apart() {
    let mut random = Random(7);
    let mut found = 0;
    for _ in 0..40 {
        for _ in 0..4 {
            let others = "v1".to_owned();
            let (mut compared, mut looked_at, mut looks) = (Compared { others, ..Compared::default() }, 0, 0);
            for _ in 0..30 {
                for (side, number) in [(&mut compared.new, 20), (&mut compared.old, 60)] {
                    for _ in 0..number {
                        let seen = &mut side.observed;
                        (seen.opened, seen.ended, seen.answered) = (seen.opened + 1, seen.ended + 1, seen.answered + 1);
                        seen.reset += u64::from(random.next() < 0.02);
                        // Heavy tails, as answers have them.
                        let ns = 2.0e6 / (1.0 - random.next()).powf(0.6);
                        seen.first_byte[first_byte_bucket(ns as u64)] += 1;
                    }
                }
                if compared.is_due(looked_at) {
                    looks += 1;
                    looked_at = compared.size();
                    found += u32::from(judge("v2", &compared, &Judging::default(), 4, looks).worse.is_some());
                }
            }
            assert!(looks > 5, "it was looked at {looks} times");
        }
    }
    assert!(found == 0, "{found} of 40 canaries");
}

#[test]
fn a_larger_share_needs_numbers() {
    let kind = &share::KINDS[0];
    let larger = |new: (u64, u64), old: (u64, u64)| {
        let share = |(faults, all)| Share { faults, all };
        share::is_larger(share(new), share(old), kind, 0.001)
    };
    assert_eq!(larger((49, 49), (0, 1_000)), None);
    assert_eq!(larger((3, 50), (0, 50)), Some(false));
    assert_eq!(larger((12, 50), (0, 50)), Some(true));
    assert_eq!(larger((0, 50), (12, 50)), Some(false));
    assert_eq!(larger((50, 50), (50, 50)), Some(false));
}
