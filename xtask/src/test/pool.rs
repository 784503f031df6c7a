//! Runs the integration tests: each in a process of its own, several at a time.

use std::ffi::OsString;
use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::lines;
use super::tally::Tally;
use crate::cmd::{cargo, command, output};
use crate::{paths, say};

/// The files of tests that keep every processor busy, or measure how fast something is: each of these runs with nothing beside it.
const ALONE: [&str; 2] = ["hotswap", "switch_instant"];

/// The files with the longest tests. They begin first, so that none of them runs on when the others have ended.
const FIRST: [&str; 8] =
    ["affinity", "killed_steps", "old_goes", "on_demand", "readme", "up", "up_networks", "upgrade_layout"];

/// A test of the `tests` crate.
pub struct Test {
    /// Its file, without `.rs`.
    file: String,
    program: PathBuf,
    name: String,
}

/// The end of a test.
struct Ended {
    test: Test,
    passed: bool,
    took: Duration,
    output: String,
}

/// If no more tests than these fail, each runs again with nothing beside it: another process may have kept the machine busy, or a limit may
/// be too short for it. One that passes then is told at the end with its error, since it may as well show a fault.
const AGAIN_MAX: usize = 3;

/// A test that runs longer is shown, and one that runs as long as `LIMIT` (in a long test, `LONG_LIMIT`) is ended and has failed.
const SLOW: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(900);
const LONG_LIMIT: Duration = Duration::from_secs(7_200);
/// Between two looks at a test that runs.
const LOOK: Duration = Duration::from_millis(20);

/// How many run at a time: most of them wait for an engine most of the time.
pub fn usual_count() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get) + 1
}

/// Builds these files (`*` is all) and lists their tests; with filters, those whose file and name, as in `forward::a_test`, contain one.
pub fn list(files: &[&str], filters: &[String]) -> Result<Vec<Test>> {
    let mut build = cargo();
    // Of the workspace, so that crates have the features with which the unit tests were built.
    build.args(["test", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"]);
    build.args(files.iter().flat_map(|file| ["--test", file])).stderr(Stdio::inherit());
    let mut tests = Vec::new();
    for (file, program) in output(&mut build)?.lines().filter_map(program_of) {
        for line in output(command(&program).args(["--list", "--format", "terse"]))?.lines() {
            let Some(name) = line.strip_suffix(": test") else { continue };
            let full = format!("{file}::{name}");
            if filters.is_empty() || filters.iter().any(|filter| full.contains(filter.as_str())) {
                tests.push(Test { file: file.clone(), program: program.clone(), name: name.to_owned() });
            }
        }
    }
    ensure!(!tests.is_empty(), "no test has {} in its file and name", filters.join(" or "));
    Ok(tests)
}

/// The file and the program of tests that a message of cargo is about.
fn program_of(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    let program = message["executable"].as_str().filter(|_| is_test)?;
    Some((target["name"].as_str()?.to_owned(), program.into()))
}

/// Runs them, shows what each has said when it ends, and counts. If only a few fail of several that run at a time, those run again.
pub fn run(tests: Vec<Test>, variables: &[(&str, OsString)], count: usize, tally: &mut Tally) -> Result<()> {
    let dir = paths::target().join("tests-output");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let all = tests.len();
    let (alone, mut beside): (Vec<_>, Vec<_>) = tests.into_iter().partition(|test| ALONE.contains(&test.file.as_str()));
    beside.sort_by_key(|test| !FIRST.contains(&test.file.as_str()));
    let (mut number, mut failed) = (0, Vec::new());
    for (tests, count) in [(beside, count), (alone, 1)] {
        // The last one is taken first.
        let waiting = Mutex::new(tests.into_iter().rev().collect::<Vec<_>>());
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            for worker in 0..count {
                let (waiting, sender, file) = (&waiting, sender.clone(), dir.join(worker.to_string()));
                scope.spawn(move || {
                    while let Some(test) = waiting.lock().ok().and_then(|mut tests| tests.pop()) {
                        if sender.send(one(test, variables, &file)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for ended in receiver {
                number += 1;
                let ended = ended?;
                if let Err(error) = tell(&ended, &format!("{number}/{all}"), tally) {
                    failed.push((ended.test, error));
                }
            }
            anyhow::Ok(())
        })?;
    }
    let is_again = count > 1 && failed.len() <= AGAIN_MAX;
    for (test, error) in failed {
        if !is_again {
            tally.fail(&error);
            continue;
        }
        match tell(&one(test, variables, &dir.join("again"))?, "again, alone", tally) {
            Ok(()) => tally.unsteady(&error),
            Err(error) => tally.fail(&error),
        }
    }
    Ok(())
}

/// Its output goes to a file of its own, which no process that a test may leave behind keeps from being read.
fn one(test: Test, variables: &[(&str, OsString)], file: &Path) -> Result<Ended> {
    let shown = format!("{} {}", test.file, test.name);
    let _ = fs::remove_file(file);
    let out = File::create_new(file).with_context(|| format!("cannot make {}", file.display()))?;
    let mut process = command(&test.program);
    process.current_dir(paths::root().join("tests")).envs(variables.iter().cloned());
    // With a second thread, the harness says the name of a test only at its end.
    process.args(["--exact", &test.name, "--nocapture", "--color", "never", "--test-threads", "2"]);
    process.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let start = Instant::now();
    let mut process = process.spawn().with_context(|| format!("cannot start {shown}"))?;
    let is_long = variables.iter().any(|(name, _)| *name == "POD_STEER_TESTS_SOAK");
    let limit = if is_long { LONG_LIMIT } else { LIMIT };
    let mut is_told = false;
    let status = loop {
        if let Some(status) = process.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > SLOW && !is_told {
            say::note(&format!("{shown} runs for {} so far", say::elapsed(SLOW)));
            is_told = true;
        }
        if start.elapsed() > limit {
            process.kill()?;
            process.wait()?;
            break None;
        }
        thread::sleep(LOOK);
    };
    let mut output = String::from_utf8_lossy(&fs::read(file)?).into_owned();
    if status.is_none() {
        output = format!("Error: it was ended after {}\n{output}", say::elapsed(limit));
    }
    // An exit code alone may be that of a test which was not run.
    let passed = status.is_some_and(|status| status.success()) && lines::has_passed(&output);
    Ok(Ended { test, passed, took: start.elapsed(), output })
}

/// Shows how a test has ended, and counts it if it has not failed; otherwise returns its name and error.
fn tell(ended: &Ended, number: &str, tally: &mut Tally) -> std::result::Result<(), String> {
    let name = format!("{} {}", ended.test.file, ended.test.name);
    let verdict = if ended.passed { say::green("passed") } else { say::red("failed") };
    println!("{verdict} {:>6.1} s ({number}) {name}", ended.took.as_secs_f64());
    for line in lines::without_harness(&ended.output) {
        println!("    {line}");
    }
    if !ended.passed {
        return Err(lines::error(&ended.output).map_or_else(|| name.clone(), |error| format!("{name}: {error}")));
    }
    let mut skips = lines::skips(&ended.output).peekable();
    if skips.peek().is_none() {
        tally.pass();
    }
    skips.for_each(|reason| tally.skip(&reason));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_found_in_what_cargo_says() {
        let message = |kind: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"pod"}},"executable":{executable}}}"#
            )
        };
        assert_eq!(program_of(&message("test", "\"/t/pod-1\"")), Some(("pod".to_owned(), "/t/pod-1".into())));
        assert_eq!(program_of(&message("test", "null")), None);
        assert_eq!(program_of(&message("bin", "\"/t/pod\"")), None);
        assert_eq!(program_of("{\"reason\":\"build-finished\"}"), None);
        assert_eq!(program_of("no JSON"), None);
    }
}
