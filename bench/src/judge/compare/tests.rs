use super::*;
use crate::judge::tolerance::TOLERANCES;
use crate::report::{Figure, Spread};
use crate::sample;

/// The sample with other rounds of `tls`, which has no aim. Those of the base are 1.
fn with_rounds(key: &str, ours: &[f64]) -> Report {
    let mut report = sample::workload();
    sample::rounds(&mut report, "tls", "direct", key, &vec![1.0; ours.len()]);
    sample::rounds(&mut report, "tls", "pod-steer", key, ours);
    report
}

const THROUGHPUT: &str = "requests_per_s";

#[test]
fn the_same_is_not_worse() {
    let found = compare(&sample::report(), &sample::report(), true);
    assert_eq!((found.worse.len(), found.told.len()), (0, 0));
    // pod-steer's p99 of four sections, its pause, its failed requests, and four aims: one of them is a count.
    assert!(found.judged >= 8, "{} judged", found.judged);
    // Both throughputs are known within 3%, which together is as much as the tolerance.
    assert!(found.cannot_tell.iter().all(|name| name.contains("requests/s")), "{:?}", found.cannot_tell);
}

#[test]
fn ratios_may_move_within_their_tolerance() {
    let check = |key: &str, ours: f64| compare(&with_rounds(key, &[1.0; 7]), &with_rounds(key, &[ours; 7]), true).worse;
    let none = Vec::<String>::new();
    assert_eq!([check(THROUGHPUT, 0.95), check(THROUGHPUT, 2.0)], [none.clone(), none.clone()]);
    let line = "tls, pod-steer, requests/s: ratio 1.000 committed, 0.900 now (tolerance 6%)";
    assert_eq!(check(THROUGHPUT, 0.90), [line]);
    // Latencies: lower is better, and the tail has more tolerance.
    assert_eq!([check("p99_us", 0.1), check("p99_us", 1.25)], [none.clone(), none]);
    assert_eq!(check("p99_us", 1.5).len(), 1);
}

#[test]
fn others_may_get_slower() {
    let mut report = sample::report();
    sample::rounds(&mut report, "new-connections", "haproxy", THROUGHPUT, &[1.0; 7]);
    assert_eq!(compare(&sample::report(), &report, true).worse, [""; 0]);
}

/// With seven rounds the median may be anywhere between the least and the greatest, with nine between the second ones from each end.
#[test]
fn what_the_rounds_cannot_tell_is_not_worse() {
    let committed = with_rounds(THROUGHPUT, &[1.0; 7]);
    let check = |ours: &[f64]| {
        let found = compare(&committed, &with_rounds(THROUGHPUT, ours), true);
        (found.worse.len(), found.cannot_tell.iter().filter(|name| name.ends_with("requests/s")).count())
    };
    assert_eq!(check(&[0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0]), (0, 1));
    assert_eq!(check(&[0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]), (1, 0));
    assert_eq!(check(&[0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0]), (1, 0));
    // A single round is undecided, however bad it is.
    assert_eq!(check(&[0.1]), (0, 1));
    assert_eq!(check(&[0.1; 5]), (0, 1));
    // So is a committed report with as few.
    let found = compare(&with_rounds(THROUGHPUT, &[1.0]), &with_rounds(THROUGHPUT, &[0.1; 7]), true);
    assert_eq!((found.worse.len(), found.cannot_tell.len()), (0, 1), "{found:?}");
}

#[test]
fn a_divisor_of_nothing_is_told_and_not_worse() {
    let mut committed = sample::report();
    committed.sections[3].name = "control-plane".to_owned();
    committed.sections[3].rows.truncate(1);
    let with = |p50: f64| {
        let mut report = committed.clone();
        report.sections[3].rows[0].name = "churn".to_owned();
        report.sections[3].rows[0].values.clear();
        for (key, value) in [("steered_p99_ms", 0.9), ("steered_p50_ms", p50)] {
            let known = Some(Spread::one(value));
            report.sections[3].rows[0].values.insert(key.to_owned(), Figure { known, ..Figure::one(value) });
        }
        report
    };
    let found = compare(&with(0.3), &with(0.0), true);
    assert_eq!(found.worse, [""; 0]);
    assert!(found.cannot_tell.iter().any(|name| name.contains("p99 ÷ p50")), "{found:?}");
    assert_eq!(compare(&with(0.0), &with(0.3), true).worse, [""; 0]);
    assert_eq!(compare(&with(0.3), &with(0.1), true).worse.len(), 1);
}

#[test]
fn a_busy_machine_says_nothing_against_the_code() {
    let worse = |busy_pct| {
        let new = Report { busy_pct, ..with_rounds(THROUGHPUT, &[0.5; 7]) };
        compare(&with_rounds(THROUGHPUT, &[1.0; 7]), &new, true)
    };
    assert_eq!([worse(Some(3.0)), worse(None)].map(|found| found.worse.len()), [1, 1]);
    let found = worse(Some(30.0));
    assert_eq!((found.worse.len(), found.told.len()), (0, 1), "{found:?}");
    assert!(found.cannot_tell.contains(&"tls, pod-steer, requests/s".to_owned()), "{found:?}");
}

/// The processor's caches determine the cost of many services relative to one.
#[test]
fn another_processor_has_other_ratios_of_the_program() {
    let with = |cpu: &str, name: &str, ours: f64| {
        let mut report = with_rounds(THROUGHPUT, &[ours; 7]);
        report.sections[0].name = name.to_owned();
        report.machine.push(("CPU".to_owned(), cpu.to_owned()));
        report
    };
    let worse = |cpu: &str, name: &str| compare(&with("one", name, 1.0), &with(cpu, name, 0.5), true).worse.len();
    assert_eq!([worse("one", "program"), worse("other", "program"), worse("other", "tls")], [1, 0, 1]);
}

#[test]
fn an_aim_that_was_met_is_not_given_up() {
    let with = |ours: &[f64]| {
        let mut report = sample::report();
        let section = "new-connections-pair";
        sample::rounds(&mut report, section, "reuseport", THROUGHPUT, &[1000.0; 7]);
        sample::rounds(&mut report, section, "pod-steer", THROUGHPUT, ours);
        report
    };
    let worse = |ours: &[f64]| compare(&with(&[990.0; 7]), &with(ours), true).worse;
    assert_eq!(worse(&[981.0; 7]), [""; 0]);
    let line = "new connections/s, pod-steer ÷ the kernel's own SO_REUSEPORT: the aim (≥ 0.98) was met, and is missed: \
                0.970 now";
    assert_eq!(worse(&[970.0; 7]), [line]);
    // If one round meets it, another run may meet it.
    assert_eq!(worse(&[970.0, 970.0, 970.0, 970.0, 970.0, 970.0, 990.0]), [""; 0]);
    let quick = Report { quick: true, ..with(&[970.0; 7]) };
    assert_eq!(compare(&with(&[990.0; 7]), &quick, true).worse, [""; 0]);

    // Its divisor must not be missing either.
    let mut report = with(&[990.0; 7]);
    report.sections[4].rows.remove(0);
    let line = "new-connections-pair, pod-steer: it cannot be compared any more: it has no reuseport beside it";
    assert_eq!(compare(&with(&[990.0; 7]), &report, true).worse, [line]);
}

/// A tolerance for a measure that never has a ratio would be wrong on the page.
#[test]
fn every_tolerance_is_used() {
    for key in TOLERANCES.iter().flat_map(|tolerance| tolerance.keys) {
        let with = |ours: f64| {
            let mut report = with_rounds(key, &[ours; 7]);
            report.sections[0].columns[0].key = (*key).to_owned();
            report.sections[0].columns[0].better = Better::Lower;
            report.sections[0].columns.truncate(1);
            report
        };
        let found = compare(&with(1.0), &with(9.0), true);
        assert_eq!((found.judged, found.worse.len()), (1, 1), "{key}: {found:?}");
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
            section.rows.truncate(1);
            section.rows[0].values.clear();
            section.rows[0].rounds.clear();
            derived.parts()[0].0.clone_into(&mut section.rows[0].name);
            if section.row(derived.parts()[1].0).is_none() {
                section.rows.push(Row { name: derived.parts()[1].0.to_owned(), ..section.rows[0].clone() });
            }
            for ((name, key), value) in derived.parts().into_iter().zip([1.0, over]) {
                let row = section.rows.iter_mut().find(|row| row.name == name).unwrap();
                row.values.insert(key.to_owned(), sample::sampled(Spread::one(value)));
            }
            report
        };
        let found = compare(&with(1.0), &with(0.1), true);
        assert_eq!((found.judged, found.worse.len()), (1, 1), "{}: {found:?}", derived.kind);
    }
}

#[test]
fn counts_are_compared_and_so_are_pauses_with_each_other() {
    let mut report = sample::report();
    let row = sample::row(&mut report, "hot-swap", "pod-steer");
    row.values.insert("gap_ms".to_owned(), sample::sampled(Spread::one(900.0)));
    row.values.insert("failed".to_owned(), sample::alone(2.0));
    let found = compare(&sample::report(), &report, false);
    let count = "hot-swap, pod-steer, failed: 0 committed, 2 now";
    let pause = "hot-swap, longest pause of a swap ÷ that without a swap: ratio 1.286 (1.163 to 1.421) committed, \
                 1285.714 (1163.265 to 1421.053) now (tolerance 50%)";
    let aim = "failed requests in 100 swaps under load: the aim (0) was met, and is missed: 2 now";
    assert_eq!(found.worse, [count, pause, aim]);

    let mut report = sample::report();
    let row = sample::row(&mut report, "keep-alive", "pod-steer");
    let errors = Figure { value: Spread { median: 0.0, low: 0.0, high: 3.0 }, ..Figure::one(0.0) };
    row.values.insert("errors".to_owned(), errors);
    let worse = compare(&sample::report(), &report, false).worse;
    assert_eq!(worse, ["keep-alive, pod-steer, errors: 0 committed, 3 now"]);

    // A few lost SYNs are within the tolerance.
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
    assert_eq!((found.judged, found.worse), (0, vec![line.to_owned()]));
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
    // In a complete run that counts as worse.
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
