//! Requests to an engine. Any program may listen on its socket, so every answer has a maximum length and, unless it is a stream, a time
//! limit.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{net::UnixStream, sync::Semaphore, time::timeout};
use tracing::warn;

use crate::{
    bounded::{self, Unread},
    engine::{ANSWER_MAX, EngineError, reach::path_of},
    text::shown,
};

/// Maximum size of an answer about one container or image.
pub(super) const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Maximum size of an event.
const LINE_BYTES_MAX: usize = 256 << 10;
/// Maximum size of a skipped event. A longer line is an error.
const SKIPPED_BYTES_MAX: usize = 16 << 20;
/// Maximum size of an answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Maximum size of an error body.
const ERROR_BYTES_MAX: usize = 16 << 10;
/// Maximum length of an engine's own message in an error, in characters.
const ERROR_CHARS_MAX: usize = 300;
/// Maximum number of concurrent requests, not counting streams.
const REQUESTS_MAX: usize = 16;

/// An engine, by the path of its socket.
#[derive(Clone, Debug)]
pub(super) struct Client {
    socket: PathBuf,
    requests: Arc<Semaphore>,
}

/// The body of an engine's error.
#[derive(Deserialize)]
struct Complaint {
    message: String,
}

impl Client {
    pub fn new(engine: &str) -> Self {
        Self { socket: path_of(engine).to_owned(), requests: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }

    /// Sends a GET request; reads at most `bytes_max` bytes.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, bytes_max: usize) -> Result<T, EngineError> {
        self.ask(Method::GET, path, Bytes::new(), bytes_max, ANSWER_MAX).await
    }

    /// Sends a POST request.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: Bytes, max: Duration) -> Result<T, EngineError> {
        self.ask(Method::POST, path, body, ANSWER_BYTES_MAX, max).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        bytes_max: usize,
        max: Duration,
    ) -> Result<T, EngineError> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or_default());
        let answer = async {
            let _turn = self.requests.acquire().await;
            let body = self.send(method, path, body).await?.into_body();
            collected(body, bytes_max, &what).await
        };
        let bytes = timeout(max, answer).await.map_err(|_| EngineError::Timeout(max))??;
        // An answer without a body counts as an empty one.
        let json: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(json)
            .map_err(|error| EngineError::Unreadable { what, reason: shown(&error.to_string(), ERROR_CHARS_MAX) })
    }

    /// Sends a request whose answer is a stream; its head has to come in time.
    pub async fn stream(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, EngineError> {
        let sent = timeout(ANSWER_MAX, self.send(method, path, body)).await;
        Ok(sent.map_err(|_| EngineError::Timeout(ANSWER_MAX))??.into_body())
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, EngineError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(EngineError::Connect)?;
        let mut http = http1::Builder::new();
        http.max_buf_size(HEAD_BYTES_MAX);
        let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "engine")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body));
        let request = request
            .map_err(|error| EngineError::Refused(format!("invalid path {}: {error}", shown(path, ERROR_CHARS_MAX))))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        // 304: nothing had to be done.
        if status.is_success() || status.as_u16() == 304 {
            return Ok(response);
        }
        let bytes = collected(response.into_body(), ERROR_BYTES_MAX, "an error").await?;
        let said = serde_json::from_slice::<Complaint>(&bytes).map(|complaint| complaint.message);
        let said = said.unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned());
        let message = shown(said.trim(), ERROR_CHARS_MAX);
        Err(match status.as_u16() {
            404 => EngineError::NotFound(message),
            409 => EngineError::Conflict(message),
            _ => EngineError::Refused(message),
        })
    }
}

pub(super) fn broken(error: hyper::Error) -> EngineError {
    EngineError::Broken(error.into())
}

async fn collected(body: Incoming, max: usize, what: &str) -> Result<Vec<u8>, EngineError> {
    bounded::read(body, max).await.map_err(|unread| match unread {
        Unread::TooLong => EngineError::TooLong { what: format!("the answer to {what}"), max },
        Unread::Broken(error) => broken(error),
    })
}

/// The lines of a stream. A line that is too long for an event is skipped: one container with large labels must not end the events of
/// all others.
pub(super) struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// Bytes of the buffer that have no end of a line.
    searched: usize,
    /// Bytes of the line that is being skipped.
    skipped: usize,
}

impl Lines {
    pub fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, skipped: 0 }
    }

    /// The next line; `None` at the end of the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, EngineError> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                match std::mem::take(&mut self.skipped) {
                    0 => return Ok(Some(line.freeze())),
                    skipped => warn!(bytes = skipped + line.len(), "skipped an event that is too long"),
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.skipped > 0 || self.searched > LINE_BYTES_MAX {
                self.skipped += self.searched;
                self.searched = 0;
                self.buffer.clear();
            }
            if self.skipped > SKIPPED_BYTES_MAX {
                return Err(EngineError::TooLong { what: "an event".to_owned(), max: SKIPPED_BYTES_MAX });
            }
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(self.buffer.split().freeze()));
                }
                Some(frame) => {
                    if let Ok(data) = frame.map_err(broken)?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
