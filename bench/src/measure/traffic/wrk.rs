//! One run of `wrk`, for TLS. Its own report is for people, so a Lua script prints the numbers.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::process::run;

use super::lab::{Lab, Side};

/// Connections at a time.
pub const CONNECTIONS: u32 = 64;
/// Threads of wrk: one for each worker of the servers.
pub const THREADS: u32 = 2;

const SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\nnumbers %d %d %d %d %d\n", summary.duration, summary.requests,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// The requests of a run.
pub struct Load<'a> {
    /// Where the client is.
    pub from: Side,
    /// The address.
    pub addr: SocketAddr,
    /// The path.
    pub path: &'a str,
    /// A new connection for each request.
    pub close: bool,
    /// Its length.
    pub time: Duration,
}

/// The results.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// How long it took.
    pub seconds: f64,
    /// Requests that were answered.
    pub requests: f64,
    /// Latencies in microseconds: p50, p99.
    pub latency_us: [f64; 2],
    /// All errors, including answers other than 200.
    pub errors: f64,
}

impl Load<'_> {
    /// Runs it.
    pub fn run(&self, lab: &Lab) -> Result<Outcome> {
        let script = script(lab)?;
        let mut wrk = lab.command(self.from, "wrk")?;
        wrk.args(["--threads", &THREADS.to_string(), "--connections", &CONNECTIONS.to_string(), "--timeout", "2s"]);
        wrk.args(["--duration", &format!("{}s", self.time.as_secs())]).arg("--script").arg(script);
        if self.close {
            wrk.args(["--header", "Connection: close"]);
        }
        let url = format!("https://{}{}", self.addr, self.path);
        let printed = run(wrk.arg(&url))?;
        let outcome = numbers(&printed).with_context(|| format!("reading what wrk printed: {printed}"))?;
        ensure!(outcome.requests > 0.0, "no request to {url} was answered ({} errors)", outcome.errors);
        Ok(outcome)
    }
}

fn script(lab: &Lab) -> Result<PathBuf> {
    let path = lab.host.dir().join("numbers.lua");
    fs::write(&path, SCRIPT).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn numbers(printed: &str) -> Option<Outcome> {
    let line = printed.lines().find_map(|line| line.strip_prefix("numbers "))?;
    let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [duration_us, requests, p50, p99, errors] = numbers[..] else { return None };
    Some(Outcome { seconds: duration_us / 1e6, requests, latency_us: [p50, p99], errors })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        let printed = "Running 1s test @ http://10.77.0.1:8001/\n  2 threads\n\nnumbers 1000000 500 100 200 2\n";
        let outcome = numbers(printed).unwrap();
        assert_eq!((outcome.seconds, outcome.requests), (1.0, 500.0));
        assert_eq!((outcome.latency_us, outcome.errors), ([100.0, 200.0], 2.0));
        assert_eq!(numbers("numbers 1 2 3"), None);
        assert_eq!(numbers("unable to connect"), None);
    }
}
