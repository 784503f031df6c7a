//! `pod-steer trace`, and the decisions that it has printed.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    daemon::{BPFFS, Stage},
    process::Process,
    wait,
};

/// What it says when its programs are attached.
const BEGUN: &str = "tracing new connections; Ctrl-C ends it";

/// `pod-steer trace --json`, while it runs.
#[derive(Debug)]
pub struct Trace(pub Process);

impl Trace {
    /// Starts it with further arguments, and waits until its programs are attached. Each has a name of its own.
    pub fn start(stage: &Stage, name: &str, args: &[&str]) -> Result<Self> {
        Self::start_by(stage, name, &mut command(stage, args)?)
    }

    /// The same by a command.
    pub fn start_by(stage: &Stage, name: &str, command: &mut Command) -> Result<Self> {
        let trace = Self(stage.host.start(name, command.arg("--json"))?);
        wait::until_ok("trace to begin", || Ok(trace.0.stderr().contains(BEGUN).then_some(())))
            .with_context(|| trace.0.stderr())?;
        Ok(trace)
    }

    /// All lines so far that are complete.
    pub fn lines(&self) -> Result<Vec<Value>> {
        let text = self.0.stdout();
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// The lines, once there are so many.
    pub fn wait(&self, count: usize) -> Result<Vec<Value>> {
        let lines = wait::until_ok("traced decisions", || {
            let lines = self.lines()?;
            Ok((lines.len() >= count).then_some(lines))
        });
        let lines = lines.with_context(|| format!("{} lines, {}", self.0.stdout(), self.0.stderr()))?;
        ensure!(lines.len() == count, "{} decisions, and {count} were made: {lines:#?}", lines.len());
        Ok(lines)
    }
}

/// `pod-steer trace` with these arguments.
pub fn command(stage: &Stage, args: &[&str]) -> Result<Command> {
    let mut command = stage.daemon.cli()?;
    command.env("POD_STEER_BPFFS", BPFFS).arg("trace").args(args);
    Ok(command)
}
