//! `cargo xtask package deb --try`: installs, upgrades and purges the package in a clean Debian (`root`) that a real systemd runs
//! (`machine`), with a Docker engine whose containers serve meanwhile. Not part of `cargo xtask test`: it needs Debian's archive, and
//! minutes. What is left afterwards is the Debian, for the next time.

mod installed;
mod machine;
mod purged;
mod root;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pod_steer_tests::{
    host::Host,
    load::{Load, Running},
};

use crate::{build, debian, say};
use machine::Machine;

/// The two versions of the package, as files of the machine.
const FIRST: &str = "/packages/first.deb";
const NEXT: &str = "/packages/next.deb";
/// Connections that are answered before, during and after each step.
const CONNECTIONS: u64 = 300;

/// Tries two packages of one program, of which the second has the higher version.
pub fn run(first: &Path, next: &Path) -> Result<()> {
    debian::ensure(&["unshare", "nsenter", "mount", "ip"])?;
    let clean = root::get()?;
    build::test_programs()?;
    let server = build::named_server()?;
    let host = Host::new()?;
    let files: [(PathBuf, &str); 3] =
        [(first.to_owned(), FIRST), (next.to_owned(), NEXT), (server, "/packages/named-server")];
    root::lay_out(&host, &files)?;

    say::heading("a clean Debian boots");
    let machine = Machine::boot(&host, &clean)?;
    let before = purged::snapshot(&machine)?;
    machine.run("tar -C /packages -cf - named-server | docker import - server >/dev/null")?;

    say::heading("the package is installed");
    let start = Instant::now();
    machine.run(&format!("apt-get install -y -qq {FIRST} >/dev/null"))?;
    installed::check(&machine)?;
    serve(&machine, "web-1", "v1")?;
    answered(&host, "web-1")?;
    say::note(&format!(
        "from the package's installation to an answer of a container: {}",
        say::elapsed(start.elapsed())
    ));

    say::heading("it is upgraded, installed again and restarted under load");
    let load = Load::to(TARGET.parse()?).threads(2).start(host.net())?;
    flowing(&load)?;
    for (what, step) in [
        ("upgrade", format!("apt-get install -y -qq {NEXT}")),
        ("installation of the same version", format!("apt-get install -y -qq --reinstall {NEXT}")),
        ("second run of the script", "/var/lib/dpkg/info/pod-steer.postinst configure 0.1.0-2".to_owned()),
        ("restart", "systemctl restart pod-steer".to_owned()),
    ] {
        let pid = machine.main_pid()?;
        machine.run(&format!("{step} >/dev/null 2>&1"))?;
        flowing(&load).with_context(|| format!("after the {what}"))?;
        let restarted = machine.main_pid()? != pid;
        say::note(&format!("{what}: the daemon {}", if restarted { "was restarted" } else { "goes on" }));
    }
    installed::check(&machine)?;
    serve(&machine, "web-2", "v2")?;
    machine.run("pod-steer deploy web v2")?;
    flowing(&load)?;
    let tally = load.stop()?;
    say::note(&format!("clients meanwhile: {tally}"));
    ensure!(tally.losses.is_empty(), "connections were lost");
    ensure!(tally.answered_by("web-1") > 0 && tally.answered_by("web-2") > 0, "not both versions answered");

    say::heading("the machine boots again");
    drop(machine);
    let machine = Machine::boot(&host, &clean)?;
    machine.wait_until("docker is-active", "docker info")?;
    installed::check(&machine)?;
    answered(&host, "web-2")?;
    say::note("the daemon has started at boot, and the operator's decision is in force");

    say::heading("it is removed, and purged");
    machine.run(
        "apt-get remove -y -qq pod-steer >/tmp/removed 2>&1 && cat /tmp/removed && grep -q unloaded: /tmp/removed",
    )?;
    purged::steers_nothing(&machine)?;
    ensure!(machine.succeeds("test -e /etc/pod-steer.toml")?, "removing keeps the settings");
    machine.run("apt-get purge -y -qq pod-steer >/dev/null 2>&1")?;
    purged::check(&machine, &before)
}

/// The clients' target: the port of the machine that the containers share.
const TARGET: &str = "127.0.0.1:80";

/// Starts a container with two labels, as README does.
fn serve(machine: &Machine, name: &str, version: &str) -> Result<()> {
    let labels =
        format!("--label pod-steer.service=web --label pod-steer.ports=80:8080 --label pod-steer.version={version}");
    let server = format!("server /named-server --name {name} --listen 0.0.0.0:8080");
    machine.run(&format!(
        "docker run -d --restart always --name {name} {labels} --label pod-steer.rollout=manual {server} >/dev/null"
    ))
}

/// Waits until clients get this container's answers.
fn answered(host: &Host, name: &str) -> Result<()> {
    let one = Load::to(TARGET.parse()?).count(1);
    pod_steer_tests::wait::until_ok(&format!("an answer of {name}"), || {
        Ok((one.clone().run(host.net())?.answered_by(name) == 1).then_some(()))
    })
}

fn flowing(load: &Running) -> Result<()> {
    let answered = load.answered();
    pod_steer_tests::wait::until("connections", || (load.answered() > answered + CONNECTIONS).then_some(()))
}
