//! The privileges of the daemon and of its child, and access to the pins.

use std::{
    fs::{self, Permissions},
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Stage},
    process::{output, run},
    require,
    rollouts::{none_lost, web},
    tools, wait,
};
use rustix::io::{FdFlags, fcntl_setfd};

/// A field of `/proc/PID/status`.
fn field(pid: u32, name: &str) -> Result<String> {
    let said = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t").map(str::to_owned));
    value.with_context(|| format!("no {name} in {said}"))
}

#[test]
fn the_daemon_and_its_child_are_under_a_filter_of_system_calls() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    assert_eq!(field(stage.daemon.pid(), "Seccomp")?, "2", "the daemon's");
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    let holder = stage.host.cgroup().join("pod-steer/pod-steer/paused/cgroup.procs");
    let holder: u32 = fs::read_to_string(&holder).with_context(|| holder.display().to_string())?.trim().parse()?;
    // One filter more than the daemon's two. It inherits those.
    let filters = |pid| -> Result<u32> { Ok(field(pid, "Seccomp_filters")?.parse()?) };
    let confined = filters(stage.daemon.pid())? + 1;
    wait::until_ok("the holder to be confined", || Ok((filters(holder)? == confined).then_some(())))?;
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(field(holder, set)?, "0000000000000000", "{set}");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{holder}/environ"))?, "", "no variable is handed down");
    let mut open: Vec<PathBuf> =
        fs::read_dir(format!("/proc/{holder}/fd"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    open.sort();
    let targets: Vec<String> =
        open.iter().map(|fd| Ok(fs::read_link(fd)?.display().to_string())).collect::<Result<_>>()?;
    ensure!(targets.len() == 3 && targets[0].starts_with("socket:"), "{targets:?}");
    assert_eq!(targets[1..], ["/dev/null", "/dev/null"]);
    stage.daemon.order_done("unpause web")?;
    none_lost(&pod_steer_tests::rollouts::connect(stage.host.net(), 20)?)
}

#[test]
fn the_processes_that_hold_clients_can_do_nothing_else() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    let mut entries =
        fs::read_dir(stage.host.cgroup().join("pod-steer/pod-steer"))?.flatten().map(|entry| entry.path());
    let held = entries.find(|path| path.display().to_string().contains("/held-")).context("nothing is held")?;
    let pids = fs::read_to_string(held.join("cgroup.procs"))?;
    let pids: Vec<u32> = pids.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(pids.len() == 2, "{pids:?}");
    for pid in pids {
        let own = || -> Result<u32> { Ok(field(pid, "Seccomp_filters")?.parse()?) };
        let daemon: u32 = field(stage.daemon.pid(), "Seccomp_filters")?.parse()?;
        wait::until_ok("a process that holds clients to be confined", || Ok((own()? == daemon + 1).then_some(())))?;
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(field(pid, set)?, "0000000000000000", "{set}");
        }
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/environ"))?, "", "no variable is handed down");
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().map(|entry| fs::read_link(entry.path()));
        let open: Vec<String> = open.map(|target| Ok(target?.display().to_string())).collect::<Result<_>>()?;
        let allowed = |target: &&String| ["socket:", "pipe:", "/dev/null"].iter().any(|kind| target.starts_with(kind));
        let others: Vec<_> = open.iter().filter(|target| !allowed(target)).collect();
        let sockets = open.iter().filter(|target| target.starts_with("socket:")).count();
        ensure!(others.is_empty() && sockets == 1, "{open:?}");
    }
    stage.daemon.order_done("unpause web").map(drop)
}

/// An unprivileged user tries everything that mode 1777 of the parent directory allows.
#[test]
fn no_other_user_touches_the_pins() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "nsenter"]));
    let stage = Stage::without_engine()?;
    let pins = stage.host.path(BPFFS);
    let as_other = |args: &[&str]| -> Result<Command> {
        let mut command = stage.host.command("setpriv")?;
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(args);
        Ok(command)
    };
    assert_eq!(fs::metadata(&pins)?.permissions().mode() & 0o777, 0o700);
    let pin = format!("{BPFFS}/maps/RULES");
    ensure!(stage.host.path(&pin).exists(), "{pin}");
    for tried in [["ls", BPFFS], ["rm", &pin], ["mkdir", &format!("{BPFFS}/mine")], ["rmdir", BPFFS]] {
        let done = output(&mut as_other(&tried)?)?;
        ensure!(!done.status.success(), "{tried:?}: {done:?}");
    }
    ensure!(stage.host.path(&pin).exists(), "nothing was removed");

    // If root opens the directory by mistake, the daemon closes it again, and reports a condition if others could have written to it.
    fs::set_permissions(&pins, Permissions::from_mode(0o755))?;
    wait::until("the directory to be closed again", || {
        let mode = fs::metadata(&pins).ok()?.permissions().mode() & 0o777;
        (mode == 0o700).then_some(())
    })?;
    wait::until("the log line", || stage.daemon.log().contains("was open to other users").then_some(()))?;
    fs::set_permissions(&pins, Permissions::from_mode(0o777))?;
    let said = stage.daemon.wait_for("a condition", |status| status.said_about("pins").into_iter().next())?;
    ensure!(said.contains("is writable by other users (mode 0777)") && said.contains("chmod go-w"), "{said}");
    fs::set_permissions(&pins, Permissions::from_mode(0o755))?;
    stage.daemon.wait_for("the condition to end", |status| status.warnings().is_empty().then_some(()))
}

/// The daemon does not pass on a descriptor that it has inherited from its parent.
#[test]
fn the_holder_of_a_pause_gets_no_descriptor_of_the_daemons_parent() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let inherited = fs::File::open("/dev/zero")?;
    fcntl_setfd(&inherited, FdFlags::empty())?;
    let stage = Stage::without_engine()?;
    fcntl_setfd(&inherited, FdFlags::CLOEXEC)?;
    let kept = format!("/proc/{}/fd/{}", stage.daemon.pid(), inherited.as_raw_fd());
    ensure!(fs::read_link(&kept)? == Path::new("/dev/zero"), "the daemon has it");
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    let holder = fs::read_to_string(stage.host.cgroup().join("pod-steer/pod-steer/paused/cgroup.procs"))?;
    let holder: u32 = holder.trim().parse()?;
    wait::until_ok("the holder to have closed it", || {
        Ok((fs::read_dir(format!("/proc/{holder}/fd"))?.count() == 3).then_some(()))
    })?;
    run(stage.daemon.cli()?.args(["unpause", "web"])).map(drop)
}
