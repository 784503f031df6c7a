//! The client's side of the API, which the CLI uses.

use std::{io, path::Path};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::sleep};

use super::{
    alive::{NoAnswer, watched},
    types::ErrorBody,
};

/// Pause between attempts to connect while the backlog is full.
const BACKLOG_RETRY: std::time::Duration = std::time::Duration::from_millis(100);

/// Errors of a request to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No process listens there.
    #[error("pod-steer is not running (`{path}`: {reason}). Start it with `pod-steer run`.")]
    NoDaemon {
        /// The socket.
        path: String,
        /// Why the connection failed.
        reason: String,
    },
    /// The daemon does not answer.
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    /// This user lacks the permission.
    #[error("{0}")]
    Forbidden(String),
    /// The request is invalid; the daemon's explanation.
    #[error("{0}")]
    Refused(String),
    /// The request failed; the daemon's explanation.
    #[error("{0}")]
    Failed(String),
    /// The daemon is ending.
    #[error("{0}")]
    Ending(String),
    /// The connection broke off.
    #[error("the daemon closed the connection before it answered")]
    Http(#[from] hyper::Error),
    /// The answer cannot be parsed.
    #[error("cannot parse the daemon's answer; compare `pod-steer version` with the version in the daemon's log")]
    Answer(#[from] serde_json::Error),
}

impl ClientError {
    /// True if the request is invalid, so that a retry would fail too.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// True if a retry may succeed after a restart of the daemon.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NoDaemon { .. } | Self::NoAnswer(_) | Self::Http(_) | Self::Ending(_))
    }
}

/// Connects; retries while the daemon's backlog is full, since it may be about to accept.
pub(super) async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    loop {
        let path = || socket.display().to_string();
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(BACKLOG_RETRY).await,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::PermissionDenied => ClientError::Forbidden(format!(
                        "this user may not use the socket `{}`; run the command as root, or as a member of the group given by \
                         `pod-steer run --group` (to read only: `--viewers`)",
                        path()
                    )),
                    io::ErrorKind::ConnectionRefused => {
                        ClientError::NoDaemon { path: path(), reason: "connection refused".to_owned() }
                    }
                    io::ErrorKind::NotFound => {
                        ClientError::NoDaemon { path: path(), reason: "no such file".to_owned() }
                    }
                    _ => ClientError::NoDaemon { path: path(), reason: error.to_string() },
                });
            }
        }
    }
}

/// Sends a request and returns the answer, its body unread.
pub(super) async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Response<Incoming>, ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(connect(socket).await?)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "pod-steer")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| ClientError::Refused(e.to_string()))?;
    let response = sender.send_request(request).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    let said = serde_json::from_slice::<ErrorBody>(&bytes).map(|body| body.error);
    let said = said.unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned());
    Err(match status {
        StatusCode::FORBIDDEN => ClientError::Forbidden(said),
        StatusCode::SERVICE_UNAVAILABLE => ClientError::Ending(said),
        StatusCode::CONFLICT => ClientError::Failed(said),
        StatusCode::NOT_FOUND if said.starts_with("there is no such endpoint") => {
            ClientError::Failed("the daemon that runs is of another release than this command".to_owned())
        }
        status if status.is_server_error() => ClientError::Failed(said),
        _ => ClientError::Refused(said),
    })
}

/// Percent-encodes a text for use in a path or query.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Sends a GET request.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    ask(socket, Method::GET, path, Vec::new()).await
}

/// Sends a GET request whose answer is a text.
pub async fn text(socket: &Path, path: &str) -> Result<String, ClientError> {
    watched(socket, async {
        let response = send(socket, Method::GET, path, Vec::new()).await?;
        Ok(String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned())
    })
    .await
}

/// Sends a POST request.
pub async fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
    ask(socket, Method::POST, path, serde_json::to_vec(body)?).await
}

async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
    watched(socket, async {
        let response = send(socket, method, path, body).await?;
        Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
    })
    .await
}

/// Follows a stream of lines until it ends or `each` returns false.
pub async fn follow(socket: &Path, path: &str, each: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
    watched(socket, lines(socket, path, each)).await
}

async fn lines(socket: &Path, path: &str, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
    let mut body = send(socket, Method::GET, path, Vec::new()).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if !each(&line[..end]) {
                return Ok(());
            }
        }
    }
    Ok(())
}
