//! The guest's scene of forwarding: a server in a network namespace of its own, behind a bridge, shares a port with one on the host. Both
//! versions take over from each other under load, and the daemon is killed meanwhile. The clients are in another namespace.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;

use anyhow::{Context, Result, bail, ensure};
use pod_steer_tests::netns::NetNs;

use super::engine::Engine;
use super::guest::{LISTENS, SCENE};
use super::{BUSYBOX, MODULES, NAMED_SERVER, sizes};
use crate::cmd::{command, output, run};
use crate::demo::load::{Load, Scene};
use crate::demo::report::{judge, total};
use crate::demo::stage::{SERVICE, Stage, wait_until};
use crate::say;

/// The clients' port.
const ASKED: u16 = 80;
/// The host's addresses on the links to the clients and to the container, and theirs.
pub const UPLINK: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2)];
const BRIDGE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 88, 0, 1), Ipv4Addr::new(10, 88, 0, 2)];
/// The servers, each of a version of its own.
const OUTSIDE: (&str, &str) = ("outside", "v1");
const INSIDE: (&str, &str) = ("inside", "v2");
/// Where an engine makes the cgroups of its containers.
const PARENT: &str = "/sys/fs/cgroup/docker";
/// First kernel with TCX.
const TCX_SINCE: [u32; 2] = [6, 6];

/// Loads the modules that a machine loads when an engine makes a network.
pub fn prepare() -> Result<()> {
    for module in MODULES {
        let file = PathBuf::from(format!("/modules/{module}.ko"));
        // Some kernels have it built in.
        if file.exists() {
            run(command(format!("/{BUSYBOX}")).arg("insmod").arg(file))?;
        }
    }
    std::os::unix::fs::symlink("busybox", "/bin/ip").context("cannot make /bin/ip")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn on forwarding")
}

/// A network namespace, with a process that keeps a pid in it.
pub struct Place {
    pub ns: NetNs,
    keeper: Child,
}

impl Place {
    /// A namespace whose device `eth0` is connected to this device in the namespace of `ip`.
    pub fn new(ip: impl Fn(&str) -> Result<()>, device: &str, inner: Ipv4Addr, next_hop: Ipv4Addr) -> Result<Self> {
        let ns = NetNs::new()?;
        let keeper = ns.command(&format!("/{BUSYBOX}"))?.args(["sleep", "3600"]).spawn()?;
        // busybox cannot name the other end. The kernel gives it the first free name, and it leaves at once.
        ip(&format!("link add {device} type veth"))?;
        ip(&format!("link set veth0 netns {}", keeper.id()))?;
        ns.ip("link set veth0 name eth0")?;
        ns.ip(&format!("addr add {inner}/24 dev eth0"))?;
        ns.ip("link set eth0 up")?;
        ns.ip(&format!("route add default via {next_hop}"))?;
        ip(&format!("link set {device} up"))?;
        Ok(Self { ns, keeper })
    }

    pub fn end(mut self) -> Result<()> {
        self.keeper.kill()?;
        self.keeper.wait().map(drop).context("cannot end a namespace")
    }
}

/// `ip ARGS` on the host; the arguments are separated by spaces.
pub fn ip(args: &str) -> Result<()> {
    run(command("/bin/ip").args(args.split(' ')))
}

/// Plays it with a daemon that follows this engine.
pub fn play(stage: &mut Stage, engine: &Engine) -> Result<()> {
    let client = Place::new(ip, "uplink", UPLINK[1], UPLINK[0])?;
    ip(&format!("addr add {}/24 dev uplink", UPLINK[0]))?;
    ip("link add name br0 type bridge")?;
    ip(&format!("addr add {}/24 dev br0", BRIDGE[0]))?;
    ip("link set br0 up")?;
    let container = Place::new(ip, "port0", BRIDGE[1], BRIDGE[0])?;
    ip("link set port0 master br0")?;

    fs::create_dir(PARENT)?;
    stage.start_daemon()?;
    stage.start_server(OUTSIDE.0, OUTSIDE.1)?;
    let server = inside(stage, engine, &container.ns)?;
    let scenes = takeovers(stage, &client.ns)?;
    let is_good = judge(&verdicts(stage, &scenes)?, &total(&scenes));
    ensure!(is_good, "forwarding did not work as it should");
    say_hook(stage)?;
    sizes::play(stage, engine, &client.ns, &container.ns)?;

    server.end(engine)?;
    stage.kill(OUTSIDE.0)?;
    stage.unload()?;
    for place in [client, container] {
        place.end()?;
    }
    ip("link del br0")
}

/// A server behind the bridge.
pub struct Inside {
    id: String,
    process: Child,
}

/// The server that the clients ask.
fn inside(stage: &Stage, engine: &Engine, ns: &NetNs) -> Result<Inside> {
    let (name, version) = INSIDE;
    let ports = format!("{ASKED}:{LISTENS}");
    let labels = [("service", SERVICE), ("ports", ports.as_str()), ("version", version), ("via", "forward")];
    let server = format!("/{NAMED_SERVER} --name {name} --listen 0.0.0.0:{LISTENS}");
    Inside::start(stage, engine, ns, name, &labels, &server)
}

impl Inside {
    /// Starts a server as an engine does: the cgroup is there before the process.
    pub fn start(
        stage: &Stage,
        engine: &Engine,
        ns: &NetNs,
        name: &str,
        labels: &[(&str, &str)],
        server: &str,
    ) -> Result<Self> {
        let labels: Vec<_> = labels.iter().map(|(key, value)| (format!("pod-steer.{key}"), *value)).collect();
        let id = engine.create(name, &labels.iter().map(|(key, value)| (key.as_str(), *value)).collect::<Vec<_>>());
        wait_until(&format!("{name} is known"), || Ok(stage.status()?.backend(name).map(drop)))?;
        let cgroup = Path::new(PARENT).join(&id);
        fs::create_dir(&cgroup)?;
        let attached = format!("{}-", fs::metadata(&cgroup)?.ino());
        wait_until("the container's cgroup is attached to", || {
            let pins = fs::read_dir("/sys/fs/bpf/pod-steer/cgroups")?.flatten();
            let mut names = pins.map(|pin| pin.file_name().to_string_lossy().into_owned());
            Ok(names.any(|name| name.starts_with(&attached)).then_some(()))
        })?;
        let line = format!("echo $$ > {}/cgroup.procs && exec {server}", cgroup.display());
        let mut shell = ns.command(&format!("/{BUSYBOX}"))?;
        let process = shell.args(["sh", "-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        // An engine starts the process in its cgroup.
        let own = format!("/proc/{}/cgroup", process.id());
        wait_until("the server is in its cgroup", || Ok(fs::read_to_string(&own)?.contains(&id).then_some(())))?;
        engine.started(&id, process.id());
        wait_until(&format!("{name} is ready"), || {
            Ok(stage.status()?.backend(name).filter(|it| it.is_ready()).map(drop))
        })?;
        Ok(Self { id, process })
    }

    pub fn end(mut self, engine: &Engine) -> Result<()> {
        self.process.kill().and_then(|()| self.process.wait()).context("cannot end the server")?;
        engine.removed(&self.id);
        Ok(())
    }
}

/// The scenes: both share, the one inside has taken over, the same without a daemon, the one outside has taken over. What begins while a
/// command runs is in a scene between them.
fn takeovers(stage: &mut Stage, client: &NetNs) -> Result<Vec<Scene>> {
    let order = |stage: &Stage, args: &[&str]| output(&mut stage.pod_steer(args)).map(drop);
    let ([outside, inside], both) =
        ([OUTSIDE.1, INSIDE.1], [OUTSIDE, INSIDE].map(|(_, version)| format!("{version}=1")));
    order(stage, &["shift", SERVICE, &both[0], &both[1]])?;
    let target: SocketAddr = (UPLINK[0], ASKED).into();
    // Its threads stay in the namespace of the one that starts them.
    let load = client.run(|| Load::start(target))?;
    sleep(SCENE);
    load.next_scene();
    order(stage, &["deploy", SERVICE, inside])?;
    load.next_scene();
    sleep(SCENE);
    load.next_scene();
    stage.kill_daemon()?;
    sleep(SCENE);
    stage.start_daemon()?;
    load.next_scene();
    order(stage, &["shift", SERVICE, &format!("{outside}=1")])?;
    load.next_scene();
    sleep(SCENE);
    Ok(load.stop())
}

fn verdicts(stage: &Stage, scenes: &[Scene]) -> Result<Vec<(bool, String)>> {
    let [shared, _, inside, alone, _, outside] = scenes else { bail!("not every scene was played") };
    let (all, status) = (total(scenes), stage.status()?);
    let only = |scene: &Scene, name: &str| {
        scene.answers_of(name) > 0 && scene.answers_of(name) + scene.failures() == scene.requests
    };
    let of = [OUTSIDE.0, INSIDE.0].map(|name| shared.answers_of(name));
    let is_even = of[0] * 3 > of[1] * 2 && of[1] * 3 > of[0] * 2;
    let got = [OUTSIDE.0, INSIDE.0].map(|name| status.backend(name).map_or(0, |backend| backend.got()));
    let answered = [OUTSIDE.0, INSIDE.0].map(|name| all.answers_of(name));
    Ok(vec![
        (all.failures() == 0, format!("{} of {} requests failed", all.failures(), all.requests)),
        (all.strangers == 0, "every server saw the client's own address and port".to_owned()),
        (is_even, format!("both shared: {} answers outside, {} inside", of[0], of[1])),
        (only(inside, INSIDE.0), format!("deployed inside: {} answers", inside.answers_of(INSIDE.0))),
        (only(alone, INSIDE.0), format!("the same without a daemon: {} answers", alone.answers_of(INSIDE.0))),
        (only(outside, OUTSIDE.0), format!("shifted outside: {} answers", outside.answers_of(OUTSIDE.0))),
        (got == answered, format!("the kernel's count: {got:?}, the client's: {answered:?}")),
    ])
}

/// Checks that the programs are attached in the way that this kernel has.
fn say_hook(stage: &Stage) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = [numbers.next(), numbers.next()].map(Option::unwrap_or_default);
    let wanted = if version < TCX_SINCE { "clsact" } else { "tcx" };
    let doctor = output(&mut stage.pod_steer(&["doctor"]))?;
    let line = doctor.lines().find(|line| line.contains("device hook")).context("doctor names no hook")?;
    ensure!(line.contains(wanted), "the hook should be {wanted}: {line}");
    say::note(&format!("attached to devices by {wanted}"));
    Ok(())
}
