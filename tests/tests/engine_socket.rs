//! An engine whose socket cannot be used: the log, `status` and `doctor` give the cause and the remedy.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    cgroup2,
    daemon::Daemon,
    host::Host,
    image::Image,
    podman::Podman,
    process::{output, run},
    require, server, tools,
};

fn url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// The condition of the engine in `status`.
fn condition(daemon: &Daemon, engine: &str) -> Result<String> {
    daemon.wait_for("the engine to be reported", |status| status.said_about(engine).into_iter().next())
}

fn doctor(host: &Host, engine: &str) -> Result<String> {
    let mut command: Command = host.command(tools::pod_steer()?)?;
    let outcome = output(command.args(["doctor", "--engine", engine]).env("NO_COLOR", "1"))?;
    ensure!(outcome.status.success(), "an engine is not required: {outcome:?}");
    Ok(String::from_utf8_lossy(&outcome.stdout).into_owned())
}

#[test]
fn each_cause_is_reported_with_its_remedy() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Arc::new(Host::new()?);
    let path = |name: &str| host.dir().join(name);
    fs::write(path("file"), "")?;
    drop(UnixListener::bind(path("dead.sock"))?);
    let causes: [(PathBuf, &[&str]); 3] = [
        (path("none.sock"), &["no such file", "--engine"]),
        (path("file"), &["not a socket", "--engine"]),
        (path("dead.sock"), &["connection refused", "start the engine"]),
    ];
    for (socket, wanted) in causes {
        let engine = url(&socket);
        let daemon = Daemon::start(&host, &[&engine])?;
        for said in [condition(&daemon, &engine)?, doctor(&host, &engine)?] {
            ensure!(wanted.iter().all(|wanted| said.contains(wanted)), "{engine}: {said}");
            ensure!(said.contains(&socket.display().to_string()), "{engine}: {said}");
        }
        ensure!(!daemon.log().contains("client error"), "{}", daemon.log());
    }
    Ok(())
}

#[test]
fn an_engine_that_does_not_answer_is_named_at_the_start() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Arc::new(Host::new()?);
    let socket = host.dir().join("docker.sock");
    let _silent = UnixListener::bind(&socket)?;
    let engine = url(&socket);
    let daemon = Daemon::start(&host, &[&engine])?;
    let wanted = format!("Docker at {} does not answer (timed out after 5 s); starting without it", socket.display());
    ensure!(daemon.log().contains(&wanted), "{}", daemon.log());
    ensure!(condition(&daemon, &engine)?.contains("timed out after 5 s"));
    Ok(())
}

/// A rootless Podman: only its user may enter the directory of its socket.
#[test]
fn a_user_s_engine_is_followed_once_root_may_connect_to_it() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "ip", "tar"]));
    let host = Arc::new(Host::new()?);
    let podman = Podman::start(&host)?;
    podman.import(Image::Named)?;
    let socket = podman.docker().socket().to_owned();
    let directory = socket.parent().expect("a socket is in a directory");
    let (user, group) = (Some(1000), Some(1000));
    for (path, mode) in [(directory, 0o700), (&socket, 0o600)] {
        chown(path, user, group)?;
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    let engine = podman.url();
    let daemon = Daemon::start(&host, &[&engine])?;
    for said in [condition(&daemon, &engine)?, doctor(&host, &engine)?] {
        for wanted in ["permission denied", "belongs to user 1000", "SocketMode=0666"] {
            ensure!(said.contains(wanted), "{wanted}: {said}");
        }
    }
    // Apply the remedy.
    fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    ensure!(!doctor(&host, &engine)?.contains("permission denied"));
    let server = podman.docker().create(&server::named("web-1", "0.0.0.0:8080").service("web", "80:8080"))?;
    run(podman.docker().command().args(["start", &server.id]))?;
    // The test runs root's Podman behind a user's socket. An engine of a user may have only that user's containers steered.
    daemon.wait_state("web", "web-1", "not-steered")?;
    let said = daemon.status()?.said_about("web-1").join(" ");
    ensure!(said.contains("its engine is user 1000's"), "{said}");
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", server.pid()?))?;
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).context("it has no cgroup v2")?;
    let mut own = cgroup2::mount_point()?.join(path);
    while !own.file_name().is_some_and(|name| name.to_string_lossy().contains(&server.id)) {
        ensure!(own.pop(), "{cgroup}");
    }
    chown(own.parent().context("a parent")?, user, group)?;
    run(podman.docker().command().args(["restart", "--time", "1", &server.id]))?;
    daemon.wait_ready("web", 1)?;
    daemon.wait_for("the condition to end", |status| status.warnings().is_empty().then_some(()))
}
