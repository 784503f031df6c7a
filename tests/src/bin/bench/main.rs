//! What `cargo xtask bench` starts as root when everything is built and installed: measures, and writes what it found as
//! JSON ([`pod_steer_tests::measures`]). What it says meanwhile goes to standard error.
//!
//! Each section is one module that returns [`Section`]s; each has hosts and namespaces of its own, which end with it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use pod_steer_tests::measures::{FORMAT, Report, Section};

/// What to do.
struct Options {
    /// Fewer and shorter rounds.
    quick: bool,
    /// Only sections, or contestants, whose name contains this.
    only: Option<String>,
    /// Where the report goes.
    output: PathBuf,
}

fn options() -> Result<Options> {
    let (mut quick, mut only, mut output) = (false, None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => quick = true,
            "--only" => only = args.next(),
            "--output" => output = args.next().map(PathBuf::from),
            other => bail!("`{other}` is no option of the benchmark"),
        }
    }
    Ok(Options { quick, only, output: output.context("--output FILE is missing")? })
}

fn run(options: &Options) -> Result<Vec<Section>> {
    let _ = options;
    Ok(Vec::new())
}

fn main() -> ExitCode {
    let done = options().and_then(|options| {
        let sections = run(&options)?;
        let report = Report { format: FORMAT, machine: Vec::new(), quick: options.quick, sections };
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(&options.output, text).with_context(|| format!("writing {}", options.output.display()))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
