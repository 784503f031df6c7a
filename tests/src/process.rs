//! Processes that end with their owner: killed by pidfd, never by a name or by a number that may be somebody else's.

use std::{
    fs::{self, File},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{
        Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, pidfd_open, pidfd_send_signal,
        setrlimit, waitid,
    },
    time::Timespec,
};

use crate::wait;

/// A started process with its output in files. Dropping it kills it and waits for it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    stdout: PathBuf,
    stderr: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command; its output goes to `DIR/NAME.out` and `DIR/NAME.err`, after what is there already.
    pub fn start(command: &mut Command, dir: &Path, name: &str) -> Result<Self> {
        let (stdout, stderr) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        command.stdin(Stdio::null()).stdout(append(&stdout)?).stderr(append(&stderr)?);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let pid = Pid::from_child(&child);
        // Not waited for yet, so the number is still this child's.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("opening a pidfd")?;
        Ok(Self { child, pidfd, stdout, stderr, status: None })
    }

    /// Its number in the initial namespace of processes.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything written to standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// Everything written to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Sends a signal; it is no error if the process has ended meanwhile. After SIGSTOP it waits until all threads stand
    /// still: until then a thread that blocks in accept() may still take a connection.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) if signal == Signal::STOP => self.wait_stopped(),
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("sending {signal:?}")),
        }
    }

    fn wait_stopped(&self) -> Result<()> {
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        wait::until_ok("a process to stop", || Ok(waitid(WaitId::PidFd(self.pidfd.as_fd()), stopped)?.map(drop)))
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.wait_for(Duration::ZERO)?.is_some())
    }

    /// Waits until it ends; fails after `max`.
    pub fn wait(&mut self, max: Duration) -> Result<ExitStatus> {
        self.wait_for(max)?
            .ok_or_else(|| anyhow!("process {} has not ended after {max:?}\n{}", self.pid(), self.stderr()))
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(wait::STUCK).map(drop)
    }

    fn wait_for(&mut self, max: Duration) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let timeout = Timespec { tv_sec: max.as_secs() as i64, tv_nsec: max.subsec_nanos().into() };
            let ended = poll(&mut [PollFd::new(&self.pidfd.as_fd(), PollFlags::IN)], Some(&timeout))?;
            if ended > 0 {
                self.status = Some(self.child.wait()?);
            }
        }
        Ok(self.status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("process {} could not be ended: {error:#}", self.pid());
        }
    }
}

/// Lets this process, and those that it starts from now on, open as many files as it may allow itself.
pub fn raise_files() -> Result<()> {
    let files = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })?)
}

/// Runs a command to its end and returns its output whatever its exit code.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))
}

/// Runs a command to its end; returns its standard output, or fails with its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{}{stdout}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}
