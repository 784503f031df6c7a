//! What the viewer sees, in 80 columns: what is going on, who answers right now, and the table at the end.

use std::io::{Write, stdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::journal::Journal;
use super::load::{Load, Scene, THREADS};
use super::stage::{PORT, Server};
use super::status::{Backend, Status};
use crate::say::{bold, count, green, heading, note, on_terminal, red, thousands};

/// Cells of a full bar.
const BAR: u64 = 7;
const SERVERS: [&str; 3] = ["v1", "v2", "v3"];
const SCENES: [&str; 3] = ["v1 and v2", "v2 killed with -9", "v3 has joined"];

pub fn server_started(server: &Server, ready_after: Duration) {
    note(&format!("{} (pid {}) listens on port {PORT}: {}", server.name, server.pid, ready(ready_after)));
}

pub fn joined(server: &Server, ready_after: Duration) -> String {
    format!("{} (pid {}) joins: {}", server.name, server.pid, ready(ready_after))
}

fn ready(after: Duration) -> String {
    format!("ready {} ms after it was started", after.as_millis())
}

pub fn explain() {
    heading("what you see");
    note(&format!("Each server has an ordinary listening socket of its own on port {PORT}."));
    note("For every new connection the kernel chooses one of them: no proxy, no NAT.");
    note(&format!("A client with {THREADS} threads opens a connection for each request, all the time."));
}

/// The line that shows what happens now.
pub struct Screen {
    start: Instant,
}

impl Screen {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    pub fn scene(&self, what: &str) {
        println!();
        note(&bold(&format!("{:4.1} s  {what}", self.start.elapsed().as_secs_f64())));
    }

    /// Shows the scene for so long: on a terminal as one line that is rewritten, else a line each second.
    pub fn watch(&self, load: &Load, time: Duration) -> Result<()> {
        let start = Instant::now();
        let step = Duration::from_millis(if on_terminal() { 200 } else { 1000 });
        while start.elapsed() < time {
            sleep(step.min(time.saturating_sub(start.elapsed())));
            let line = self.line(&load.now());
            if on_terminal() {
                print!("\r\x1b[K{line}");
                stdout().flush()?;
            } else {
                println!("{line}");
            }
        }
        if on_terminal() {
            println!();
        }
        Ok(())
    }

    fn line(&self, scene: &Scene) -> String {
        let answers: u64 = scene.answers.values().sum();
        let failures = format!("{:>2} failed", scene.failures());
        let failures = if scene.failures() == 0 { green(&failures) } else { red(&failures) };
        let seconds = self.start.elapsed().as_secs_f64();
        let mut line = format!("   {seconds:4.1} s {:>7} ok {failures} ", thousands(answers));
        for name in SERVERS {
            let percent = (100 * scene.answers_of(name) + answers / 2).checked_div(answers).unwrap_or(0);
            let cells = (percent * BAR).div_ceil(100);
            let bar: String = (0..BAR).map(|cell| if cell < cells { '█' } else { '░' }).collect();
            line += &format!(" {name} {bar}{percent:>4}%");
        }
        line
    }
}

/// Prints the table and what follows from it. Whether the kernel steered as it should.
pub fn summary(scenes: &[Scene], status: &Status, journal: &Journal) -> Result<bool> {
    heading("summary");
    let total = total(scenes);
    for line in table(scenes, &total, status) {
        println!("   {line}");
    }
    println!();
    let verdicts = verdicts(scenes, &total, status, journal);
    for (good, what) in &verdicts {
        println!("   {} {what}", if *good { green("✓") } else { red("✗") });
    }
    if let Some(reason) = total.reasons.first() {
        println!("     the first failure was: {reason}");
    }
    Ok(verdicts.iter().all(|(good, _)| *good))
}

pub fn unloaded() {
    println!("   {} `pod-steer unload` left nothing pinned", green("✓"));
}

fn total(scenes: &[Scene]) -> Scene {
    let mut total = Scene::default();
    for scene in scenes {
        total.requests += scene.requests;
        total.refused += scene.refused;
        total.cut += scene.cut;
        total.strangers += scene.strangers;
        total.reasons.extend_from_slice(&scene.reasons);
        for (name, answers) in &scene.answers {
            *total.answers.entry(name.clone()).or_default() += answers;
        }
    }
    total
}

fn table(scenes: &[Scene], total: &Scene, status: &Status) -> Vec<String> {
    let row = |name: &str, cells: [String; 5]| {
        cells.iter().fold(format!("{name:<20}"), |line, cell| line + &format!(" {cell:>9}")).trim_end().to_owned()
    };
    let titles = ["requests", "failures", "v1", "v2", "v3"].map(str::to_owned);
    let counts = |scene: &Scene| {
        let [v1, v2, v3] = SERVERS.map(|name| match scene.answers_of(name) {
            0 => "-".to_owned(),
            answers => thousands(answers),
        });
        [thousands(scene.requests), thousands(scene.failures()), v1, v2, v3]
    };
    let mut rows = vec![row("answers by server", titles)];
    rows.extend(SCENES.iter().zip(scenes).map(|(name, scene)| row(name, counts(scene))));
    rows.push(row("the client's total", counts(total)));
    let [v1, v2, v3] = SERVERS.map(|name| status.backend(name).map_or("gone".to_owned(), |it| thousands(it.got())));
    let got: Option<Vec<u64>> = SERVERS.iter().map(|name| status.backend(name).map(Backend::got)).collect();
    let sum = got.map_or(String::new(), |got| thousands(got.iter().sum()));
    rows.push(row("the kernel's count", [sum, String::new(), v1, v2, v3]));
    rows
}

/// What must be so, and whether it is.
fn verdicts(scenes: &[Scene], total: &Scene, status: &Status, journal: &Journal) -> Vec<(bool, String)> {
    let [together, killed, joined] = scenes else { return vec![(false, "not every scene was played".to_owned())] };
    let all_answered = [(together, "v1"), (together, "v2"), (killed, "v1"), (joined, "v1"), (joined, "v3")].into_iter();
    let all_answered = all_answered.map(|(scene, name)| scene.answers_of(name)).all(|answers| answers > 0);
    // A process that is killed takes along what it had accepted; nobody else can know of that.
    let lost_with_v2 = journal.accepted.saturating_sub(total.answers_of("v2"));
    let excused = lost_with_v2 + u64::from(journal.maybe_one_more);
    let cut = match total.cut {
        0 => "no request was cut off, not even by the kill".to_owned(),
        cut => format!("{} cut off, of {lost_with_v2} that v2 had accepted and took along", count(cut, "request")),
    };
    // The daemon forgets a process that ended, and keeps a container until that is removed.
    let agrees = |name: &str, lost: u64| match status.backend(name) {
        Some(backend) => backend.got() == total.answers_of(name) + lost,
        None => name == "v2",
    };
    let agrees = agrees("v1", 0) && agrees("v2", total.cut) && agrees("v3", 0);
    vec![
        (all_answered, "every server answered while it was there".to_owned()),
        (total.refused == 0, format!("{} refused", count(total.refused, "connection"))),
        (total.cut <= excused && joined.cut == 0, cut),
        (total.strangers == 0, "every server saw the client's own address and port".to_owned()),
        (agrees, "the kernel's count agrees with the client's, to the connection".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(answers: &[(&str, u64)], cut: u64) -> Scene {
        let answers = answers.iter().map(|(name, answers)| ((*name).to_owned(), *answers));
        let mut scene = Scene { answers: answers.collect(), cut, ..Scene::default() };
        scene.requests = scene.answers.values().sum::<u64>() + cut;
        scene
    }

    fn played() -> [Scene; 3] {
        [scene(&[("v1", 1_600), ("v2", 1_500)], 0), scene(&[("v1", 3_000)], 1), scene(&[("v1", 10), ("v3", 11)], 0)]
    }

    fn status(v2: u64) -> Result<Status> {
        let backend = |name: &str, opened| format!(r#"{{"version": "{name}", "opened": {opened}}}"#);
        let backends = [backend("v1", 4_610), backend("v2", v2), backend("v3", 11)].join(",");
        Status::parse(&format!(r#"{{"services": [{{"name": "web", "backends": [{backends}]}}]}}"#))
    }

    fn good(scenes: &[Scene], status: &Status, accepted: u64) -> Vec<bool> {
        let journal = Journal { accepted, maybe_one_more: false };
        verdicts(scenes, &total(scenes), status, &journal).into_iter().map(|(good, _)| good).collect()
    }

    #[test]
    fn only_what_the_killed_server_had_accepted_may_be_lost() -> Result<()> {
        assert_eq!(good(&played(), &status(1_501)?, 1_501), [true; 5]);
        assert_eq!(good(&played(), &status(1_501)?, 1_500), [true, true, false, true, true]);
        Ok(())
    }

    #[test]
    fn the_counts_must_agree_exactly() -> Result<()> {
        assert!(!good(&played(), &status(1_502)?, 1_501)[4]);
        Ok(())
    }

    #[test]
    fn everything_fits_80_columns() -> Result<()> {
        let scenes = played();
        let table = table(&scenes, &total(&scenes), &status(1_501)?);
        assert!(table.iter().all(|row| row.len() <= 77), "{table:#?}");
        assert_eq!(table[2].trim_end_matches([' ', '-']), "v2 killed with -9        3,001         1     3,000");
        assert!(Screen::new().line(&total(&scenes)).chars().count() <= 80);
        Ok(())
    }
}
