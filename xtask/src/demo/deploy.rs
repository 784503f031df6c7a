//! The demo's second act: a new version is deployed under load, with the command that its operator would type, and rolled back. Every
//! request is counted in the scene in which it began, so the requests after a command's return are known.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::SCENE;
use super::load::{Load, Scene};
use super::report::{answers, judge, row, total};
use super::screen::{Bar, Screen};
use super::stage::{PORT, SERVICE, Stage};
use super::status::{Backend, Status};
use crate::cmd::output;
use crate::say::{bold, count, heading, note, thousands};

/// The servers of this act: the remaining copies of the first version, and the new version.
pub const VERSIONS: [Bar; 2] = [("v1", &["v1a", "v1c"]), ("v2", &["v2"])];
const SCENES: [&str; 5] =
    ["v2 waits", "while it is deployed", "v2 is deployed", "while it goes back", "v2 is rolled back"];
/// Columns of the operator's commands and of their output.
const MARGIN: &str = "     ";

/// When requests were sent, and which servers answered them.
struct Played {
    scenes: Vec<Scene>,
    /// When the deploy was typed.
    typed: Instant,
    before: Status,
    after: Status,
}

/// Plays it. True if all went well.
pub fn play(stage: &mut Stage) -> Result<bool> {
    heading("a deploy, under load");
    let ready_after = stage.start_server("v2", "v2")?;
    let pid = stage.server("v2")?.pid;
    note(&format!("v2 (pid {pid}) listens on port {PORT} too: ready after {} ms.", ready_after.as_millis()));
    note("Its policy is `manual`: a new version waits until it is deployed.");

    let before = stage.status()?;
    let load = Load::start((Ipv4Addr::LOCALHOST, PORT).into())?;
    let screen = Screen::new(&VERSIONS);
    screen.scene("v2 waits");
    screen.watch(&load, SCENE)?;
    let typed = order(stage, &load, &screen, &["deploy", SERVICE, "v2"])?;
    screen.watch(&load, SCENE)?;
    order(stage, &load, &screen, &["rollback", SERVICE])?;
    screen.watch(&load, SCENE)?;
    let scenes = load.stop();
    let after = stage.status().context("the daemon's counters at the end")?;
    Ok(summary(&Played { scenes, typed, before, after }))
}

/// Types a command and shows its output; returns when it was typed. It is a scene of its own: requests of the next scene begin after
/// it has returned.
fn order(stage: &Stage, load: &Load, screen: &Screen, args: &[&str]) -> Result<Instant> {
    screen.scene(&format!("$ pod-steer {}", args.join(" ")));
    load.next_scene();
    let typed = Instant::now();
    let said = output(&mut stage.pod_steer(args))?;
    let took = typed.elapsed();
    load.next_scene();
    said.lines().for_each(|line| println!("{MARGIN}{line}"));
    println!("{MARGIN}{}", bold(&format!("the command has returned after {}", milliseconds(took))));
    Ok(typed)
}

fn summary(played: &Played) -> bool {
    heading("summary of the deploy");
    let total = total(&played.scenes);
    table(played, &total).iter().for_each(|line| println!("   {line}"));
    println!();
    judge(&verdicts(played, &total), &total)
}

fn table(played: &Played, total: &Scene) -> Vec<String> {
    let counts = |scene: &Scene| {
        let [v1, v2] = by_version(scene);
        vec![thousands(scene.requests), thousands(scene.failures()), answers(v1), answers(v2)]
    };
    let titles = ["requests", "failures", "v1", "v2"].map(str::to_owned).to_vec();
    let mut rows = vec![row("answers by version", titles)];
    rows.extend(SCENES.iter().zip(&played.scenes).map(|(name, scene)| row(name, counts(scene))));
    rows.push(row("the client's total", counts(total)));
    let [v1, v2] = kernel_count(played);
    rows.push(row("the kernel's count", vec![thousands(v1 + v2), String::new(), thousands(v1), thousands(v2)]));
    rows
}

fn by_version(scene: &Scene) -> [u64; 2] {
    VERSIONS.map(|(_, servers)| servers.iter().map(|name| scene.answers_of(name)).sum())
}

/// Connections that each version got in this act.
fn kernel_count(played: &Played) -> [u64; 2] {
    let got = |status: &Status, name: &str| status.backend(name).map_or(0, Backend::got);
    let own = |name: &str| got(&played.after, name).saturating_sub(got(&played.before, name));
    VERSIONS.map(|(_, servers)| servers.iter().map(|name| own(name)).sum())
}

/// The required results, and whether they hold.
fn verdicts(played: &Played, total: &Scene) -> Vec<(bool, String)> {
    let [waits, _, deployed, _, back] = played.scenes.as_slice() else {
        return vec![(false, "not every scene was played".to_owned())];
    };
    // The server that must not have answered any more, and whether the other one did.
    let alone = |scene: &Scene, serves: usize| {
        let answers = by_version(scene);
        answers[serves] > 0 && answers[1 - serves] == 0
    };
    let first = total.first.get("v2").map(|first| first.saturating_duration_since(played.typed));
    let first_answer = match first {
        Some(first) => format!("v2 answered for the first time {} after the command was typed", milliseconds(first)),
        None => "v2 never answered".to_owned(),
    };
    let asked = |scene: &Scene| count(scene.requests, "request");
    vec![
        (total.failures() == 0, format!("{} of {} failed", thousands(total.failures()), asked(total))),
        (alone(waits, 0), "v2 got nothing before it was deployed".to_owned()),
        (first.is_some(), first_answer),
        (alone(deployed, 1), format!("once the deploy had returned, v1 got none of {}", asked(deployed))),
        (alone(back, 0), format!("once the rollback had returned, v2 got none of {}", asked(back))),
        (kernel_count(played) == by_version(total), "the kernel's count agrees with the client's".to_owned()),
    ]
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(v1a: u64, v1c: u64, v2: u64) -> Scene {
        let answers = [("v1a", v1a), ("v1c", v1c), ("v2", v2)].into_iter().filter(|(_, answers)| *answers > 0);
        let answers = answers.map(|(name, answers)| (name.to_owned(), answers)).collect();
        Scene { answers, requests: v1a + v1c + v2, ..Scene::default() }
    }

    fn status(v1a: u64, v1c: u64, v2: u64) -> Result<Status> {
        let backend = |name: &str, opened| format!(r#"{{"name": "{name}", "opened": {opened}}}"#);
        let backends = [backend("v1a", v1a), backend("v1c", v1c), backend("v2", v2)].join(",");
        Status::parse(&format!(r#"{{"services": [{{"name": "web", "backends": [{backends}]}}]}}"#))
    }

    fn played() -> Result<Played> {
        let scenes = [scene(1_000, 900, 0), scene(5, 4, 1), scene(0, 0, 2_000), scene(1, 0, 2), scene(800, 700, 0)];
        let (typed, before) = (Instant::now(), status(10, 10, 0)?);
        let after = status(10 + 1_000 + 5 + 1 + 800, 10 + 900 + 4 + 700, 1 + 2_000 + 2)?;
        let mut played = Played { scenes: scenes.into(), typed, before, after };
        played.scenes[1].first.insert("v2".to_owned(), typed + Duration::from_micros(1_234));
        Ok(played)
    }

    fn good(played: &Played) -> Vec<bool> {
        verdicts(played, &total(&played.scenes)).into_iter().map(|(good, _)| good).collect()
    }

    #[test]
    fn each_verdict_can_be_bad() -> Result<()> {
        assert_eq!(good(&played()?), [true; 6]);
        let spoil: [fn(&mut Played); 6] = [
            |played| played.scenes[3].cut += 1,
            |played| played.scenes[0] = scene(999, 900, 1),
            |played| played.scenes[1].first.clear(),
            |played| played.scenes[2] = scene(1, 0, 2_000),
            |played| played.scenes[4] = scene(0, 0, 0),
            |played| played.scenes[1] = scene(5, 4, 2),
        ];
        for (number, spoil) in spoil.into_iter().enumerate() {
            let mut played = played()?;
            spoil(&mut played);
            assert!(!good(&played)[number], "{number}");
        }
        Ok(())
    }

    #[test]
    fn everything_fits_80_columns() -> Result<()> {
        let played = played()?;
        let total = total(&played.scenes);
        let mut lines = table(&played, &total);
        lines.extend(verdicts(&played, &total).into_iter().map(|(_, what)| format!("✓ {what}")));
        assert!(lines.iter().all(|line| line.chars().count() <= 77), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("1.2 ms")), "{lines:#?}");
        Ok(())
    }
}
