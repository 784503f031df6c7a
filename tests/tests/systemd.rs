//! The shipped unit, verbatim, under a real systemd.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    process::{Process, output, run},
    report, require, server,
    systemd::{Systemd, needed},
    tools, wait,
};

const UNIT: &str = include_str!("../../examples/pod-steer.service");
const NAME: &str = "pod-steer.service";

/// The capabilities that the daemon needs: KILL, DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF.
const NEEDED: u64 = 1 << 5 | 1 << 2 | 1 << 12 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39;
/// Those that it keeps: NET_BIND_SERVICE too.
const KEPT: u64 = NEEDED | 1 << 10;

/// The highest exposure that `systemd-analyze security` may report.
const EXPOSURE_MAX: f32 = 4.0;

fn wait_ready(systemd: &Systemd, service: &str, backends: usize) -> Result<()> {
    wait::until_ok("backends to be ready", || {
        Ok(systemd.status()?.and_then(|status| (status.service(service)?.ready() == backends).then_some(())))
    })
    .with_context(|| systemd.journal(&[]).unwrap_or_default())
}

/// A backend that an operator starts with `pod-steer exec`.
fn exec(host: &Host, systemd: &Systemd, name: &str) -> Result<Process> {
    let mut command = systemd.command("pod-steer")?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--version", "v1", "--name", name, "--"]);
    command.args(["/usr/local/bin/named-server", "--name", name, "--listen", "0.0.0.0:8080"]);
    host.start(name, &mut command)
}

fn restarted(systemd: &Systemd, before: &str) -> Result<String> {
    wait::until_ok("the unit to be active again, with another process", || {
        let active = systemd.property(NAME, "ActiveState")? == "active";
        Ok(systemd.main_pid(NAME)?.filter(|pid| active && pid != before))
    })
}

#[test]
fn the_shipped_unit_starts_restarts_and_loses_no_connection() -> Result<()> {
    require!(needed());
    let host = Host::new()?;
    let systemd = Systemd::start(&host, &[(NAME, UNIT)])?;
    let unit = "/etc/systemd/system/pod-steer.service";
    let verified = output(systemd.command("systemd-analyze")?.args(["verify", "--man=no", unit]))?;
    let warnings = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && !warnings.contains("pod-steer"), "systemd-analyze verify: {warnings}");
    let exposure = run(systemd.command("systemd-analyze")?.args(["security", NAME]))?;
    let exposure = exposure.lines().last().unwrap_or_default();
    let level = exposure.split_whitespace().find_map(|word| word.parse::<f32>().ok());
    ensure!(level.is_some_and(|level| level <= EXPOSURE_MAX), "systemd-analyze security: {exposure}");
    systemd.ctl(&["start", NAME])?;
    systemd.ctl(&["is-active", NAME])?;
    let pid = systemd.main_pid(NAME)?.context("it has a main process")?;
    let said = systemd.read(&format!("/proc/{pid}/status"))?;
    let fields: BTreeMap<&str, &str> = said.lines().filter_map(|line| line.split_once(":\t")).collect();
    for (set, wanted) in [("CapEff", KEPT), ("CapPrm", KEPT), ("CapInh", 0), ("CapAmb", 0)] {
        assert_eq!(u64::from_str_radix(fields[set], 16)?, wanted, "{set}: {said}");
    }
    assert_eq!((fields["NoNewPrivs"], fields["Seccomp"]), ("1", "2"), "{said}");

    let servers = [exec(&host, &systemd, "web-1")?, exec(&host, &systemd, "web-2")?];
    let said = || servers.iter().map(|server| server.stdout() + &server.stderr()).collect::<String>();
    wait_ready(&systemd, "web", 2).with_context(said)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).timeout(Duration::from_secs(60)).start(host.net())?;
    let flowing = |what: &str| -> Result<()> {
        let answered = load.answered();
        wait::until(&format!("connections {what}"), || (load.answered() > answered + 200).then_some(()))
    };
    flowing("at first")?;
    systemd.ctl(&["restart", NAME])?;
    systemd.ctl(&["daemon-reload"])?;
    let mut pid = restarted(&systemd, &pid)?;
    wait_ready(&systemd, "web", 2)?;
    flowing("after a restart")?;
    systemd.ctl(&["reload", NAME])?;
    wait::until_ok("the settings to be read again", || {
        let journal = systemd.journal(&["--unit", NAME])?;
        Ok(journal.contains("the settings were read again").then_some(()))
    })?;
    ensure!(systemd.main_pid(NAME)?.as_deref() == Some(&pid), "a reload ends nothing");
    // More often than systemd's default allows within ten seconds.
    for _ in 0..6 {
        run(systemd.command("kill")?.args(["-KILL", &pid]))?;
        pid = restarted(&systemd, &pid)?;
    }
    wait_ready(&systemd, "web", 2)?;
    flowing("after six kills")?;

    // The process that holds clients during a pause outlives the unit.
    run(systemd.command("pod-steer")?.args(["pause", "web"]))?;
    let holder = systemd.read("/sys/fs/cgroup/pod-steer/pod-steer/paused/cgroup.procs")?;
    systemd.ctl(&["restart", NAME])?;
    assert_eq!(systemd.read("/sys/fs/cgroup/pod-steer/pod-steer/paused/cgroup.procs")?, holder);
    run(systemd.command("pod-steer")?.args(["unpause", "web"]))?;
    flowing("after a pause")?;

    systemd.ctl(&["stop", NAME])?;
    flowing("while the unit is stopped")?;
    systemd.ctl(&["start", NAME])?;
    wait_ready(&systemd, "web", 2)?;
    let tally = load.stop()?;
    report::figure("the shipped unit restarted twice, killed six times, stopped once", &tally);
    ensure!(tally.losses.is_empty(), "{tally}");

    assert_eq!(systemd.journal(&["--unit", NAME, "--priority", "err"])?, "", "no errors of systemd's");
    let journal = systemd.journal(&["--unit", NAME])?;
    ensure!(!journal.contains("ERROR") && !journal.contains(" WARN "), "{journal}");
    systemd.ctl(&["stop", NAME])?;
    run(systemd.command("pod-steer")?.arg("unload")).map(drop)
}

/// Podman beside it, as a systemd service.
#[test]
fn the_shipped_unit_steers_containers() -> Result<()> {
    require!(needed());
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "tar"]));
    const SOCKET: &str = "/run/podman/podman.sock";
    let host = Host::new()?;
    let podman = Podman::command(&host)?;
    let args: Vec<_> = podman.get_args().map(|arg| arg.to_string_lossy()).collect();
    let service = format!(
        "[Service]\nType=exec\nRuntimeDirectory=podman\nKillMode=process\n\
         ExecStart=podman {} system service --time 0 unix://{SOCKET}\n",
        args.join(" ")
    );
    let settings = format!("[Service]\nEnvironment=POD_STEER_ENGINE=unix://{SOCKET}\n");
    let units =
        [(NAME, UNIT), ("pod-steer.service.d/engine.conf", settings.as_str()), ("podman.service", service.as_str())];
    let systemd = Systemd::start(&host, &units)?;
    systemd.ctl(&["start", "podman.service", NAME])?;
    let docker = Podman::client(host.path(SOCKET));
    wait::until_ok("podman to answer", || Ok(output(docker.command().arg("version"))?.status.success().then_some(())))
        .with_context(|| systemd.journal(&[]).unwrap_or_default())?;
    docker.import(Image::Named)?;
    let run = |name: &str| docker.run_detached(&server::named(name, "0.0.0.0:8080").service("web", "80:8080"));
    let _first = run("web-1")?;
    wait_ready(&systemd, "web", 1)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(host.net())?;
    systemd.ctl(&["restart", NAME])?;
    let second = run("web-2")?;
    wait_ready(&systemd, "web", 2)?;
    let answered = load.answered();
    wait::until("connections to both", || (load.answered() > answered + 200).then_some(()))?;
    second.stop()?;
    wait_ready(&systemd, "web", 1)?;
    let tally = load.stop()?;
    ensure!(tally.answered_by("web-1") > 0 && tally.answered_by("web-2") > 0, "{tally}");
    ensure!(tally.losses.is_empty(), "{tally}");
    Ok(())
}

/// System calls that the daemon's sandbox must refuse.
const PROBE: &str = r#"
import ctypes, errno, mmap, os, socket
def refused(what, wanted, attempt):
    try:
        attempt()
    except OSError as error:
        if error.errno == wanted:
            return
        raise SystemExit(f"{what}: {error}")
    raise SystemExit(f"{what}: allowed")
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "")
refused("AF_PACKET", errno.EAFNOSUPPORT, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
refused("write and execute", errno.EPERM, lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC))
for path in ["/usr/x", "/etc/x", "/var/lib/x"]:
    refused(path, errno.EROFS, lambda: open(path, "w"))
for path in ["/run/pod-steer/x", "/var/lib/pod-steer/x", "/sys/fs/bpf/x"]:
    os.mkdir(path)
    os.rmdir(path)
for home in ["/root", "/home"]:
    if os.listdir(home):
        raise SystemExit(f"{home} is visible")
if os.path.exists("/dev/kmsg"):
    raise SystemExit("/dev has devices")
refused("a user namespace", errno.EPERM, lambda: call(272, 0x10000000))
refused("mount", errno.EPERM, lambda: call(165, None, b"/mnt", b"tmpfs", 0, None))
refused("another clock", errno.EPERM, lambda: call(227, 0, None))
refused("set-user-ID", errno.EPERM, lambda: os.chmod("/run/pod-steer", 0o4755))
"#;

/// `unshare`, `mount` and `clock_settime` have these numbers on x86-64.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_sandbox_of_the_shipped_unit_is_in_force() -> Result<()> {
    require!(needed());
    require!(tools::root_and(&["python3"]));
    let host = Host::new()?;
    let start = UNIT.lines().find(|line| line.starts_with("ExecStart=")).context("the unit starts something")?;
    let python = tools::find("python3").context("python3")?;
    let probe = UNIT
        .replace(start, &format!("ExecStart={} -I /run/probe.py", python.display()))
        .replace("Type=notify", "Type=oneshot")
        .replace("Restart=always", "Restart=no");
    std::fs::write(host.path("/run/probe.py"), PROBE)?;
    let systemd = Systemd::start(&host, &[("probe.service", &probe)])?;
    systemd.ctl(&["start", "probe.service"])?;
    assert_eq!(systemd.property("probe.service", "Result")?, "success");
    // The same is allowed without the sandbox, so it is not the test's own environment that refuses.
    let bare = output(systemd.command("python3")?.args(["-I", "/run/probe.py"]))?;
    ensure!(!bare.status.success(), "{bare:?}");
    Ok(())
}

/// The minimal capabilities, as a container or another service manager may grant them.
#[test]
fn the_daemon_starts_with_the_capabilities_that_it_needs_and_no_others() -> Result<()> {
    require!(tools::root_and(&["setpriv", "ip"]));
    let needed = "+bpf,+net_admin,+perfmon,+sys_admin,+sys_ptrace,+kill,+dac_read_search";
    for (what, more) in [("with CAP_SETPCAP", ",+setpcap"), ("without CAP_SETPCAP", "")] {
        let host = Host::new()?;
        let sets = format!("-all,{needed}{more}");
        let mut command = host.command("setpriv")?;
        command.args([
            format!("--bounding-set={sets}"),
            format!("--inh-caps={sets}"),
            format!("--ambient-caps={sets}"),
        ]);
        command.arg(tools::pod_steer()?).args(["run", "--engine", "none", "--state-dir"]).arg(host.dir().join("state"));
        let mut daemon = host.start("daemon", &mut command)?;
        wait::until_ok(&format!("the daemon to be ready {what}"), || {
            ensure!(!daemon.has_ended()?, "{what}: {}", daemon.stderr());
            let answer = output(host.command(tools::pod_steer()?)?.arg("status"))?;
            Ok(answer.status.success().then_some(()))
        })?;
        let said = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
        let set = |name: &str| -> Result<u64> {
            let line = said.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            Ok(u64::from_str_radix(line.trim_start_matches(':').trim(), 16)?)
        };
        for name in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(set(name)?, NEEDED, "{what}: {name}");
        }
        assert_eq!((set("CapAmb")?, set("CapInh")?), (0, 0), "{what}");
    }
    Ok(())
}
