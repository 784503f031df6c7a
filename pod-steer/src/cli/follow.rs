//! Follows an operation of the daemon: prints a line for each completed step, and on a terminal a last line with its progress. The
//! operation continues if the CLI exits.

use std::{
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use tokio::time::sleep;

use super::{
    Failure,
    args::rollout::OutputFormat,
    table,
    terminal::{self, note, print_if_read},
    words,
};
use crate::{
    api::{client, types::OperationStatus},
    rollout::{Operation, Order},
    text::visible,
};

/// First polling interval. Each is half as long again.
const ASK_FIRST: Duration = Duration::from_millis(10);
/// Longest polling interval.
const ASK_LAST: Duration = Duration::from_millis(250);
/// Time to wait for a daemon that has exited.
const AWAY_MAX: Duration = Duration::from_secs(30);
/// Width of the bar.
const BAR_COLUMNS: usize = 16;
/// The exit code of shells for an interrupted command.
const INTERRUPTED: u8 = 130;

/// See the module.
pub(super) struct Follower<'a> {
    socket: &'a Path,
    operation: Operation,
    /// The output format. Steps go to standard output for text, to standard error for JSON.
    output: OutputFormat,
    told: usize,
    live: bool,
    away_since: Option<Instant>,
}

impl<'a> Follower<'a> {
    pub(super) fn new(socket: &'a Path, operation: Operation, output: OutputFormat) -> Self {
        let live = terminal::can_rewrite(&std::io::stderr());
        Self { socket, operation, output, told: 0, live, away_since: None }
    }

    /// Follows until the operation has ended. If it is interrupted, the operation goes on.
    pub(super) async fn follow(self) -> Result<Operation, Failure> {
        let operation = self.operation.clone();
        self.follow_unless(tokio::signal::ctrl_c()).await?.map_err(|_| {
            announce(&operation);
            Failure::Said(INTERRUPTED)
        })
    }

    /// Follows until the operation has ended, or something else has come, which is returned as the inner error.
    pub(super) async fn follow_unless<E>(
        mut self,
        other: impl Future<Output = E>,
    ) -> Result<Result<Operation, E>, Failure> {
        tokio::select! {
            ended = self.until_ended() => ended?,
            other = other => {
                self.show_live("");
                return Ok(Err(other));
            }
        }
        Ok(Ok(self.operation))
    }

    async fn until_ended(&mut self) -> Result<(), Failure> {
        let mut pause = ASK_FIRST;
        self.tell_steps()?;
        while self.operation.end.is_none() {
            sleep(pause).await;
            pause = (pause * 3 / 2).min(ASK_LAST);
            if let Some(status) = self.ask().await? {
                self.show_live(&progress(&status, jiff::Timestamp::now().as_millisecond()));
                self.operation = status.operation;
                self.tell_steps()?;
            }
        }
        self.show_live("");
        Ok(())
    }

    /// Asks for the status. `None` while the daemon is away.
    async fn ask(&mut self) -> Result<Option<OperationStatus>, Failure> {
        let (id, service) = (self.operation.id, &self.operation.service);
        let path = format!("/v1/operations/{id}");
        match client::get(self.socket, &path).await {
            Ok(status) => {
                if self.away_since.take().is_some() {
                    self.note("the daemon answers again");
                }
                Ok(Some(status))
            }
            Err(error) if error.is_bad_input() => Err(Failure::Failed(anyhow!(
                "the daemon no longer knows operation {id}; `pod-steer status {service}` shows the current shares"
            ))),
            Err(error) if !error.may_pass() => Err(error.into()),
            Err(error) => match self.away_since {
                None => {
                    self.away_since = Some(Instant::now());
                    let seconds = AWAY_MAX.as_secs();
                    let reason = error.to_string();
                    let reason = reason.trim_end_matches('.');
                    self.note(&format!("{reason}; waiting {seconds} s for the daemon, traffic goes on"));
                    Ok(None)
                }
                Some(since) if since.elapsed() < AWAY_MAX => Ok(None),
                Some(_) => Err(Failure::Failed(anyhow!(
                    "{error} The next daemon continues the operation; `pod-steer history {service}` then shows how it ended",
                ))),
            },
        }
    }

    fn tell_steps(&mut self) -> Result<(), Failure> {
        while let Some(step) = self.operation.steps.get(self.told) {
            let line = visible(&words::step(step)).into_owned();
            self.told += 1;
            self.show_live("");
            match self.output {
                OutputFormat::Text => print_if_read(&format!("{line}\n"))?,
                OutputFormat::Json => note(&line),
            }
        }
        Ok(())
    }

    fn note(&self, text: &str) {
        self.show_live("");
        note(text);
    }

    /// Rewrites the last line of the terminal.
    fn show_live(&self, text: &str) {
        if self.live {
            let mut stderr = std::io::stderr();
            // Clipped, because a line that the terminal wraps cannot be rewritten. Some wrap as soon as the last column is filled.
            let columns = usize::from(terminal::size(&stderr).0);
            let clipped = table::fitting(text.chars(), columns.saturating_sub(1));
            let _ = write!(stderr, "\r\x1b[2K{clipped}").and_then(|()| stderr.flush());
        }
    }
}

/// The last line: a bar, if it can be told how much is done, and the words. `indicatif` would bring a second library of terminals for this
/// one line, which is rewritten here anyway.
fn progress(status: &OperationStatus, now_ms: i64) -> String {
    let text = words::progress(status, now_ms);
    match words::part_done(status, now_ms) {
        Some(part) => format!("{} {text}", terminal::bar(part, BAR_COLUMNS)),
        None => text,
    }
}

/// Reports that the operation continues without this command.
pub(super) fn announce(operation: &Operation) {
    let service = &operation.service;
    let undo = match operation.order {
        Order::Rollback => String::new(),
        _ => format!(", end it with `pod-steer rollback {service}`"),
    };
    let what = words::order(&operation.order);
    note(&format!(
        "the daemon continues `{what}` (operation {}); watch it with `pod-steer status`{undo}",
        operation.id
    ));
}
