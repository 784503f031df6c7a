//! Clients of a paused service that are held, and the processes that hold them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{daemon::Stage, netns::NetNs, wait};

/// How long an answer may take once the servers have the connections.
const PATIENCE: Duration = Duration::from_secs(20);
/// The kernel's counter of SYNs that were repeated.
const SYN_RETRIES: &str = "TCPSynRetrans";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";

/// Clients that are connected and have sent a request.
#[derive(Debug)]
pub struct Waiting {
    /// Their connections.
    pub streams: Vec<TcpStream>,
}

impl Waiting {
    /// Connects so many clients. A client that is held is connected by its first SYN, so none may be repeated.
    pub fn connect(net: &NetNs, targets: &[&str], count: usize) -> Result<Self> {
        let mut streams = Vec::new();
        let before = net.tcp_counter(SYN_RETRIES)?;
        for number in 0..count {
            let target: SocketAddr = targets[number % targets.len()].parse()?;
            let mut stream = net.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
            stream.write_all(REQUEST)?;
            streams.push(stream);
        }
        let repeated = net.tcp_counter(SYN_RETRIES)? - before;
        ensure!(repeated == 0, "{count} clients were connected after {repeated} SYNs were repeated");
        Ok(Self { streams })
    }

    /// None has been answered, closed or reset.
    pub fn wait_still(&mut self) -> Result<()> {
        for stream in &mut self.streams {
            stream.set_nonblocking(true)?;
            let read = stream.read(&mut [0; 1]);
            ensure!(read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{read:?}");
            stream.set_nonblocking(false)?;
        }
        Ok(())
    }

    /// Each is answered. Returns how many by the servers whose names begin so.
    pub fn answered(self, prefix: &str) -> Result<usize> {
        let mut by_prefix = 0;
        for (number, mut stream) in self.streams.into_iter().enumerate() {
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).with_context(|| format!("client {number}"))?;
            let is_ok = answer.split(' ').nth(1) == Some("200");
            ensure!(is_ok, "client {number}: {answer:?}");
            by_prefix += usize::from(answer.contains(prefix));
        }
        Ok(by_prefix)
    }

    /// Each is reset.
    pub fn lost(self) -> Result<()> {
        for mut stream in self.streams {
            stream.set_read_timeout(Some(PATIENCE))?;
            let read = stream.read(&mut [0; 1]);
            ensure!(read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{read:?}");
        }
        Ok(())
    }
}

/// The cgroups of processes that hold clients.
pub fn hold_cgroups(stage: &Stage) -> Vec<PathBuf> {
    let entries = fs::read_dir(stage.host.cgroup().join("pod-steer/pod-steer")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.display().to_string().contains("/held-")).collect()
}

/// The processes that hold clients.
pub fn holders(stage: &Stage) -> Vec<i32> {
    let text = |path: PathBuf| fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let lines: Vec<String> = hold_cgroups(stage).into_iter().map(text).collect();
    lines.iter().flat_map(|text| text.lines()).filter_map(|pid| pid.parse().ok()).collect()
}

/// Kills a process.
pub fn kill(pid: i32) -> Result<()> {
    let pidfd = pidfd_open(Pid::from_raw(pid).context("no pid")?, PidfdFlags::empty())?;
    Ok(pidfd_send_signal(&pidfd, Signal::KILL)?)
}

/// Kills all processes that hold clients, at one instant: the daemon cannot replace one of them before the other has ended.
pub fn kill_together(stage: &Stage) -> Result<()> {
    let mut all = hold_cgroups(stage).into_iter().map(|path| path.join("cgroup.kill"));
    all.try_for_each(|path| fs::write(&path, "1").with_context(|| format!("writing to {}", path.display())))
}

/// Waits until the status says that so many clients are held.
pub fn wait_held(stage: &Stage, count: usize) -> Result<()> {
    let mut last = serde_json::Value::Null;
    let waited = wait::until_ok(&format!("{count} clients to be held"), || {
        last = stage.daemon.said_of("web")?;
        Ok((last["pause"]["held"] == count).then_some(()))
    });
    waited.with_context(|| format!("{last}\n{}", stage.daemon.log_tail()))
}

/// Waits until the daemon has opened holds so often, and leads clients to the last one. Its processes are there before that.
pub fn wait_opened(stage: &Stage, count: usize) -> Result<()> {
    wait::until("a hold to be opened", || {
        (stage.daemon.log().matches("holds clients service=").count() == count).then_some(())
    })?;
    // What a turn of the daemon has changed is in force before it answers.
    stage.daemon.status().map(drop)
}

/// Waits until no process holds clients.
pub fn wait_gone(stage: &Stage) -> Result<()> {
    // Their cgroups stay as long as connections are counted there.
    wait::until("the holding processes to be gone", || holders(stage).is_empty().then_some(()))
}

/// How many SYNs were repeated on the host.
pub fn retries(stage: &Stage) -> Result<u64> {
    stage.host.net().tcp_counter(SYN_RETRIES)
}
