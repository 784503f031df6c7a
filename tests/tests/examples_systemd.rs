//! `examples/systemd`: the units, verbatim, under a real systemd.

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    accounts::{self, Account},
    host::Host,
    load::{Load, Running, Tally},
    process::{output, run},
    report, require,
    rollouts::none_lost,
    systemd::{Systemd, needed},
    wait,
};

const UNITS: [(&str, &str); 4] = [
    ("pod-steer.service", include_str!("../../examples/pod-steer.service")),
    ("web@.service", include_str!("../../examples/systemd/web@.service")),
    ("api@.socket", include_str!("../../examples/systemd/api@.socket")),
    ("api@.service", include_str!("../../examples/systemd/api@.service")),
];

/// The user of the servers.
const WEB: Account = Account { name: "web", id: 64_790, groups: &[] };

/// Connections between two steps.
const FLOW: u64 = 100;

/// The program of a version: the test server, which answers with the version's name.
fn install(systemd: &Systemd, service: &str, version: &str, arguments: &str) -> Result<()> {
    let script = format!(
        "mkdir -p /opt/{service}/{version} && cd /opt/{service}/{version} && \
         printf '#!/bin/sh\\nexec /usr/local/bin/named-server --name {version} {arguments}\\n' >server && chmod 755 server"
    );
    run(systemd.command("sh")?.args(["-c", &script])).map(drop)
}

fn start(host: &Host) -> Result<Systemd<'_>> {
    accounts::add(host, &[WEB])?;
    let systemd = Systemd::start(host, &UNITS)?;
    run(systemd.command("mount")?.args(["-t", "tmpfs", "-o", "mode=755", "none", "/opt"]))?;
    for (unit, _) in &UNITS[1..] {
        let path = format!("/etc/systemd/system/{unit}");
        let verified = output(systemd.command("systemd-analyze")?.args(["verify", "--man=no", &path]))?;
        let warnings = String::from_utf8_lossy(&verified.stderr);
        ensure!(verified.status.success() && !warnings.contains('@'), "systemd-analyze verify {unit}: {warnings}");
    }
    systemd.ctl(&["start", "pod-steer.service"])?;
    Ok(systemd)
}

/// Waits until the service has exactly these backends, each in this state.
fn wait_states(systemd: &Systemd, service: &str, wanted: &[(&str, &str)]) -> Result<()> {
    let mut last = None;
    wait::until_ok("the states of backends", || {
        last = systemd.status()?;
        let backends = last.as_ref().and_then(|status| status.service(service)).map(|service| &service.backends);
        let is_there = |(name, state): &(&str, &str)| {
            backends.is_some_and(|all| all.iter().any(|one| one.name == *name && one.state == *state))
        };
        let count = backends.map_or(0, Vec::len);
        Ok((count == wanted.len() && wanted.iter().all(is_there)).then_some(()))
    })
    .with_context(|| format!("{wanted:?}; {last:?}\n{}", systemd.journal(&[]).unwrap_or_default()))
}

/// `pod-steer ARGS`, as an operator.
fn order(systemd: &Systemd, args: &str, code: i32) -> Result<()> {
    let done = output(systemd.command("pod-steer")?.args(args.split(' ')))?;
    ensure!(done.status.code() == Some(code), "{args}: {done:?}\n{}", systemd.journal(&[])?);
    Ok(())
}

fn flowing(load: &Running) -> Result<()> {
    let before = load.answered();
    wait::until("connections", || (load.answered() > before + FLOW).then_some(()))
}

fn all_by(host: &Host, target: &str, version: &str) -> Result<()> {
    let tally = Load::to(target.parse()?).count(FLOW).run(host.net())?;
    ensure!(tally.answered_by(version) == FLOW, "{version} serves all of {target}: {tally}");
    Ok(())
}

fn both_answered(what: &str, tally: &Tally) -> Result<()> {
    report::figure(what, tally);
    none_lost(tally)?;
    ensure!(tally.answered_by("v1") > 0 && tally.answered_by("v2") > 0, "{tally}");
    Ok(())
}

#[test]
fn template_units_replace_versions() -> Result<()> {
    require!(needed());
    let host = Host::new()?;
    let systemd = start(&host)?;
    for version in ["v1", "v2"] {
        install(&systemd, "web", version, "--listen 0.0.0.0:8080")?;
    }
    install(&systemd, "web", "broken", "--listen 0.0.0.0:8081")?;
    systemd.ctl(&["enable", "--now", "web@v1"])?;
    wait_states(&systemd, "web", &[("web-v1", "ready")])?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(host.net())?;
    flowing(&load)?;

    // A version that never listens: the deploy fails, and the old one serves.
    systemd.ctl(&["enable", "--now", "web@broken"])?;
    order(&systemd, "deploy web broken --timeout 1s", 1)?;
    all_by(&host, "127.0.0.1:80", "v1")?;
    systemd.ctl(&["disable", "--now", "web@broken"])?;

    systemd.ctl(&["enable", "--now", "web@v2"])?;
    order(&systemd, "deploy web v2", 0)?;
    all_by(&host, "127.0.0.1:80", "v2")?;
    systemd.ctl(&["disable", "--now", "web@v1"])?;
    wait_states(&systemd, "web", &[("web-v2", "ready")])?;
    flowing(&load)?;

    // The server has no right of root's, and is in the cgroup of its unit.
    let pid = systemd.main_pid("web@v2.service")?.context("it has a main process")?;
    let said = systemd.read(&format!("/proc/{pid}/status"))?;
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
    let uid = WEB.id.to_string();
    assert_eq!(field("Uid:").split_whitespace().collect::<Vec<_>>(), [uid.as_str(); 4], "{said}");
    assert_eq!((field("Groups:"), field("NoNewPrivs:")), (uid.as_str(), "1"), "{said}");
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(u64::from_str_radix(field(set), 16)?, 0, "{set} {said}");
    }
    let cgroup = systemd.read(&format!("/proc/{pid}/cgroup"))?;
    ensure!(cgroup.contains("/web@v2.service/"), "{cgroup}");

    // The daemon's unit may restart meanwhile; a server that is killed comes back.
    systemd.ctl(&["restart", "pod-steer.service"])?;
    flowing(&load)?;
    both_answered("template units: v1 replaced by v2", &load.stop()?)?;
    run(systemd.command("kill")?.args(["-KILL", &pid]))?;
    wait::until_ok("another process", || Ok(systemd.main_pid("web@v2.service")?.filter(|next| *next != pid)))?;
    wait_states(&systemd, "web", &[("web-v2", "ready")])?;
    all_by(&host, "127.0.0.1:80", "v2")
}

#[test]
fn socket_activated_units_replace_versions() -> Result<()> {
    require!(needed());
    const TARGET: &str = "127.0.0.1:9000";
    let host = Host::new()?;
    let systemd = start(&host)?;
    for version in ["v1", "v2"] {
        install(&systemd, "api", version, "--fds 1")?;
    }
    systemd.ctl(&["enable", "--now", "api@v1.socket"])?;
    ensure!(systemd.main_pid("api@v1.service")?.is_none(), "no client has come");
    // The first client starts the server.
    all_by(&host, TARGET, "v1")?;
    wait_states(&systemd, "api", &[("api-v1", "ready")])?;
    let load = Load::to(TARGET.parse()?).threads(2).start(host.net())?;
    flowing(&load)?;
    let steered = || -> Result<u64> {
        let status = systemd.status()?.context("no status")?;
        Ok(status.service("api").context("no service")?.backends.iter().map(|backend| backend.steered).sum())
    };
    ensure!(steered()? > 0, "clients are steered to the listener that systemd has opened");

    // The listener stays while the server restarts, and its clients wait.
    for _ in 0..3 {
        systemd.ctl(&["restart", "api@v1.service"])?;
        wait_states(&systemd, "api", &[("api-v1", "ready")])?;
        flowing(&load)?;
    }

    systemd.ctl(&["enable", "--now", "api@v2.socket"])?;
    systemd.ctl(&["start", "api@v2.service"])?;
    order(&systemd, "deploy api v2", 0)?;
    all_by(&host, TARGET, "v2")?;
    systemd.ctl(&["disable", "--now", "api@v1.socket"])?;
    ensure!(systemd.main_pid("api@v1.service")?.is_none(), "its server has been stopped too");
    wait_states(&systemd, "api", &[("api-v2", "ready")])?;
    flowing(&load)?;
    both_answered("socket-activated units: v1 restarted three times, then replaced by v2", &load.stop()?)?;

    // A stopped server is started by the next client.
    systemd.ctl(&["stop", "api@v2.service"])?;
    all_by(&host, TARGET, "v2")?;
    wait_states(&systemd, "api", &[("api-v2", "ready")])
}
