//! Podman's containers in each kind of cgroup: pods, `--cgroups=split`, `--cgroups=disabled`.

use std::{process::Command, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    check,
    daemon::Daemon,
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    process::{Process, run},
    report, require,
    status::Service,
    tools,
};

fn podman() -> Result<(), String> {
    tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"])
}

/// A host with the daemon and Podman.
struct Stage {
    daemon: Daemon,
    _podman: Podman,
    host: Arc<Host>,
}

fn stage() -> Result<Stage> {
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    podman.import(Image::Named)?;
    Ok(Stage { daemon: Daemon::start(&host, &[&podman.url()])?, _podman: podman, host })
}

/// `podman run` of a server that listens at once.
fn server(host: &Host, name: &str, flags: &[&str]) -> Result<Command> {
    let mut command = Podman::command(host)?;
    // Where all controllers belong to cgroup v1, runc cannot set a limit of processes.
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--pids-limit", "0"];
    command.args(["run", "--name", name]).args(limits).args(flags);
    command.args(["--label", "pod-steer.service=web", "--label", "pod-steer.ports=80:8080", Image::Named.name()]);
    command.args(["/named-server", "--name", name, "--listen", "0.0.0.0:8080"]);
    Ok(command)
}

/// All of them share one port, so each one that serves was managed before it bound; any other one failed to bind and ended. Podman may
/// answer too late on a busy machine, so half of them may fail. If the daemon did not watch their cgroups, nearly all would.
fn nearly_all_serve(stage: &Stage, label: &str, started: usize) -> Result<()> {
    let settled = |service: &Service| {
        service.backends.iter().all(|backend| ["ready", "exited"].contains(&backend.state.as_str()))
    };
    let service = stage.daemon.wait_for("the containers to serve or to have ended", |status| {
        status.service("web").filter(|service| settled(service)).cloned()
    })?;
    report::figure(label, format!("{} of {started} managed before they bound", service.ready()));
    ensure!(service.ready() * 2 >= started, "only {} of {started}", service.ready());
    let warnings: Vec<String> = service.backends.iter().flat_map(|backend| backend.warnings()).collect();
    ensure!(warnings.is_empty(), "{warnings:?}");
    let count = started as u64 * 200;
    let tally = Load::to("127.0.0.1:80".parse()?).threads(2).count(count).run(stage.host.net())?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    assert_eq!(tally.by_name.len(), service.ready(), "{tally}");
    Ok(())
}

/// Waits until a container serves or has ended.
fn wait_settled(stage: &Stage, name: &str) -> Result<()> {
    stage.daemon.wait_for(&format!("{name} to serve or to have ended"), |status| {
        let gone = stage.daemon.log().contains(&format!("gone service=web backend={name}"));
        let backend = status.service("web").and_then(|web| web.backends.iter().find(|backend| backend.name == name));
        backend.map_or(gone, |backend| ["ready", "exited"].contains(&backend.state.as_str())).then_some(())
    })
}

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("web-{number}")).collect()
}

/// In the cgroups of pods: `libpod_parent/POD/libpod-ID` with the cgroupfs driver, a slice in a slice with systemd's. (Podman
/// makes a pod's cgroup only where cgroup v2 has controllers; a cgroup parent is the same to the container.)
#[test]
fn containers_in_the_cgroups_of_pods_share_a_port() -> Result<()> {
    require!(podman());
    let stage = stage()?;
    let names = names(16);
    for (number, name) in names.iter().enumerate() {
        let parent = match number % 2 {
            0 => format!("/libpod_parent/{number:064x}"),
            _ => format!("/machine.slice/machine-libpod_pod_{number}.slice/pod"),
        };
        run(&mut server(&stage.host, name, &["--detach", "--network", "host", "--cgroup-parent", &parent])?)?;
    }
    nearly_all_serve(&stage, "fast servers in the cgroups of pods", names.len())
}

/// As quadlets do: `podman run --cgroups=split` as the main process of a unit, which has a cgroup of its own.
#[test]
fn containers_in_the_cgroup_of_their_unit_share_a_port() -> Result<()> {
    require!(podman());
    let stage = stage()?;
    let start = |name: &str| -> Result<Process> {
        let unit = stage.host.cgroup().join(format!("system.slice/system-web.slice/{name}.service"));
        std::fs::create_dir_all(&unit)?;
        let podman = server(&stage.host, name, &["--rm", "--replace", "--network", "host", "--cgroups=split"])?;
        let mut command = stage.host.command("sh")?;
        command.args(["-c", "echo $$ >\"$1/cgroup.procs\" && shift && exec \"$@\"", "sh"]);
        command.arg(format!("/sys/fs/cgroup/system.slice/system-web.slice/{name}.service"));
        command.arg(podman.get_program()).args(podman.get_args());
        let unit = stage.host.start(name, &mut command)?;
        wait_settled(&stage, name)?;
        Ok(unit)
    };
    let names = names(8);
    let mut units = names.iter().map(|name| start(name)).collect::<Result<Vec<_>>>()?;
    // Each restart of the unit creates another container.
    for (name, unit) in names.iter().zip(&mut units).take(4) {
        run(Podman::command(&stage.host)?.args(["stop", "--ignore", "--time", "5", name]))?;
        unit.wait(pod_steer_tests::wait::STUCK)?;
        *unit = start(&format!("{name}-again"))?;
    }
    nearly_all_serve(&stage, "fast servers in units, four of them restarted", names.len())
}

#[test]
fn a_container_without_a_cgroup_of_its_own_is_not_steered() -> Result<()> {
    require!(podman());
    let stage = stage()?;
    // It runs in the cgroup of podman's caller, and so does an unmanaged server.
    let stranger = ["--name", "stranger", "--listen", "0.0.0.0:8081"];
    let _stranger = stage.host.start("stranger", stage.host.command(tools::named_server()?)?.args(stranger))?;
    let flags = ["--detach", "--network", "host", "--cgroups=disabled"];
    // runc always makes a cgroup.
    let runs = server(&stage.host, "web-1", &flags)?;
    let args: Vec<_> = runs.get_args().map(|arg| if arg == "runc" { "crun".as_ref() } else { arg }).collect();
    run(stage.host.command("podman")?.args(args))?;
    stage.daemon.wait_for("the container to be reported", |status| {
        let backend = status.service("web")?.backends.first()?.clone();
        let said = backend.warnings().join("; ");
        let is_named = said.contains("no cgroup of its own") && said.contains("--cgroups=disabled");
        (backend.state == "not-steered" && is_named).then_some(())
    })?;
    // Neither of them gets clients of the service, also after the unmanaged server listens again and after a restart of the daemon.
    let mut daemon = stage.daemon;
    for round in 0..2 {
        let late = ["--name", "late", "--listen", &format!("127.0.0.{}:8080", round + 2)].map(str::to_owned);
        let _late = stage.host.start("late", stage.host.command(tools::named_server()?)?.args(late))?;
        let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
        ensure!(tally.by_name.is_empty(), "{tally}");
        let attached = std::fs::read_dir(stage.host.path("/sys/fs/bpf/pod-steer/cgroups"))?.count();
        assert_eq!(attached, 0, "no cgroup is attached");
        daemon.kill()?;
        daemon.restart()?;
    }
    daemon
        .wait_for("the container to be reported again", |status| {
            let backend = status.service("web")?.backends.first()?.clone();
            backend.reasons().contains(&"no-cgroup").then_some(())
        })
        .context("after a restart")
}
