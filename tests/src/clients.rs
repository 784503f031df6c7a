//! Common clients: `wrk`, `h2load` and `curl`, run repeatedly until stopped. Each reports how many requests were answered and what
//! failed; this module reads both.

use std::{
    fmt::{self, Display},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{netns::NetNs, process::output};

/// A program and its way of connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `wrk`, on connections that are kept alive.
    WrkKept,
    /// `wrk`, a connection for each request.
    WrkShort,
    /// `h2load --h1`, on connections that are kept alive.
    H2load,
    /// `curl`, many requests on a connection.
    CurlKept,
    /// `curl`, a connection for each request.
    CurlShort,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::WrkKept, Self::WrkShort, Self::H2load, Self::CurlKept, Self::CurlShort];
    /// The programs that must be installed.
    pub const PROGRAMS: [&str; 3] = ["wrk", "h2load", "curl"];

    /// The command for one run. No answer may take longer than 20 seconds, as with the loads of [`crate::load`].
    fn line(self, target: SocketAddr) -> String {
        match self {
            Self::WrkKept => format!("wrk -t1 -c8 -d2s --timeout 20s http://{target}/"),
            Self::WrkShort => format!("wrk -t1 -c2 -d2s --timeout 20s -H Connection:close http://{target}/"),
            Self::H2load => format!("h2load --h1 -n 4000 -c 4 -N 20s http://{target}/"),
            Self::CurlKept => format!("curl {CURL} http://{target}/[1-50]"),
            Self::CurlShort => format!("curl {CURL} -H Connection:close http://{target}/[1-50]"),
        }
    }

    fn read(self, stdout: &str) -> Option<Counts> {
        match self {
            Self::WrkKept | Self::WrkShort => read_wrk(stdout),
            Self::H2load => read_h2load(stdout),
            Self::CurlKept | Self::CurlShort => Some(read_curl(stdout)),
        }
    }

    /// Runs it in a namespace, again and again.
    pub fn start(self, ns: &NetNs, target: SocketAddr) -> Result<Running> {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ns, shared) = (ns.try_clone()?, (Arc::clone(&stop), Arc::clone(&answered)));
        let line = self.line(target);
        let runs = thread::spawn(move || {
            let mut total = Counts::default();
            while !shared.0.load(Ordering::Relaxed) {
                total.merge(self.run(&ns, &line)?);
                shared.1.store(total.answered, Ordering::Relaxed);
            }
            Ok(total)
        });
        Ok(Running { program: self, stop, answered, runs: Some(runs) })
    }

    fn run(self, ns: &NetNs, line: &str) -> Result<Counts> {
        let mut words = line.split(' ');
        let output = output(ns.command(words.next().context("no program")?)?.args(words))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let mut counts = self.read(&stdout).with_context(|| format!("{line} said {stdout}{stderr}"))?;
        if !output.status.success() || !stderr.is_empty() {
            counts.complaints.push(format!("{}: {stderr}", output.status));
        }
        Ok(counts)
    }
}

/// One line for each answer, with its status; errors on standard error.
const CURL: &str = "--silent --show-error --fail --max-time 20 --output /dev/null --write-out %{http_code}\\n";

/// The counts of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests with a good answer.
    pub answered: u64,
    /// All errors, in the program's own words.
    pub complaints: Vec<String>,
}

impl Counts {
    fn merge(&mut self, other: Self) {
        self.answered += other.answered;
        self.complaints.extend(other.complaints);
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests answered, {} complaints", self.answered, self.complaints.len())?;
        if !self.complaints.is_empty() {
            write!(f, "; first {:?}", &self.complaints[..self.complaints.len().min(3)])?;
        }
        Ok(())
    }
}

/// A running program. Dropping it makes the current run the last one.
#[derive(Debug)]
pub struct Running {
    /// Which one.
    pub program: Program,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    runs: Option<JoinHandle<Result<Counts>>>,
}

impl Running {
    /// Requests answered in the runs that have ended.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for the current run, and adds up.
    pub fn stop(mut self) -> Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        let runs = self.runs.take().context("it has been stopped")?;
        runs.join().map_err(|_| anyhow!("{:?} panicked", self.program))?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// `  121 requests in 2.00s, 1MB read`; the line `Socket errors: ...` is there only if there were some, and so is
/// `Non-2xx or 3xx responses: ...`.
fn read_wrk(stdout: &str) -> Option<Counts> {
    let line = stdout.lines().find(|line| line.contains(" requests in "))?;
    let answered = line.split_whitespace().next()?.parse().ok()?;
    let bad = |line: &&str| line.contains("Socket errors") || line.contains("Non-2xx");
    Some(Counts { answered, complaints: stdout.lines().filter(bad).map(|line| line.trim().to_owned()).collect() })
}

/// `requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout`
fn read_h2load(stdout: &str) -> Option<Counts> {
    let line = stdout.lines().find(|line| line.starts_with("requests: "))?;
    let count = |word: &str| -> Option<u64> {
        let part = line.trim_start_matches("requests: ").split(", ").find(|part| part.ends_with(word))?;
        part.split(' ').next()?.parse().ok()
    };
    let (total, answered) = (count("total")?, count("succeeded")?);
    let complaints = if total == answered { Vec::new() } else { vec![line.to_owned()] };
    Some(Counts { answered, complaints })
}

fn read_curl(stdout: &str) -> Counts {
    let (good, bad): (Vec<&str>, Vec<&str>) = stdout.lines().partition(|line| *line == "200");
    let complaints = bad.into_iter().map(|line| format!("answer {line:?}")).collect();
    Counts { answered: good.len() as u64, complaints }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(answered: u64, complaints: &[&str]) -> Counts {
        Counts { answered, complaints: complaints.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn reads_what_the_programs_print() {
        let wrk = "  8 connections\n  60552 requests in 1.00s, 6.18MB read\n";
        assert_eq!(read_wrk(wrk), Some(counts(60552, &[])));
        let errors = "Socket errors: connect 0, read 3, write 0, timeout 0";
        assert_eq!(read_wrk(&format!("{wrk}  {errors}\nRequests/sec: 1\n")), Some(counts(60552, &[errors])));
        let h2load = "requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout";
        assert_eq!(read_h2load(h2load), Some(counts(10, &[])));
        let errored = "requests: 10 total, 10 started, 10 done, 9 succeeded, 1 failed, 1 errored, 0 timeout";
        assert_eq!(read_h2load(errored), Some(counts(9, &[errored])));
        assert_eq!(read_h2load("usage"), None);
        assert_eq!(read_curl("200\n000\n200\n"), counts(2, &["answer \"000\""]));
    }
}
