//! Detects a daemon that hangs or is stopped while the client waits for an answer. A slow answer is not an error: meanwhile a second
//! connection sends a request that the daemon's loop answers at once.

use std::{fs, path::Path, time::Duration};

use hyper::Method;
use tokio::time::{sleep, timeout};

use super::client::{ClientError, connect, send};

/// Time without an answer after which the daemon is checked.
const QUIET_MAX: Duration = Duration::from_secs(2);
/// Time limit of a check. Longer than a starting daemon takes until it answers.
const PING_MAX: Duration = Duration::from_secs(8);
/// Time between two checks.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Consecutive checks that a busy daemon may leave unanswered.
const BUSY_MAX: u32 = 6;
/// An operation that does not exist. The loop answers this at once.
const PING: &str = "/v1/operations/0";

/// The daemon does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod-steer{} at `{path}` does not answer within {seconds} s{}", pid_in_brackets(*.pid), reason(.state, *.pid))]
pub struct NoAnswer {
    path: String,
    pid: Option<i32>,
    seconds: u64,
    state: Option<char>,
}

fn pid_in_brackets(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

fn reason(state: &Option<char>, pid: Option<i32>) -> String {
    match (state, pid) {
        (Some('T'), Some(pid)) => format!(": it is stopped; continue it with `kill -CONT {pid}`"),
        (Some('t'), _) => ": a debugger has stopped it".to_owned(),
        (Some('D'), _) => ": it waits for a disk or for the kernel".to_owned(),
        (Some('Z' | 'X'), _) => ": it has ended".to_owned(),
        _ => "; see its log, and restart it if it hangs: traffic goes on without it".to_owned(),
    }
}

/// Waits for an answer as long as the daemon is alive.
pub(super) async fn watched<T>(
    socket: &Path,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::select! {
        biased;
        answer = answer => answer,
        error = silence(socket) => Err(error.into()),
    }
}

/// Resolves when the daemon no longer answers.
async fn silence(socket: &Path) -> NoAnswer {
    sleep(QUIET_MAX).await;
    let (mut seconds, mut unanswered) = (QUIET_MAX.as_secs(), 0);
    loop {
        let pid =
            timeout(QUIET_MAX, connect(socket)).await.ok().and_then(Result::ok).and_then(|stream| pid_of(&stream));
        let before = pid.and_then(process);
        if timeout(PING_MAX, send(socket, Method::GET, PING, Vec::new())).await.is_ok() {
            // A connection error is no hang. The awaited request fails too, with a better message.
            (seconds, unanswered) = (0, 0);
            sleep(PING_EVERY).await;
            continue;
        }
        seconds += PING_MAX.as_secs();
        unanswered += 1;
        let now = pid.and_then(process);
        let state = now.map(|process| process.state);
        let is_stopped = state.is_some_and(|state| "TtZX".contains(state));
        let works = before.zip(now).is_some_and(|(before, now)| now.ticks > before.ticks);
        if is_stopped || !works || unanswered == BUSY_MAX {
            return NoAnswer { path: socket.display().to_string(), pid, seconds, state };
        }
    }
}

/// The process that listens, if it is visible from this pid namespace.
fn pid_of(stream: &tokio::net::UnixStream) -> Option<i32> {
    stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
}

/// A process as proc_pid_stat(5) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    state: char,
    /// Processor time, in clock ticks.
    ticks: u64,
}

fn process(pid: i32) -> Option<Process> {
    parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

fn parse(stat: &str) -> Option<Process> {
    // The name before it may contain any character.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let ticks = fields.nth(10)?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Process { state, ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_shows_the_state_of_a_silent_daemon() {
        let silent = |pid, state| NoAnswer { path: "/run/x.sock".to_owned(), pid, seconds: 10, state }.to_string();
        assert_eq!(
            silent(Some(7), Some('T')),
            "pod-steer (pid 7) at `/run/x.sock` does not answer within 10 s: it is stopped; continue it with `kill -CONT 7`"
        );
        assert!(silent(Some(7), Some('D')).contains("waits for a disk"));
        assert!(silent(None, None).starts_with("pod-steer at `/run/x.sock` does not answer within 10 s; see its log"));
    }

    #[test]
    fn a_process_has_a_state_and_a_time() {
        let stat = "12 (odd) name) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20";
        assert_eq!(parse(stat), Some(Process { state: 'S', ticks: 42 }));
        assert_eq!((parse(""), parse("1 (x) S")), (None, None));
        assert!(process(std::process::id() as i32).is_some_and(|own| own.state == 'R' || own.state == 'S'));
    }
}
