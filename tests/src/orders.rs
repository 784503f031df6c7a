//! Orders to the daemon: by the command line, as operators give them, or directly through its API.

use std::{
    io::{Read as _, Write as _},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{daemon::Daemon, process::output, wait};

/// A command of an operator, with its output.
#[derive(Clone, Debug)]
pub struct Ordered {
    /// The arguments.
    pub command: String,
    /// Its exit code.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Just before it was started.
    pub before: Instant,
    /// Just after it had returned.
    pub after: Instant,
}

impl Ordered {
    /// Runs `pod-steer` with these arguments, separated by spaces, to its end.
    pub fn by(mut cli: Command, args: &str) -> Result<Self> {
        cli.args(args.split(' '));
        let before = Instant::now();
        let output = output(&mut cli)?;
        let after = Instant::now();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ok(Self { command: args.to_owned(), code: output.status.code(), stdout, stderr, before, after })
    }

    /// How long it took.
    pub fn took(&self) -> Duration {
        self.after - self.before
    }

    /// Fails with its output unless it ended with this exit code.
    pub fn expect(self, code: i32) -> Result<Self> {
        let Self { command, stdout, stderr, .. } = &self;
        ensure!(self.code == Some(code), "{command}: exit code {:?}, not {code}\n{stdout}{stderr}", self.code);
        Ok(self)
    }
}

/// An order, as the API describes it. Declared here again on purpose, like the status.
#[derive(Clone, Debug, Deserialize)]
pub struct Operation {
    /// Its number.
    pub id: u64,
    /// `deploy`, `shift` ...
    pub order: String,
    /// Its phase.
    pub phase: Phase,
    /// The steps that are done.
    pub steps_done: Vec<Step>,
    /// How it ended.
    pub end: Option<End>,
    /// Why it is not on disk, if it is not.
    pub not_stored: Option<String>,
}

/// The phase of an operation.
#[derive(Clone, Debug, Deserialize)]
pub struct Phase {
    /// `waiting`, `draining`, `stopping`, `ended` ...
    pub name: String,
}

/// A step that is done.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// `ready`, `switched`, `drained` ...
    pub name: String,
    /// How long it took.
    pub took_us: u64,
    /// More about it.
    pub detail: String,
}

/// How an operation ended.
#[derive(Clone, Debug, Deserialize)]
pub struct End {
    /// `done`, `left`, `failed` ...
    pub outcome: String,
    /// A line for people.
    pub message: String,
}

impl Operation {
    /// How long a step took, if it is done.
    pub fn took(&self, step: &str) -> Option<Duration> {
        let found = self.steps_done.iter().find(|done| done.name == step);
        found.map(|done| Duration::from_micros(done.took_us))
    }
}

impl Daemon {
    /// Runs `pod-steer ARGS`, separated by spaces, to its end.
    pub fn order(&self, args: &str) -> Result<Ordered> {
        Ordered::by(self.cli()?, args)
    }

    /// Gives an order that must succeed at once.
    pub fn order_done(&self, args: &str) -> Result<Ordered> {
        self.order(args)?.expect(0).with_context(|| self.log_tail())
    }

    /// Sends a request to the API from this process: `GET` without a body, `POST` with one. Returns the HTTP status and the answer.
    pub fn api(&self, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(wait::STUCK))?;
        let method = if body.is_some() { "POST" } else { "GET" };
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: pod-steer\r\nConnection: close");
        let kind = format!("Content-Type: application/json\r\nContent-Length: {}", body.len());
        stream.write_all(format!("{head}\r\n{kind}\r\n\r\n{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("reading the answer to {method} {path}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no status in {head:?}"))?;
        let value = serde_json::from_str(body).with_context(|| format!("reading {answer}"))?;
        Ok((status, value))
    }

    /// The orders of a service, oldest first.
    pub fn history(&self, service: &str) -> Result<Vec<Operation>> {
        let (status, answer) = self.api(&format!("/v1/history?service={service}"), None)?;
        ensure!(status == 200, "the history of {service}: {status} {answer}");
        serde_json::from_value(answer).context("reading the history")
    }
}
