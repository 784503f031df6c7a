//! Commands that are run in a container, through its engine.

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};
use serde_json::json;

use super::{
    answers::{ExecMade, ExecState},
    http::{ANSWER_BYTES_MAX, Client, EngineError, REQUEST_MAX},
};
use pod_steer_model::check::Outcome;

use crate::api::client::encoded;

/// Maximum number of bytes of a command's output that a message shows.
const SHOWN_BYTES: usize = 200;

/// Runs commands in one container, one at a time.
pub struct Commands {
    client: Client,
    id: String,
    /// The command that was started last, until it is known to have exited. The caller that started it may have timed out.
    running: Option<String>,
}

impl Commands {
    /// Commands for this container of the engine with this address.
    pub fn new(engine: &str, id: &str) -> Self {
        Self { client: Client::new(engine), id: id.to_owned(), running: None }
    }

    /// Runs a command and waits for its exit; exit code 0 passes. If the engine does not answer, the result is unknown.
    pub async fn run(&mut self, command: &[String]) -> Outcome {
        match self.attempt(command).await {
            Ok(outcome) => outcome,
            // The container is gone or not running, which has an event of its own.
            Err(EngineError::Refused { status: 404 | 409, message }) => Outcome::Unknown(message),
            Err(EngineError::Refused { message, .. }) => {
                Outcome::Failed(format!("cannot run {:?}: {message}", command.join(" ")))
            }
            Err(error) => Outcome::Unknown(format!("the engine does not answer: {}", crate::chain(&error))),
        }
    }

    async fn attempt(&mut self, command: &[String]) -> Result<Outcome, EngineError> {
        let shown = format!("{:?}", command.join(" "));
        if let Some(id) = &self.running {
            if self.state(id).await.is_ok_and(|exec| exec.running == Some(true)) {
                return Ok(Outcome::Failed(format!("{shown}, started by an earlier probe, is still running")));
            }
            self.running = None;
        }
        let body = |value: serde_json::Value| Bytes::from(value.to_string());
        let path = format!("/containers/{}/exec", encoded(&self.id));
        let made = body(json!({ "AttachStdout": true, "AttachStderr": true, "Cmd": command }));
        let id = self.client.post::<ExecMade>(&path, made, REQUEST_MAX).await?.id;
        self.running = Some(id.clone());
        let start = body(json!({ "Detach": false, "Tty": false }));
        let output = self.client.stream(Method::POST, &format!("/exec/{}/start", encoded(&id)), start).await?;
        let last = last_output(output).await?;
        let exit_code = self.state(&id).await?.exit_code;
        self.running = None;
        let said = String::from_utf8_lossy(&last);
        let said = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        Ok(match exit_code {
            Some(0) => Outcome::Passed,
            Some(code) => Outcome::Failed(format!("{shown} exited with code {code}; output: {:?}", said.trim())),
            None => Outcome::Unknown(format!("the engine did not report the exit code of {shown}")),
        })
    }

    async fn state(&self, id: &str) -> Result<ExecState, EngineError> {
        self.client.get(&format!("/exec/{}/json", encoded(id)), ANSWER_BYTES_MAX).await
    }
}

/// The end of a command's output.
async fn last_output(mut body: Incoming) -> Result<Vec<u8>, EngineError> {
    let mut output = Output::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(EngineError::Http)?.into_data() {
            output.take(data);
        }
    }
    Ok(output.last)
}

/// Parses the output of a command as an engine sends it: chunks of standard output and standard error, each after a header of eight bytes
/// with its length.
#[derive(Default)]
struct Output {
    head: Vec<u8>,
    /// Bytes of the part that are still to come.
    left: usize,
    last: Vec<u8>,
}

impl Output {
    fn take(&mut self, mut data: Bytes) {
        const HEAD: usize = 8;
        while data.has_remaining() {
            if self.left == 0 {
                let more = data.split_to(data.len().min(HEAD - self.head.len()));
                self.head.extend_from_slice(&more);
                if let [.., a, b, c, d] = *self.head
                    && self.head.len() == HEAD
                {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.head.clear();
                }
                continue;
            }
            let part = data.split_to(data.len().min(self.left));
            self.left -= part.len();
            self.last.extend_from_slice(&part[part.len().saturating_sub(SHOWN_BYTES)..]);
            self.last.drain(..self.last.len().saturating_sub(SHOWN_BYTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_output_is_kept_however_it_is_split() {
        let part = |text: &str| [&[1, 0, 0, 0][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let sent = [part("first\n"), part(""), part(&"x".repeat(1000)), part("\nlast\n")].concat();
        for size in [1, 3, 8, 100, sent.len()] {
            let mut output = Output::default();
            sent.chunks(size).for_each(|chunk| output.take(Bytes::copy_from_slice(chunk)));
            assert_eq!(output.last.len(), SHOWN_BYTES);
            assert!(output.last.ends_with(b"xx\nlast\n"), "{size}");
        }
        // A chunk of huge announced length takes no more memory.
        let mut output = Output::default();
        output.take(Bytes::from_static(&[1, 0, 0, 0, 255, 255, 255, 255]));
        (0..1000).for_each(|_| output.take(Bytes::from(vec![b'x'; 4096])));
        assert_eq!(output.last.len(), SHOWN_BYTES);
    }
}
