use crate::report::{Figure, Spread};

use super::*;
use crate::judge::tolerance::TOLERANCES;
use crate::sample;

fn with_ratio(section: &str, row: &str, key: &str, ratio: f64) -> Report {
    let mut report = sample::report();
    let figure = sample::row(&mut report, section, row).values.get_mut(key).unwrap();
    figure.ratio = Some(Spread::one(ratio));
    report
}

#[test]
fn the_same_is_not_worse() {
    let found = compare(&sample::report(), &sample::report(), true);
    // pod-steer's throughput and p99 of two workloads, its pause, and its failed requests, which are an aim too.
    assert_eq!(found, Comparison { compared: 7, ..Comparison::default() });
}

#[test]
fn ratios_may_move_within_their_tolerance() {
    let check = |report: &Report| compare(&sample::report(), report, true).worse;
    // Committed: 0.96, and a full run's tolerance is 6%.
    assert_eq!(check(&with_ratio("new-connections", "pod-steer", "requests_per_s", 0.91)), [""; 0]);
    assert_eq!(check(&with_ratio("new-connections", "pod-steer", "requests_per_s", 2.0)), [""; 0]);
    let worse = with_ratio("new-connections", "pod-steer", "requests_per_s", 0.90);
    let line = "new-connections, pod-steer, requests/s: ratio 0.960 committed, 0.900 now (tolerance 6%)";
    assert_eq!(check(&worse), [line]);
    assert_eq!(check(&Report { quick: true, ..worse }), [""; 0]);
    // Latencies: less is better, and the tail may move more.
    assert_eq!(check(&with_ratio("new-connections", "pod-steer", "p99_us", 1.2)), [""; 0]);
    assert_eq!(check(&with_ratio("new-connections", "pod-steer", "p99_us", 1.5)).len(), 1);
    assert_eq!(check(&with_ratio("new-connections", "pod-steer", "p99_us", f64::NAN)).len(), 1);
    assert_eq!(check(&with_ratio("new-connections", "haproxy", "requests_per_s", 0.1)), [""; 0]);
}

#[test]
fn what_is_within_the_noise_is_not_worse() {
    let with = |ratios: &[f64]| {
        let mut report = sample::workload();
        sample::rounds(&mut report, "tls", "direct", "requests_per_s", &vec![1.0; ratios.len()]);
        sample::rounds(&mut report, "tls", "pod-steer", "requests_per_s", ratios);
        report
    };
    let committed = with(&[0.9, 1.0, 1.1]);
    let worse = |ratios: &[f64]| compare(&committed, &with(ratios), true).worse.len();
    // Of seven rounds each may be where the median is, and of nine not the best one.
    assert_eq!(worse(&[0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0]), 0);
    assert_eq!(worse(&[0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]), 1);
    assert_eq!(worse(&[0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0]), 1);
}

#[test]
fn without_rounds_their_ends_count() {
    let worse = |high| {
        let mut report = sample::report();
        let row = sample::row(&mut report, "new-connections", "pod-steer");
        let ratio = Some(Spread { median: 0.6, low: 0.5, high });
        row.values.get_mut("requests_per_s").unwrap().ratio = ratio;
        compare(&sample::report(), &report, true).worse.len()
    };
    assert_eq!([worse(0.95), worse(0.96)], [1, 0]);
}

#[test]
fn an_aim_that_was_met_is_not_given_up() {
    let with = |ours: f64| {
        let mut report = sample::report();
        let mut rounds = |name, value| {
            sample::rounds(&mut report, "new-connections", name, "requests_per_s", &[value; 7]);
        };
        rounds("direct", 1000.0);
        rounds("reuseport", 1000.0);
        rounds("pod-steer", ours);
        report
    };
    let worse = |ours: f64| compare(&with(990.0), &with(ours), true).worse;
    assert_eq!(worse(981.0), [""; 0]);
    let line = "new connections/s, pod-steer ÷ the kernel's own SO_REUSEPORT: the aim (≥ 0.98) was met, and is missed: \
                0.970 now";
    assert_eq!(worse(970.0), [line]);

    // Who it is divided by must not vanish either.
    let mut report = with(990.0);
    report.sections[0].rows.retain(|row| row.name != "reuseport");
    let why = "its aim was met, and is not measured any more: new-connections: reuseport was not run";
    let worse = compare(&with(990.0), &report, true).worse;
    assert_eq!(worse, [format!("new connections/s, pod-steer ÷ the kernel's own SO_REUSEPORT: {why}")]);
    assert_eq!(compare(&with(990.0), &report, false).worse, [""; 0]);
}

/// A tolerance of a measure that never has a ratio would be a falsehood on the page.
#[test]
fn every_tolerance_is_used() {
    for key in TOLERANCES.iter().flat_map(|tolerance| tolerance.keys) {
        let with = |ours: f64| {
            let mut report = sample::workload();
            report.sections[0].columns[0].key = (*key).to_owned();
            report.sections[0].columns[0].better = Better::Lower;
            report.sections[0].columns.truncate(1);
            sample::rounds(&mut report, "tls", "direct", key, &[1.0; 7]);
            sample::rounds(&mut report, "tls", "pod-steer", key, &[ours; 7]);
            report
        };
        let found = compare(&with(1.0), &with(9.0), true);
        assert_eq!((found.compared, found.worse.len()), (1, 1), "{key}: {found:?}");
    }
}

#[test]
fn every_derived_ratio_is_used() {
    for derived in DERIVED {
        let with = |over: f64| {
            let mut report = sample::workload();
            let section = &mut report.sections[0];
            section.name = derived.section.to_owned();
            section.columns.clear();
            section.rows.truncate(2);
            for (row, name) in section.rows.iter_mut().zip(derived.rows()) {
                name.clone_into(&mut row.name);
            }
            derived.set(section, 1.0, over);
            report
        };
        let found = compare(&with(1.0), &with(0.1), true);
        assert_eq!((found.compared, found.worse.len()), (1, 1), "{}: {found:?}", derived.kind);
    }
}

#[test]
fn counts_are_compared_and_so_are_pauses_with_each_other() {
    let mut report = sample::report();
    let row = sample::row(&mut report, "hot-swap", "pod-steer");
    row.values.insert("gap_ms".to_owned(), sample::alone(900.0));
    row.values.insert("failed".to_owned(), sample::alone(2.0));
    let found = compare(&sample::report(), &report, false);
    let count = "hot-swap, pod-steer, failed: 0 committed, 2 now";
    let pause =
        "hot-swap, longest pause of a swap ÷ that without a swap: ratio 1.286 committed, 1285.714 now (tolerance 50%)";
    let aim = "failed requests in 100 swaps under load: the aim (0) was met, and is missed: 2 now";
    assert_eq!(found.worse, [count, pause, aim]);

    let mut report = sample::report();
    let row = sample::row(&mut report, "keep-alive", "pod-steer");
    row.values.insert("errors".to_owned(), Figure { value: Spread { median: 0.0, low: 0.0, high: 3.0 }, ratio: None });
    let worse = compare(&sample::report(), &report, false).worse;
    assert_eq!(worse, ["keep-alive, pod-steer, errors: 0 committed, 3 now"]);

    // Some lost SYNs are nothing.
    let lost = |number| {
        let mut report = sample::report();
        let row = sample::row(&mut report, "keep-alive", "pod-steer");
        row.values.insert("lost_syns".to_owned(), sample::alone(number));
        compare(&sample::report(), &report, true).worse.len()
    };
    assert_eq!([lost(10.0), lost(11.0)], [0, 1]);
}

#[test]
fn without_its_base_nothing_of_a_row_is_compared() {
    let mut report = sample::workload();
    report.sections[0].rows.retain(|row| row.name != "direct");
    let found = compare(&sample::workload(), &report, true);
    let line = "tls, pod-steer: it cannot be compared any more: it has no direct beside it";
    assert_eq!((found.compared, found.worse), (0, vec![line.to_owned()]));
}

#[test]
fn what_cannot_be_compared_is_told() {
    let mut report = sample::report();
    report.sections.retain(|section| section.name != "hot-swap");
    report.sections[0].rows.retain(|row| row.name != "pod-steer");
    report.machine[0].1 = "another one".to_owned();
    let found = compare(&sample::report(), &report, false);
    assert_eq!(found.worse, [""; 0]);
    let told = [
        "another machine: processor was a processor, and is another one",
        "not compared: new-connections, pod-steer, which was not run",
        "not compared: hot-swap, which was not run",
    ];
    assert_eq!(found.told, told);
    // Of a run of everything that is worse.
    let worse = compare(&sample::report(), &report, true).worse;
    let lines = [
        "new-connections, pod-steer: it cannot be compared any more: it was not run",
        "hot-swap: it cannot be compared any more: it was not run",
    ];
    assert_eq!(worse, lines);

    report.sections[0].skipped.push(("pod-steer".to_owned(), "it does not start".to_owned()));
    let worse = compare(&sample::report(), &report, false).worse;
    assert_eq!(worse, ["new-connections, pod-steer: no figures any more: it does not start"]);
}
