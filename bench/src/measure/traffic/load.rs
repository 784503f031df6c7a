//! The workloads of wrk: rounds in which each contestant has its turn, so that the machine's drift hits all alike.

use std::{thread, time::Duration};

use crate::report::{Row, Section};
use anyhow::{Context as _, Result};

use super::{
    contest::Contest,
    lab::Lab,
    lost,
    proof::Proof,
    tally::Tally,
    ways::Running,
    workloads::{ERRORS, LOST_SYNS, TIME, WORKLOADS, Workload},
    wrk::{self, Load},
};
use crate::{measure::costs, options::Options};

/// What one has left behind is done before the next one's turn.
const PAUSE: Duration = Duration::from_millis(150);

/// Measures all that are wanted.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    let workloads: Vec<_> = WORKLOADS.iter().filter(|workload| options.wants_section(workload.name)).collect();
    if workloads.is_empty() {
        return Ok(Vec::new());
    }
    let rounds_of = |workload: &Workload| if options.quick { 1 } else { workload.rounds };
    let rounds = workloads.iter().map(|workload| rounds_of(workload)).max().unwrap_or_default();
    let contest = Contest::new(options)?;
    let mut tallies: Vec<_> = workloads.iter().map(|_| Tally::default()).collect();
    for round in 0..rounds {
        for (workload, tally) in workloads.iter().zip(&mut tallies).filter(|(one, _)| round < rounds_of(one)) {
            eprintln!("{}: round {} of {}", workload.name, round + 1, rounds_of(workload));
            contest.round(workload.name, tally, |_, running| turn(&contest.lab, running, workload));
        }
    }
    let section = |(workload, tally): (&Workload, _)| section(workload, &contest, tally, rounds_of(workload));
    Ok(workloads.into_iter().zip(&tallies).map(section).collect())
}

/// One run of wrk, and what it cost.
fn turn(lab: &Lab, running: &Running, workload: &Workload) -> Result<Vec<(&'static str, f64)>> {
    let addr = if workload.tls { running.tls.map_err(anyhow::Error::msg)? } else { running.http };
    let Workload { tls, path, close, .. } = *workload;
    let proof = Proof::before(lab, running)?;
    thread::sleep(PAUSE);
    let lost_before = lost::syns(lab, running)?;
    let before = (costs::machine_cpu_s()?, costs::processes_cpu_s(&running.own)?);
    let outcome = Load { from: running.from, addr, tls, path, close, time: TIME }.run(lab)?;
    let (busy_s, own_s) = (costs::machine_cpu_s()? - before.0, costs::processes_cpu_s(&running.own)? - before.1);
    let lost_syns = lost::syns(lab, running)?.saturating_sub(lost_before);
    proof.after(if close { outcome.requests as u64 } else { wrk::CONNECTIONS.into() })?;
    let per_100k = |seconds: f64| seconds * 100_000.0 / outcome.requests;
    let (key, _) = workload.throughput;
    let amount = if key == "mib_per_s" { outcome.bytes / f64::from(1 << 20) } else { outcome.requests };
    let [p50, p99, p999] = outcome.latency_us;
    let mut numbers = vec![
        (key, amount / outcome.seconds),
        ("p50_us", p50),
        ("p99_us", p99),
        ("p999_us", p999),
        ("cpu_s", per_100k(busy_s)),
        (LOST_SYNS, lost_syns as f64),
        (ERRORS, outcome.errors),
    ];
    if !running.own.is_empty() {
        let memory_b = costs::memory_b(&running.own).context("measuring memory")?;
        numbers.extend([("own_cpu_s", per_100k(own_s)), ("memory_mib", memory_b as f64 / f64::from(1 << 20))]);
    }
    Ok(numbers)
}

fn section(workload: &Workload, contest: &Contest, tally: &Tally, rounds: usize) -> Section {
    let mut columns = workload.columns();
    let mut rows: Vec<Row> = contest.shown().filter_map(|way| tally.row(way, &columns)).collect();
    let erred = |row: &Row| row.values.get(ERRORS).is_some_and(|errors| errors.value.high > 0.0);
    if !rows.iter().any(erred) {
        // A column of zeros tells nobody anything.
        columns.retain(|column| column.key != ERRORS);
        for row in &mut rows {
            row.values.remove(ERRORS);
        }
    }
    let skipped = contest.failed().chain(tally.failed()).collect();
    let about = workload.about(rounds);
    Section { name: workload.name.into(), title: workload.title.into(), about, columns, rows, skipped }
}
