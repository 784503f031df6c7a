//! The instant of a switch: when the command has returned, the old version serves no new connection.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::Container,
    daemon::Stage,
    load::{Load, Logged},
    report, require, server, stats, tools,
};

const SWITCHES: usize = 100;
/// The aim for the time of a switch. Printed and not judged, since a busy machine may take longer.
const AIM: Duration = Duration::from_millis(1);
/// Time between two switches, in which the new version serves.
const BETWEEN: Duration = Duration::from_millis(30);

/// One switch, as its operator sees it.
struct Switch {
    to: &'static str,
    command: String,
    before: Instant,
    after: Instant,
}

fn start(stage: &Stage, version: &str) -> Result<Container> {
    let spec = server::named(version, "0.0.0.0:8080").service("web", "8080:8080").version(version);
    stage.engine().start_container(&spec)
}

#[test]
fn no_connection_after_the_command_reaches_the_old_version() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _versions = [start(&stage, "v1")?, start(&stage, "v2")?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    // More clients than processors, so that both are always busy.
    let load = Load::to("127.0.0.1:8080".parse()?).threads(4).logged().start(stage.host.net())?;

    let switches = (0..SWITCHES).map(|number| {
        let to = if number % 2 == 0 { "v2" } else { "v1" };
        let command = match number / 2 % 2 {
            0 => format!("shift web {to}=1"),
            _ => format!("deploy web {to}"),
        };
        let ordered = stage.daemon.order_done(&command)?;
        std::thread::sleep(BETWEEN);
        Ok(Switch { to, command, before: ordered.before, after: ordered.after })
    });
    let switches = switches.collect::<Result<Vec<_>>>()?;
    let mut tally = load.stop()?;
    ensure!(tally.losses.is_empty(), "{tally}");
    let mut log = std::mem::take(&mut tally.log);
    ensure!(log.len() as u64 == tally.answered(), "{} logged of {tally}", log.len());
    log.sort_by_key(|connection| connection.began);

    report::figure("switches under load", format!("{SWITCHES}, {tally}"));
    let late: usize = switches.iter().enumerate().map(|(n, switch)| late(&log, switch, switches.get(n + 1))).sum();
    report::figure("connections begun after a switch and answered by the old version", late);
    for kind in ["deploy", "shift"] {
        let of_kind = || switches.iter().filter(|switch| switch.command.starts_with(kind));
        let firsts = of_kind().map(|switch| first(&log, switch)).collect::<Result<Vec<_>>>();
        report::figure(
            &format!("{kind}: from command to the first answer of the new version"),
            stats::median_and_maximum(&mut firsts?),
        );
        let mut returns: Vec<_> = of_kind().map(|switch| switch.after - switch.before).collect();
        report::figure(&format!("{kind}: from command to its return"), stats::median_and_maximum(&mut returns));
    }
    let history = stage.daemon.history("web")?;
    let mut took: Vec<_> = history.iter().filter_map(|operation| operation.took("switched")).collect();
    // The first shift, before the load, is one more.
    ensure!(took.len() == SWITCHES + 1, "{} of {SWITCHES} switches are in the history", took.len());
    let within = took.iter().filter(|took| **took < AIM).count();
    let times = stats::median_and_maximum(&mut took);
    report::figure("from the daemon's decision to the switch in effect", format!("{times}, {within} within {AIM:?}"));
    ensure!(late == 0, "{late} connections were answered by the old version after the command had returned");
    Ok(())
}

/// Connections that began between the return of a switch's command and the next command, and that another version answered.
fn late(log: &[Logged], switch: &Switch, next: Option<&Switch>) -> usize {
    let begun = log.iter().skip_while(|connection| connection.began < switch.after);
    let begun = begun.take_while(|connection| next.is_none_or(|next| connection.began < next.before));
    // A connection that began before the next command may be accepted after it, by the next version.
    let settled = begun.filter(|connection| next.is_none_or(|next| connection.ended < next.before));
    settled.filter(|connection| connection.name != switch.to).count()
}

/// How long after the command the new version first answered.
fn first(log: &[Logged], switch: &Switch) -> Result<Duration> {
    let since = log.iter().filter(|connection| connection.began > switch.before && connection.name == switch.to);
    let first = since.map(|connection| connection.ended).min();
    Ok(first.with_context(|| format!("{} never answered after {}", switch.to, switch.command))? - switch.before)
}
