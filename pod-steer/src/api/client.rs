//! The client's side of the API, which the CLI uses.

use std::{io, path::Path};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::types::ErrorBody;

/// What can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("no daemon answers at `{path}`; start one: pod-steer run")]
    NoDaemon {
        /// The socket.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// We may not ask.
    #[error("the daemon's socket `{path}` may not be used by this user; run this as root, or join its group")]
    Forbidden {
        /// The socket.
        path: String,
    },
    /// The daemon says what was wrong with what was asked.
    #[error("{0}")]
    Refused(String),
    /// The daemon says why it cannot now, or could not.
    #[error("{0}")]
    Failed(String),
    /// The daemon is ending.
    #[error("{0}")]
    Ending(String),
    /// The conversation broke off.
    #[error("the daemon broke off")]
    Http(#[from] hyper::Error),
    /// Daemon and client do not understand each other.
    #[error("the daemon's answer is not understood (is it another version?)")]
    Answer(#[from] serde_json::Error),
}

impl ClientError {
    /// True if what was asked is at fault, and asking again would not help.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// True if a daemon that is restarted may answer.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NoDaemon { .. } | Self::Http(_) | Self::Ending(_))
    }
}

/// Sends a request and returns the answer, its body unread.
async fn send(socket: &Path, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, ClientError> {
    let shown = socket.display().to_string();
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: shown },
        _ => ClientError::NoDaemon { path: shown, source },
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
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
        StatusCode::FORBIDDEN => ClientError::Forbidden { path: socket.display().to_string() },
        StatusCode::SERVICE_UNAVAILABLE => ClientError::Ending(said),
        StatusCode::CONFLICT => ClientError::Failed(said),
        status if status.is_server_error() => ClientError::Failed(said),
        _ => ClientError::Refused(said),
    })
}

/// A text as one part of a path or a query, whatever is in it.
pub fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Asks for something.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    let response = send(socket, Method::GET, path, Vec::new()).await?;
    Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
}

/// Orders something.
pub async fn post<T: DeserializeOwned>(socket: &Path, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
    let response = send(socket, Method::POST, path, serde_json::to_vec(body)?).await?;
    Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
}

/// Follows a stream of lines until it ends or `each` says so by `false`.
pub async fn follow(socket: &Path, path: &str, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), ClientError> {
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
