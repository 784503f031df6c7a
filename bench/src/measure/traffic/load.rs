//! The workloads with load: rounds in which each contestant has two turns, in one order and then in the reverse, so that a machine that
//! becomes slower or faster affects all alike. Turns are short, because the machine's speed changes within seconds.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    contest::Contest,
    lost,
    proof::Proof,
    tally::Tally,
    turn::Turn,
    ways::{Running, Way},
    workloads::{ERRORS, LOST_SYNS, WORKLOADS, Workload},
    wrk::{self, Load},
};
use crate::{
    measure::{costs, one_line},
    options::Options,
    report::{self, Row, Section},
};

/// The pause before a turn, in which the rest of the last one ends.
const PAUSE: Duration = Duration::from_millis(10);

/// Figures of a turn, or of a round.
type Numbers = BTreeMap<&'static str, f64>;

/// Measures all that are wanted.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    let workloads: Vec<_> = WORKLOADS.iter().filter(|workload| options.wants_section(workload.name)).collect();
    let rounds = |workload: &Workload| if options.quick { workload.rounds.quick } else { workload.rounds.full };
    let Some(steps) = workloads.iter().map(|workload| rounds(workload)).min() else { return Ok(Vec::new()) };
    let contest = Contest::new(options, |way| workloads.iter().any(|workload| workload.has(way)))?;
    let mut tallies: Vec<_> = workloads.iter().map(|_| Tally::default()).collect();
    // Each workload is spread over the whole time.
    for step in 1..=steps {
        eprintln!("load: step {step} of {steps}");
        for (workload, tally) in workloads.iter().zip(&mut tallies) {
            for _ in rounds(workload) * (step - 1) / steps..rounds(workload) * step / steps {
                round(&contest, workload, tally);
            }
        }
    }
    for (workload, tally) in workloads.iter().zip(&mut tallies).filter(|_| !options.quick) {
        while rounds_more(workload, tally) {
            round(&contest, workload, tally);
        }
    }
    Ok(workloads.into_iter().zip(&tallies).map(|(workload, tally)| section(workload, &contest, tally)).collect())
}

/// Whether the ratio of a pair needs more rounds to be precise enough.
fn rounds_more(workload: &Workload, tally: &Tally) -> bool {
    let Some([base, ours]) = workload.pair else { return false };
    let (key, _) = workload.throughput;
    let Some((own, base)) = tally.numbers(ours, key).zip(tally.numbers(base, key)) else { return false };
    let ratios: Vec<f64> = own.iter().zip(base).map(|(own, base)| own / base).collect();
    ratios.len() < workload.rounds.most && report::interval(&ratios).is_none_or(|known| known.reach() > workload.within)
}

/// A contestant in a round.
struct Player<'a> {
    way: &'static Way,
    running: &'a Running,
    proof: Proof<'a>,
    /// The least number of connections that it must have had.
    opened: u64,
    turns: Vec<Numbers>,
}

/// Gives each contestant that is not out its two turns. A contestant that fails is out.
fn round(contest: &Contest, workload: &Workload, tally: &mut Tally) {
    let mut players = Vec::new();
    let takes_part = |way: &Way| workload.has(way) && !tally.has_failed(way.name);
    let turns: Vec<_> = contest.turns().filter(|(way, _)| takes_part(way)).collect();
    for (way, running) in turns {
        match Proof::before(&contest.lab, running) {
            Ok(proof) => players.push(Player { way, running, proof, opened: 0, turns: Vec::new() }),
            Err(error) => out(workload, way, tally, &error),
        }
    }
    for place in (0..players.len()).chain((0..players.len()).rev()) {
        let player = &mut players[place];
        if !tally.has_failed(player.way.name)
            && let Err(error) = player.turn(contest, workload)
        {
            out(workload, player.way, tally, &error);
        }
    }
    for player in players.into_iter().filter(|player| player.turns.len() == 2) {
        let way = player.way;
        match player.end() {
            Ok(numbers) => tally.add(way.name, numbers),
            Err(error) => out(workload, way, tally, &error),
        }
    }
}

fn out(workload: &Workload, way: &Way, tally: &mut Tally, error: &anyhow::Error) {
    let reason = one_line(error);
    eprintln!("{}: {} is out: {reason}", workload.name, way.name);
    tally.fail(way.name, reason);
}

impl Player<'_> {
    fn turn(&mut self, contest: &Contest, workload: &Workload) -> Result<()> {
        let (lab, running) = (&contest.lab, self.running);
        thread::sleep(PAUSE);
        let lost_before = lost::syns(lab, running)?;
        let before = (costs::machine_cpu_s()?, costs::processes_cpu_s(&running.own)?);
        let (mut numbers, all_requests) = match workload.tls {
            true => self.play_wrk(contest, workload)?,
            false => self.play(contest, workload)?,
        };
        let (busy_s, own_s) = (costs::machine_cpu_s()? - before.0, costs::processes_cpu_s(&running.own)? - before.1);
        let per_100k = |seconds: f64| seconds * 100_000.0 / all_requests;
        numbers.insert("cpu_s", per_100k(busy_s));
        if !running.own.is_empty() {
            numbers.insert("own_cpu_s", per_100k(own_s));
        }
        numbers.insert(LOST_SYNS, lost::syns(lab, running)?.saturating_sub(lost_before) as f64);
        self.turns.push(numbers);
        Ok(())
    }

    /// Throughput, latencies and errors, and the number of all requests, those of the warm-up included.
    fn play(&mut self, contest: &Contest, workload: &Workload) -> Result<(Numbers, f64)> {
        let &Workload { path, close, time, throughput: (key, _), .. } = workload;
        let (running, turn) = (self.running, Turn { addr: self.running.http, path, close, time });
        let mut seen = contest.lab.ns(running.from).run(|| turn.play())?;
        ensure!(seen.requests > 0, "no request to {} was answered ({} errors)", running.http, seen.errors);
        self.opened += seen.connections;
        let amount = if key == "mib_per_s" { seen.bytes as f64 / f64::from(1 << 20) } else { seen.requests as f64 };
        let percentiles = [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)];
        let mut numbers: Numbers = percentiles.map(|(key, part)| (key, seen.percentile_us(part))).into();
        numbers.extend([(key, amount / time.as_secs_f64()), (ERRORS, seen.errors as f64)]);
        Ok((numbers, seen.all_requests as f64))
    }

    /// The same by wrk, which supports TLS.
    fn play_wrk(&mut self, contest: &Contest, workload: &Workload) -> Result<(Numbers, f64)> {
        let &Workload { path, close, time, throughput: (key, _), .. } = workload;
        let addr = self.running.tls.map_err(anyhow::Error::msg)?;
        let outcome = Load { from: self.running.from, addr, path, close, time }.run(&contest.lab)?;
        self.opened += if close { outcome.requests as u64 } else { wrk::CONNECTIONS.into() };
        let [p50, p99] = outcome.latency_us;
        let throughput = (key, outcome.requests / outcome.seconds);
        Ok(([throughput, ("p50_us", p50), ("p99_us", p99), (ERRORS, outcome.errors)].into(), outcome.requests))
    }

    /// The figures of the round: means of both turns, and sums of counts.
    fn end(self) -> Result<Numbers> {
        self.proof.after(self.opened)?;
        let mut numbers = Numbers::new();
        for (key, number) in self.turns.iter().flatten() {
            *numbers.entry(key).or_default() += number;
        }
        for (_, number) in numbers.iter_mut().filter(|(key, _)| ![ERRORS, LOST_SYNS].contains(*key)) {
            *number /= self.turns.len() as f64;
        }
        if !self.running.own.is_empty() {
            let memory_b = costs::memory_b(&self.running.own).context("measuring memory")?;
            numbers.insert("memory_mib", memory_b as f64 / f64::from(1 << 20));
        }
        Ok(numbers)
    }
}

fn section(workload: &Workload, contest: &Contest, tally: &Tally) -> Section {
    let mut columns = workload.columns();
    let ways = contest.shown().filter(|way| workload.has(way));
    let mut rows: Vec<Row> = ways.filter_map(|way| tally.row(way, workload.base(way), &columns)).collect();
    let erred = |row: &Row| row.values.get(ERRORS).is_some_and(|errors| errors.value.high > 0.0);
    if !rows.iter().any(erred) {
        // A column of zeros is useless.
        columns.retain(|column| column.key != ERRORS);
        for row in &mut rows {
            row.values.remove(ERRORS);
            row.rounds.remove(ERRORS);
        }
    }
    let failed = contest.failed().filter(|(way, _)| workload.has(way)).map(|(way, why)| (way.name.to_owned(), why));
    let skipped = failed.chain(tally.failed()).collect();
    let rounds = rows.iter().filter_map(|row| row.rounds.values().map(Vec::len).max()).max().unwrap_or_default();
    let about = workload.about(rounds);
    Section { name: workload.name.into(), title: workload.title.into(), about, columns, rows, skipped }
}
