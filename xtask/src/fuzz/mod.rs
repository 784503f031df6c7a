//! `cargo xtask fuzz`: builds the targets of `tests/fuzz` with coverage counters and runs each under libFuzzer for a bounded
//! time, from the inputs that the repository keeps. What libFuzzer finds is written below `target/fuzz`.

mod program;
mod run;
mod scratch;

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::{paths, say};
use run::Run;
use scratch::Scratch;

/// How long a target runs by default.
const SECONDS: u64 = 10;

#[derive(clap::Args)]
pub struct Options {
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u64,
    /// Only this target: a directory of tests/fuzz/corpus
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Only this input, once: repeats a failure
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "keep")]
    input: Option<PathBuf>,
    /// Replace the inputs in tests/fuzz/corpus by a minimal set that reaches the same code
    #[arg(long)]
    keep: bool,
}

/// The `fuzz` task.
pub fn fuzz(options: &Options) -> Result<ExitCode> {
    let targets = match &options.target {
        Some(name) => vec![name.clone()],
        None => all()?,
    };
    let program = program::build()?;
    let scratch = Scratch::make()?;
    let runs = targets.into_iter().map(|target| Run { target, program: program.clone(), scratch: scratch.path() });
    let runs: VecDeque<Run> = runs.collect();
    if let Some(input) = &options.input {
        let input = fs::canonicalize(input).with_context(|| format!("there is no {}", input.display()))?;
        runs.iter().try_for_each(|run| run.repeat(&input))?;
        return Ok(ExitCode::SUCCESS);
    }
    let failures = side_by_side(runs, |run| {
        run.fuzz(options.seconds)?;
        if options.keep { run.keep() } else { Ok(()) }
    });
    match failures.as_slice() {
        [] => Ok(ExitCode::SUCCESS),
        failures => bail!("{}", failures.join("\n")),
    }
}

/// The names of the targets: a unit test of theirs demands that each has a corpus.
fn all() -> Result<Vec<String>> {
    let corpus = paths::root().join("tests/fuzz/corpus");
    let entries = fs::read_dir(&corpus).with_context(|| format!("cannot list {}", corpus.display()))?;
    let mut names: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
    ensure!(!names.is_empty(), "{} is empty", corpus.display());
    names.sort();
    Ok(names)
}

/// Runs all targets, one for each processor at a time, and returns the failures.
fn side_by_side(runs: VecDeque<Run>, work: impl Fn(&Run) -> Result<()> + Sync) -> Vec<String> {
    let (queue, failures) = (Mutex::new(runs), Mutex::new(Vec::new()));
    let next = || queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(run) = next() {
                    if let Err(error) = work(&run) {
                        println!("   {} {}", run.target, say::red("failed"));
                        failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}
