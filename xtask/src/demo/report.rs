//! The lines about servers, and the table and the verdicts at the end of the first act, in 80 columns.

use std::time::Duration;

use super::journal::Journal;
use super::load::{Scene, THREADS};
use super::stage::{PORT, Server};
use super::status::{Backend, Status};
use crate::say::{count, green, heading, note, red, thousands};

/// The servers of the first act, all of one version.
const SERVERS: [&str; 3] = ["v1a", "v1b", "v1c"];
const SCENES: [&str; 3] = ["v1a and v1b", "v1b killed with -9", "v1c has joined"];

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

/// Prints the table and the verdicts. True if the kernel steered as it should.
pub fn summary(scenes: &[Scene], status: &Status, journal: &Journal) -> bool {
    heading("summary");
    let total = total(scenes);
    for line in table(scenes, &total, status) {
        println!("   {line}");
    }
    println!();
    judge(&verdicts(scenes, &total, status, journal), &total)
}

/// Prints the required results and whether they hold. True if all of them do.
pub fn judge(verdicts: &[(bool, String)], total: &Scene) -> bool {
    for (good, what) in verdicts {
        println!("   {} {what}", if *good { green("✓") } else { red("✗") });
    }
    if let Some(reason) = total.reasons.first() {
        println!("     the first failure was: {reason}");
    }
    verdicts.iter().all(|(good, _)| *good)
}

pub fn unloaded() {
    println!("   {} `pod-steer unload` left nothing pinned", green("✓"));
}

/// All scenes together.
pub fn total(scenes: &[Scene]) -> Scene {
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
        for (name, first) in &scene.first {
            let earliest = total.first.entry(name.clone()).or_insert(*first);
            *earliest = *first.min(earliest);
        }
    }
    total
}

fn table(scenes: &[Scene], total: &Scene, status: &Status) -> Vec<String> {
    let counts = |scene: &Scene| {
        let mut cells = vec![thousands(scene.requests), thousands(scene.failures())];
        cells.extend(SERVERS.iter().map(|name| answers(scene.answers_of(name))));
        cells
    };
    let titles = ["requests", "failures"].into_iter().chain(SERVERS).map(str::to_owned).collect();
    let mut rows = vec![row("answers by server", titles)];
    rows.extend(SCENES.iter().zip(scenes).map(|(name, scene)| row(name, counts(scene))));
    rows.push(row("the client's total", counts(total)));
    let got: Option<Vec<u64>> = SERVERS.iter().map(|name| status.backend(name).map(Backend::got)).collect();
    let mut cells = vec![got.map_or(String::new(), |got| thousands(got.iter().sum())), String::new()];
    cells.extend(SERVERS.map(|name| status.backend(name).map_or("gone".to_owned(), |it| thousands(it.got()))));
    rows.push(row("the kernel's count", cells));
    rows
}

/// A line of a table.
pub fn row(name: &str, cells: Vec<String>) -> String {
    cells.iter().fold(format!("{name:<20}"), |line, cell| line + &format!(" {cell:>9}")).trim_end().to_owned()
}

/// A number of answers, for a table.
pub fn answers(answers: u64) -> String {
    if answers == 0 { "-".to_owned() } else { thousands(answers) }
}

/// The required results, and whether they hold.
fn verdicts(scenes: &[Scene], total: &Scene, status: &Status, journal: &Journal) -> Vec<(bool, String)> {
    let [together, killed, joined] = scenes else { return vec![(false, "not every scene was played".to_owned())] };
    let all_answered =
        [(together, "v1a"), (together, "v1b"), (killed, "v1a"), (joined, "v1a"), (joined, "v1c")].into_iter();
    let all_answered = all_answered.map(|(scene, name)| scene.answers_of(name)).all(|answers| answers > 0);
    // The connections that a killed process had accepted are lost with it; no other server can have them.
    let lost_with_v1b = journal.accepted.saturating_sub(total.answers_of("v1b"));
    let excused = lost_with_v1b + u64::from(journal.maybe_one_more);
    let cut = match total.cut {
        0 => "no request was cut off, not even by the kill".to_owned(),
        cut => format!("{} cut off, of {lost_with_v1b} that v1b had accepted and took along", count(cut, "request")),
    };
    // The daemon forgets a process that has ended, and keeps a container until it is removed.
    let agrees = |name: &str, lost: u64| match status.backend(name) {
        Some(backend) => backend.got() == total.answers_of(name) + lost,
        None => name == "v1b",
    };
    let agrees = agrees("v1a", 0) && agrees("v1b", total.cut) && agrees("v1c", 0);
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
    use anyhow::Result;

    use super::*;

    fn scene(answers: &[(&str, u64)], cut: u64) -> Scene {
        let answers = answers.iter().map(|(name, answers)| ((*name).to_owned(), *answers));
        let mut scene = Scene { answers: answers.collect(), cut, ..Scene::default() };
        scene.requests = scene.answers.values().sum::<u64>() + cut;
        scene
    }

    fn played() -> [Scene; 3] {
        [
            scene(&[("v1a", 1_600), ("v1b", 1_500)], 0),
            scene(&[("v1a", 3_000)], 1),
            scene(&[("v1a", 10), ("v1c", 11)], 0),
        ]
    }

    fn status(v1b: u64) -> Result<Status> {
        let backend = |name: &str, opened| format!(r#"{{"name": "{name}", "opened": {opened}}}"#);
        let backends = [backend("v1a", 4_610), backend("v1b", v1b), backend("v1c", 11)].join(",");
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
        assert_eq!(table[2].trim_end_matches([' ', '-']), "v1b killed with -9       3,001         1     3,000");
        Ok(())
    }
}
