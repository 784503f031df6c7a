//! Commands that are run in a container, through its engine.

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    exec::{CreateExecOptions, StartExecResults},
};
use futures_util::StreamExt as _;

use super::{REQUEST_TIMEOUT_S, reach::ERROR_CHARS_MAX};
use crate::{health::Outcome, text::shown};

/// Bytes of a command's last output that a message shows.
const SHOWN_BYTES: usize = 200;

/// Runs commands in one container, never two at a time.
pub struct Commands {
    engine: String,
    id: String,
    docker: Option<Docker>,
    /// The command that was started last, until it is known to have ended: whoever waited for it may have given up.
    running: Option<String>,
}

impl Commands {
    /// In the container with this id, of the engine with this address.
    pub fn new(engine: &str, id: &str) -> Self {
        Self { engine: engine.to_owned(), id: id.to_owned(), docker: None, running: None }
    }

    /// Runs a command to its end; it passes if its exit code is 0. Nothing follows from an engine that does not answer.
    pub async fn run(&mut self, command: &[String]) -> Outcome {
        match self.attempt(command).await {
            Ok(outcome) => outcome,
            // It is gone or does not run: that has an event of its own.
            Err(Error::DockerResponseServerError { status_code: 404 | 409, message }) => {
                Outcome::Unknown(shown(&message, ERROR_CHARS_MAX))
            }
            Err(Error::DockerResponseServerError { message, .. }) => {
                let message = shown(message.trim(), ERROR_CHARS_MAX);
                Outcome::Failed(format!("{:?} cannot be run: {message}", command.join(" ")))
            }
            Err(error) => {
                // The next attempt connects anew.
                self.docker = None;
                let error = shown(&crate::chain(&error), ERROR_CHARS_MAX);
                Outcome::Unknown(format!("the engine does not answer: {error}"))
            }
        }
    }

    async fn attempt(&mut self, command: &[String]) -> Result<Outcome, Error> {
        let docker = match &self.docker {
            Some(docker) => docker.clone(),
            None => {
                let docker = Docker::connect_with_unix(&self.engine, REQUEST_TIMEOUT_S, API_DEFAULT_VERSION)?;
                self.docker.insert(docker.negotiate_version().await?).clone()
            }
        };
        let shown = format!("{:?}", command.join(" "));
        if let Some(id) = &self.running {
            if docker.inspect_exec(id).await.is_ok_and(|exec| exec.running == Some(true)) {
                return Ok(Outcome::Failed(format!("{shown} of an earlier probe still runs")));
            }
            self.running = None;
        }
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(command.to_vec()),
            ..CreateExecOptions::default()
        };
        let id = docker.create_exec(&self.id, options).await?.id;
        self.running = Some(id.clone());
        let mut last: Vec<u8> = Vec::new();
        if let StartExecResults::Attached { mut output, .. } = docker.start_exec(&id, None).await? {
            while let Some(part) = output.next().await {
                last.extend_from_slice(part?.as_ref());
                last.drain(..last.len().saturating_sub(SHOWN_BYTES));
            }
        }
        let exit_code = docker.inspect_exec(&id).await?.exit_code;
        self.running = None;
        let said = String::from_utf8_lossy(&last);
        let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        Ok(match exit_code {
            Some(0) => Outcome::Passed,
            Some(code) => Outcome::Failed(format!("{shown} ended with {code} and said {:?}", said.trim())),
            None => Outcome::Unknown(format!("the engine does not say how {shown} ended")),
        })
    }
}
