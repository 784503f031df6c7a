//! `cargo xtask package deb --try` and `rpm --try`: install, upgrade and remove the package (`packager`) in a clean Debian (`root`) that a
//! real systemd runs (`machine`), with a Docker engine whose containers serve meanwhile. Not part of `cargo xtask test`: it needs Debian's
//! archive, and minutes. What is left afterwards is the Debian, for the next time.

mod installed;
mod machine;
mod packager;
mod purged;
mod root;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pod_steer_tests::{
    host::Host,
    load::{Load, Running},
};

use crate::{build, debian, say};
use machine::Machine;
use packager::Packager;
pub use packager::{DEB, RPM};

/// Connections that are answered before, during and after each step.
const CONNECTIONS: u64 = 300;
/// README's three commands take less, without the download.
const ZERO_TO_STEERED: Duration = Duration::from_secs(60);

/// Tries two packages of one program, of which the second has the higher version.
pub fn run(packager: &Packager, first: &Path, next: &Path) -> Result<()> {
    debian::ensure(&["unshare", "nsenter", "mount", "ip"])?;
    let clean = root::get()?;
    build::test_programs()?;
    let server = build::named_server()?;
    let host = Host::new()?;
    let named = |name: &str| format!("/packages/{name}.{}", packager.extension);
    let files: [(PathBuf, String); 3] = [
        (first.to_owned(), named("first")),
        (next.to_owned(), named("next")),
        (server, "/packages/named-server".to_owned()),
    ];
    root::lay_out(&host, &files)?;

    say::heading("a clean Debian boots");
    let machine = Machine::boot(&host, &clean)?;
    machine.read(packager.prepare)?;
    let before = purged::snapshot(&machine)?;
    machine.run("tar -C /packages -cf - named-server | docker import - server >/dev/null")?;

    say::heading("the package is installed");
    let start = Instant::now();
    machine.run(&format!("{} >/dev/null", packager.install))?;
    serve(&machine, "web-1", &[])?;
    answered(&host, "web-1")?;
    say::note(&format!("from nothing to an answer of a container: {}", say::elapsed(start.elapsed())));
    serve(&machine, "web-2", &["version=v2", "rollout=latest"])?;
    answered(&host, "web-2")?;
    let took = start.elapsed();
    say::note(&format!("to the first answer of its next version: {}", say::elapsed(took)));
    ensure!(took < ZERO_TO_STEERED, "the three commands take longer than {}", say::elapsed(ZERO_TO_STEERED));
    installed::check(&machine, packager)?;
    machine.wait_until("the new version has everything", "pod-steer history web | grep -q 'done.*deploy v2'")?;

    say::heading("it is upgraded, installed again and restarted under load");
    let load = Load::to(TARGET.parse()?).threads(2).start(host.net())?;
    flowing(&load)?;
    for (what, step) in packager.steps {
        let pid = machine.main_pid()?;
        machine.run(&format!("{step} >/dev/null 2>&1"))?;
        flowing(&load).with_context(|| format!("after the {what}"))?;
        let restarted = machine.main_pid()? != pid;
        say::note(&format!("{what}: the daemon {}", if restarted { "was restarted" } else { "goes on" }));
    }
    installed::check(&machine, packager)?;
    serve(&machine, "web-3", &["version=v3", "rollout=manual"])?;
    machine.run("pod-steer deploy web v3")?;
    flowing(&load)?;
    let tally = load.stop()?;
    say::note(&format!("clients meanwhile: {tally}"));
    ensure!(tally.losses.is_empty(), "connections were lost");
    ensure!(tally.answered_by("web-2") > 0 && tally.answered_by("web-3") > 0, "not both versions answered");
    ensure!(tally.answered_by("web-1") == 0, "the version that was replaced has got connections");

    say::heading("the machine boots again");
    drop(machine);
    let machine = Machine::boot(&host, &clean)?;
    machine.wait_until("docker is-active", "docker info")?;
    installed::check(&machine, packager)?;
    answered(&host, "web-3")?;
    say::note("the daemon has started at boot, and the operator's decision is in force");

    say::heading("it is removed, with all that belongs to it");
    let remove = packager.remove;
    machine.run(&format!("{remove} >/tmp/removed 2>&1 && cat /tmp/removed && grep -q unloaded: /tmp/removed"))?;
    purged::steers_nothing(&machine)?;
    if let Some(purge) = packager.purge {
        ensure!(machine.succeeds("test -e /etc/pod-steer.toml")?, "removing keeps the settings");
        machine.run(&format!("{purge} >/dev/null 2>&1"))?;
    }
    purged::check(&machine, &before)
}

/// The clients' target: the port of the machine that the containers share.
const TARGET: &str = "127.0.0.1:80";

/// Starts a container with the two labels that it needs, and others, as README does.
fn serve(machine: &Machine, name: &str, others: &[&str]) -> Result<()> {
    let labels = ["service=web", "ports=80:8080"].iter().chain(others);
    let labels: String = labels.map(|label| format!("--label pod-steer.{label} ")).collect();
    let server = format!("server /named-server --name {name} --listen 0.0.0.0:8080");
    machine.run(&format!("docker run -d --restart always --name {name} {labels} {server} >/dev/null"))
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
