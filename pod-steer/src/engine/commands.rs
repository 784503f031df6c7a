//! Commands that are run in a container, through its engine.

use pod_steer_model::check::Outcome;

use super::{Engine, EngineError};

/// Runs commands in one container, one at a time.
pub struct Commands<E> {
    engine: E,
    id: String,
    /// The command that was started last, until it is known to have exited. The caller that started it may have timed out.
    running: Option<String>,
}

impl<E: Engine> Commands<E> {
    /// Commands for this container.
    pub fn new(engine: E, id: &str) -> Self {
        Self { engine, id: id.to_owned(), running: None }
    }

    /// Runs a command and waits for its exit; exit code 0 passes. If the engine does not answer, the result is unknown.
    pub async fn run(&mut self, command: &[String]) -> Outcome {
        match self.attempt(command).await {
            Ok(outcome) => outcome,
            // The container is gone or not running, which has an event of its own.
            Err(EngineError::NotFound(message) | EngineError::Conflict(message)) => Outcome::Unknown(message),
            Err(EngineError::Refused(message)) => {
                Outcome::Failed(format!("cannot run {:?}: {message}", command.join(" ")))
            }
            Err(error) => Outcome::Unknown(format!("the engine does not answer: {}", crate::chain(&error))),
        }
    }

    async fn attempt(&mut self, command: &[String]) -> Result<Outcome, EngineError> {
        let shown = format!("{:?}", command.join(" "));
        if let Some(id) = &self.running {
            if self.engine.command(id).await.is_ok_and(|state| state.is_running) {
                return Ok(Outcome::Failed(format!("{shown}, started by an earlier probe, is still running")));
            }
            self.running = None;
        }
        let id = self.engine.prepare(&self.id, command).await?;
        self.running = Some(id.clone());
        let last = self.engine.run(&id).await?;
        let exit_code = self.engine.command(&id).await?.exit_code;
        self.running = None;
        let said = String::from_utf8_lossy(&last);
        let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        Ok(match exit_code {
            Some(0) => Outcome::Passed,
            Some(code) => Outcome::Failed(format!("{shown} exited with code {code}; output: {:?}", said.trim())),
            None => Outcome::Unknown(format!("the engine did not report the exit code of {shown}")),
        })
    }
}

#[cfg(test)]
mod tests;
