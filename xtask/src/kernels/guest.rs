//! The first process of a virtual machine: prepares the machine for `pod-steer`, plays the scenes, prints the result, and switches off.
//! The console is the only connection to the machine outside.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::engine::Engine;
use super::{BUSYBOX, NAMED_SERVER, POD_STEER, VERDICT, bridged, confined, greedy, sizes, users};
use crate::cmd::{command, output, run};
use crate::demo::load::Load;
use crate::demo::stage::Stage;
use crate::demo::{Inside, With, journal, report};
use crate::say;

/// The clients' port, and the servers' port.
const ASKED: u16 = 80;
pub const LISTENS: u16 = 8080;
/// The servers' address, and the clients' target. A dual-stack server serves both families.
const FAMILIES: [(IpAddr, IpAddr); 3] = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::LOCALHOST)),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::LOCALHOST)),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::LOCALHOST)),
];
/// How long each scene is played. In emulation, a second allows a few hundred requests.
pub const SCENE: Duration = Duration::from_secs(3);
/// The directories of the pins and of the backends' cgroups.
const PINS: &str = "/sys/fs/bpf/pod-steer";
const CGROUPS: &str = "/sys/fs/cgroup/pod-steer";

#[derive(clap::Args)]
pub struct Guest {
    /// This kernel is too old, and must be refused
    #[arg(long)]
    refused: bool,
    /// Be a backend that opens and closes listeners on this port without end
    #[arg(long)]
    open_and_close: Option<u16>,
    /// Be a backend that sends back on this port all that it gets
    #[arg(long)]
    echo: Option<u16>,
}

/// The task that `kernels` starts in the machine. It does not return: the kernel panics if its first process ends.
pub fn guest(guest: &Guest) -> Result<ExitCode> {
    if let Some(port) = guest.open_and_close {
        match greedy::open_and_close(port)? {}
    }
    if let Some(port) = guest.echo {
        match sizes::echo(port)? {}
    }
    let played = settle().and_then(|()| if guest.refused { refusal() } else { play() });
    match played {
        Ok(()) => println!("{VERDICT}ok"),
        Err(error) => println!("{VERDICT}{}", format!("{error:#}").replace('\n', " ")),
    }
    run(command(format!("/{BUSYBOX}")).args(["poweroff", "-f"]))?;
    loop {
        sleep(Duration::MAX);
    }
}

/// The necessary steps of a distribution's boot.
fn settle() -> Result<()> {
    let busybox = |args: &[&str]| run(command(format!("/{BUSYBOX}")).args(args));
    for (kind, at) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        busybox(&["mount", "-t", kind, "none", at])?;
    }
    busybox(&["ip", "link", "set", "lo", "up"])
}

/// A kernel that is too old: `doctor` and `run` refuse it at once, with the remedy.
fn refusal() -> Result<()> {
    for args in [&["doctor"] as &[_], &["run", "--engine", "none"]] {
        let answer = command(format!("/{POD_STEER}")).args(args).output()?;
        let said = String::from_utf8_lossy(&answer.stdout) + String::from_utf8_lossy(&answer.stderr);
        say::heading(&format!("pod-steer {} ({})", args.join(" "), answer.status));
        print!("{said}");
        if answer.status.success() || !said.contains("unsupported") || !said.contains("boot Linux") {
            bail!("`pod-steer {}` did not refuse this kernel with the remedy", args.join(" "));
        }
    }
    if Path::new(PINS).exists() {
        bail!("{PINS} was made although the kernel was refused");
    }
    Ok(())
}

/// Plays the scenes with a daemon that its AppArmor profile confines, if the kernel has AppArmor.
fn play() -> Result<()> {
    let is_confined = confined::load()?;
    let played = scenes(is_confined);
    let checked = if is_confined { confined::check() } else { Ok(()) };
    played.and(checked)
}

fn scenes(is_confined: bool) -> Result<()> {
    say::heading("pod-steer doctor");
    let found = output(&mut doctor())?;
    print!("{found}");
    // `doctor` only advises about them, since just one command needs them.
    if !found.lines().any(|line| line.starts_with("ok ") && line.contains("programs of trace")) {
        bail!("this kernel refuses the programs of `pod-steer trace`");
    }
    for (number, (listen, asked)) in FAMILIES.into_iter().enumerate() {
        let (listen, asked) = (SocketAddr::new(listen, LISTENS), SocketAddr::new(asked, ASKED));
        say::heading(&format!("servers on {listen}, clients of {asked}"));
        let mut stage = Stage::new(&inside(&number.to_string())?)?.with_ports(ASKED, listen).confined(is_confined);
        let played = share(&mut stage, asked);
        if played.is_err() {
            stage.show_status();
            stage.show_logs();
        }
        played?;
    }
    say::heading("a server behind a bridge, and one on the host");
    bridged::prepare()?;
    let inside = inside("bridged")?;
    let engine = Engine::start(&inside.dir)?;
    let listen = (Ipv4Addr::UNSPECIFIED, LISTENS).into();
    let mut stage = Stage::new(&inside)?.with_ports(ASKED, listen).with_engine(engine.url());
    stage = stage.confined(is_confined);
    bridged::play(&mut stage, &engine).inspect_err(|_| {
        stage.show_status();
        stage.show_logs();
    })
}

/// What a stage needs, with a directory of this name.
fn inside(name: &str) -> Result<Inside> {
    let dir = Path::new("/tmp").join(name);
    fs::create_dir(&dir)?;
    let (pod_steer, named_server) = (format!("/{POD_STEER}").into(), format!("/{NAMED_SERVER}").into());
    Ok(Inside { dir, with: With { pod_steer, named_server, docker: false } })
}

fn doctor() -> Command {
    let mut doctor = command(format!("/{POD_STEER}"));
    doctor.arg("doctor");
    doctor
}

/// The three scenes of the demo's first act. In the last one the daemon is killed too, and requests are served without it.
fn share(stage: &mut Stage, asked: SocketAddr) -> Result<()> {
    stage.start_daemon()?;
    for name in ["v1a", "v1b"] {
        let ready_after = stage.start_server(name, "v1")?;
        report::server_started(stage.server(name)?, ready_after);
    }
    let load = Load::start(asked)?;
    sleep(SCENE);
    load.next_scene();
    stage.kill("v1b")?;
    sleep(SCENE);
    stage.kill_daemon()?;
    sleep(SCENE);
    stage.start_daemon()?;
    sleep(SCENE);
    let ready_after = stage.start_server("v1c", "v1")?;
    load.next_scene();
    say::note(&report::joined(stage.server("v1c")?, ready_after));
    sleep(SCENE);
    let scenes = load.stop();
    let status = stage.status().context("the daemon's counters at the end")?;
    if !report::summary(&scenes, &status, &journal::read(&stage.journal("v1b"))?) {
        bail!("with clients of {asked}, something was not as it should be");
    }
    for name in ["v1a", "v1c"] {
        stage.kill(name)?;
    }
    users::play(stage)?;
    greedy::play(stage)?;
    stage.unload()?;
    if Path::new(CGROUPS).exists() {
        bail!("`pod-steer unload` left {CGROUPS}");
    }
    report::unloaded();
    match TcpStream::connect(asked) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("after `unload` no server may answer on {asked}: {other:?}"),
    }
}
