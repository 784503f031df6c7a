//! A paused service: its clients retransmit their SYNs, whatever happens to the daemon, and no client is refused.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    load::{Load, Running, Tally},
    report, require,
    rollouts::{clients, none_lost, web, web_on},
    tools, wait,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Clients of each family.
const CLIENTS: u64 = 3;
/// Above the time to the fifth retransmission of a SYN, since the length of a pause is not limited: 31 seconds, if
/// `net.ipv4.tcp_syn_linear_timeouts` is 0.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long no client may be answered: longer than the time to the second retransmission of a SYN.
const WATCHED: Duration = Duration::from_millis(3500);

/// Clients of both families.
struct Clients([Running; 2]);

impl Clients {
    fn start(stage: &Stage) -> Result<Self> {
        let start = |target: &str| {
            let load = Load::to(target.parse()?).threads(CLIENTS).timeout(PATIENCE);
            load.pause(Duration::from_millis(1)).start(stage.host.net())
        };
        Ok(Self([start("127.0.0.1:80")?, start("[::1]:80")?]))
    }

    fn answered(&self) -> [u64; 2] {
        self.0.each_ref().map(Running::answered)
    }

    /// Waits until clients of each family are answered.
    fn get_on(&self) -> Result<()> {
        let before = self.answered();
        wait::until("clients of both families to be answered", || {
            let now = self.answered();
            (now[0] > before[0] + 20 && now[1] > before[1] + 20).then_some(())
        })
    }

    /// No client is answered for a while, once the connections from before the pause are done.
    fn wait_outside(&self, stage: Option<&Stage>) -> Result<()> {
        if let Some(stage) = stage {
            stage.daemon.wait_idle("web")?;
        }
        // A client counts an answer some time after the server has given it.
        let before = wait::until("the counts of the clients to stand still", || {
            let before = self.answered();
            thread::sleep(Duration::from_secs(1));
            (self.answered() == before).then_some(before)
        })?;
        let since = Instant::now();
        while since.elapsed() < WATCHED {
            ensure!(self.answered() == before, "{:?} answered after {before:?} although it is paused", self.answered());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn stop(self) -> Result<Tally> {
        let mut total = Tally::default();
        for load in self.0 {
            total.merge(load.stop()?);
        }
        Ok(total)
    }
}

fn holder_cgroup(stage: &Stage) -> PathBuf {
    stage.host.cgroup().join("pod-steer/pod-steer/paused")
}

/// The processes that hold the listener, including those that have just ended.
fn holders(stage: &Stage) -> Vec<i32> {
    let pids = fs::read_to_string(holder_cgroup(stage).join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// The one process that holds the listener.
fn holder(stage: &Stage) -> Result<i32> {
    // The kernel tells of a new program before it tells of its arguments.
    let (pid, command) = wait::until("one holder", || {
        let [pid] = <[i32; 1]>::try_from(holders(stage)).ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (!command.is_empty()).then_some((pid, command))
    })?;
    ensure!(command.ends_with(b"hold-pause\0"), "pid {pid}: {}", String::from_utf8_lossy(&command));
    Ok(pid)
}

fn kill(pid: i32) -> Result<()> {
    let pidfd = pidfd_open(Pid::from_raw(pid).context("no pid")?, PidfdFlags::empty())?;
    Ok(pidfd_send_signal(&pidfd, Signal::KILL)?)
}

#[test]
fn clients_wait_whatever_happens_to_the_daemon() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _servers =
        [web_on(&stage, "v1-1", "[::]:8080").start(&stage)?, web_on(&stage, "v2-1", "[::]:8080").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let clients = Clients::start(&stage)?;
    clients.get_on()?;

    stage.daemon.order_done("pause web")?;
    clients.wait_outside(Some(&stage))?;
    let first = holder(&stage)?;
    stage.daemon.kill()?;
    clients.wait_outside(None)?;
    stage.daemon.restart()?;
    ensure!(stage.daemon.decision("web")?["paused"] == true, "{}", stage.daemon.decision("web")?);
    ensure!(holder(&stage)? == first, "the listener is the one that was there");
    clients.wait_outside(Some(&stage))?;
    let paused = stage.daemon.status()?.service("web").map_or(0, |service| service.counter("paused"));
    ensure!(paused >= 2 * CLIENTS, "{paused} SYNs were given to the listener");

    stage.daemon.order_done("unpause web")?;
    clients.get_on()?;
    wait::until("the holder and its cgroup to be gone", || (!holder_cgroup(&stage).exists()).then_some(()))?;
    let tally = clients.stop()?;
    report::figure("clients of a service that was paused, its daemon killed meanwhile", &tally);
    none_lost(&tally)?;
    let service = stage.daemon.wait_idle("web")?;
    // Those that were held came to the servers by a move.
    let moved: u64 = service.backends.iter().map(|backend| backend.moved_in).sum();
    let served = service.opened() + moved;
    ensure!(served == tally.answered() && service.counter("refused_no_backend") == 0, "{service:#?}");
    Ok(())
}

#[test]
fn a_holder_that_is_killed_is_replaced() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _server = web_on(&stage, "v1-1", "[::]:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("pause web")?;
    // A holder that this daemon has started, then one of an earlier daemon.
    for earlier in [false, true] {
        let before = holder(&stage)?;
        if earlier {
            stage.daemon.kill()?;
            stage.daemon.restart()?;
        }
        let killed = Instant::now();
        kill(before)?;
        wait::until("another holder", || holders(&stage).iter().any(|pid| *pid != before).then_some(()))?;
        let took = killed.elapsed();
        report::figure("a killed holder is replaced after", format!("{took:?}"));
        let after = holder(&stage)?;
        ensure!(after != before, "another process: {after}");
        // The new holder takes effect with the next plan.
        stage.daemon.wait_for("the service to be as it was", |status| status.service("web").map(drop))?;
        let clients = Clients::start(&stage)?;
        clients.wait_outside(None)?;
        stage.daemon.order_done("unpause web")?;
        clients.get_on()?;
        none_lost(&clients.stop()?)?;
        stage.daemon.order_done("pause web")?;
    }
    Ok(())
}

#[test]
fn an_unpause_that_the_kernel_refuses_resets_no_client() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // One table for all clients, one for those of the network. During the pause the second one is free.
    let stage = Stage::limited("SLOT_TABLES=2")?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    stage.daemon.order_done("shift web --from 10.0.0.0/8=v2")?;
    stage.daemon.order_done("pause web")?;
    let other = Exec::new("other-1", "other", "81:8081", "0.0.0.0:8081").start(&stage)?;
    stage.daemon.wait_ready("other", 1)?;

    let held = holder(&stage)?;
    let refused = stage.daemon.order("unpause web")?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("the kernel has not accepted"), "{refused:?}");
    ensure!(holder(&stage)? == held, "the tables still lead to the listener of the pause");
    let clients = clients().timeout(PATIENCE).threads(CLIENTS).start(stage.host.net())?;
    drop(other);
    // The daemon tries again when the table is free.
    wait::until("clients to be answered", || (clients.answered() > 100).then_some(()))?;
    none_lost(&clients.stop()?)?;
    wait::until("the holder and its cgroup to be gone", || (!holder_cgroup(&stage).exists()).then_some(()))
}

#[test]
fn unload_during_a_pause_leaves_nothing() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for daemon_lives in [true, false] {
        let mut stage = Stage::without_engine()?;
        let _server = web_on(&stage, "v1-1", "[::]:8080").start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        let before = stage.host.net().listening_ports()?;
        stage.daemon.order_done("pause web")?;
        let pid = holder(&stage)?;
        let held = stage.host.net().listening_ports()?;
        ensure!(held.len() == before.len() + 1, "one more listens: {held:?}");
        if !daemon_lives {
            stage.daemon.kill()?;
        }
        stage.daemon.unload()?;
        // A process that has ended has no command line, also before its exit code is collected.
        wait::until("the holder to be gone", || {
            fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |command| command.is_empty()).then_some(())
        })?;
        let cgroup = stage.host.cgroup().join("pod-steer");
        ensure!(!cgroup.exists(), "{} is left", cgroup.display());
        let after = stage.host.net().listening_ports()?;
        ensure!(after == before, "{after:?} listen, and before {before:?} did");
    }
    Ok(())
}
