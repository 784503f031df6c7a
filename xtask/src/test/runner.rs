//! Runs the tests, shows their output as it arrives, and counts.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, bail};

use super::lines::Libtest;
use super::pool;
use super::tally::Tally;
use crate::cmd::{cargo, shown};

/// The tests inside the crates, which need neither root nor a kernel.
pub fn unit_tests(filters: &[String], tally: &mut Tally) -> Result<()> {
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--lib", "--bins", "--no-fail-fast", "--color", "never"]);
    tests.args(["--", "--show-output"]).args(filters);
    run(&mut tests, tally)
}

/// The programs that the integration tests start.
pub struct Programs {
    pub pod_steer: PathBuf,
    pub named_server: PathBuf,
    /// The directory of later releases, if any test needs them.
    pub later: Option<PathBuf>,
}

/// The tests of the `tests` crate, against the programs built before.
pub fn integration_tests(programs: &Programs, filters: &[String], tally: &mut Tally) -> Result<()> {
    start(programs, &["*"], false, filters, tally)
}

/// The files of the tests that have a larger size, or take the slower of two programs, when `tests/src/scale.rs` says so.
const LONG: [&str; 21] = [
    "affinity",
    "canary_judge",
    "closings",
    "closings_protocols",
    "explain",
    "forward_deploys",
    "forward_flood",
    "forward_fronts",
    "forward_kills",
    "forward_mtu",
    "forward_networks",
    "forward_source_ports",
    "hold",
    "hotswap",
    "idle_wake",
    "metrics",
    "recreate",
    "up",
    "up_old",
    "up_projects",
    "up_repeated",
];

/// Those tests at that size. Each keeps the processors busy, so one runs at a time.
pub fn long_tests(programs: &Programs, filters: &[String], tally: &mut Tally) -> Result<()> {
    start(programs, &LONG, true, filters, tally)
}

fn start(programs: &Programs, files: &[&str], soak: bool, filters: &[String], tally: &mut Tally) -> Result<()> {
    let mut variables = vec![
        ("POD_STEER_BIN", programs.pod_steer.clone().into_os_string()),
        ("POD_STEER_NAMED_SERVER", programs.named_server.clone().into_os_string()),
    ];
    variables.extend(programs.later.iter().map(|later| ("POD_STEER_LATER_RELEASES", later.clone().into_os_string())));
    if soak {
        variables.push(("POD_STEER_TESTS_SOAK", "1".into()));
    }
    let tests = pool::list(files, filters)?;
    pool::run(tests, &variables, if soak { 1 } else { pool::usual_count() }, tally)
}

fn run(tests: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut runner = tests
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(tests)))?;
    let (sender, receiver) = channel();
    forward(runner.stdout.take().context("stdout is piped")?, sender.clone());
    forward(runner.stderr.take().context("stderr is piped")?, sender);
    let mut lines = Libtest::default();
    for line in receiver {
        if lines.read(&line) {
            println!("{line}");
        }
    }
    let status = runner.wait()?;
    let counts = lines.counts();
    (0..counts.passed).for_each(|_| tally.pass());
    counts.failures.iter().for_each(|name| tally.fail(name));
    counts.skips.iter().for_each(|reason| tally.skip(reason));
    if !status.success() && counts.failures.is_empty() {
        bail!("`{}` failed without a failed test: {status}", shown(tests));
    }
    Ok(())
}

fn forward(pipe: impl Read + Send + 'static, sender: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}
