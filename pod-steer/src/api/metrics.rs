//! Metrics over HTTP: on the API's socket, and on a TCP port if one is configured. That port serves nothing else, and no request to it
//! changes anything.

pub mod content;
mod format;
pub mod measured;
pub mod page;
mod process;
pub mod totals;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::warn;

use super::{App, Shared, ask, asks::Ask, refuse};
pub use format::Format;
use measured::Measured;
use process::Usage;

/// Connections to the TCP port that are served at a time; others wait in its backlog.
const CLIENTS_MAX: usize = 16;
/// Time limit for the head of a request.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// Time limit for a connection, which is for one request.
const CONNECTION_MAX: Duration = Duration::from_secs(15);
/// Maximum size of a head, and of the buffer of one client.
const BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Between two attempts to open the port.
const OPEN_PAUSE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The TCP port.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    /// `None` until the address is free.
    listener: Option<TcpListener>,
}

impl Port {
    /// Opens the port.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { address, listener: Some(TcpListener::from_std(listener)?) })
    }

    /// A port that is opened when it is served and its address is free.
    pub fn later(address: SocketAddr) -> Self {
        Self { address, listener: None }
    }

    async fn listener(self) -> TcpListener {
        let mut found = self.listener;
        loop {
            if let Some(listener) = found {
                return listener;
            }
            sleep(OPEN_PAUSE).await;
            found = Self::open(self.address).ok().and_then(|port| port.listener);
        }
    }
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/v1/metrics",
    responses((
        status = 200, description = "The text format of Prometheus, or OpenMetrics 1.0 if the client accepts it",
        content(
            (String = "text/plain"),
            (String = "application/openmetrics-text"),
        ),
    )),
)]
pub(super) async fn metrics(State(shared): App, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::accepted(accept);
    let (status, measured) = match read(&shared).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    // With a thousand backends it is a megabyte of text: the loop is not to wait for that.
    let page = spawn_blocking(move || format.of(content::of_daemon(&status, &measured, Usage::own().ok())));
    match page.await {
        Ok(page) => ([(header::CONTENT_TYPE, format.content_type())], page).into_response(),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written; see the daemon's log"),
    }
}

/// What metrics are made of.
pub(super) async fn read(shared: &Shared) -> Result<(super::Status, Measured), Response> {
    let measured = ask(shared, Ask::Measured).await?;
    Ok((ask(shared, Ask::Status).await?, measured))
}

/// One scrape of the TCP port at a time reaches the daemon's loop, as with viewers.
async fn scraped(State(shared): App, headers: HeaderMap) -> Response {
    let _turn = shared.viewing.acquire().await;
    metrics(State(Arc::clone(&shared)), headers).await
}

/// Serves the TCP port until the future is dropped.
pub(super) async fn serve(port: Port, shared: Arc<Shared>) {
    let listener = port.listener().await;
    let app = Router::new()
        .route("/metrics", routing::get(scraped))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "this port serves only /metrics") })
        .method_not_allowed_fallback(|| async { refuse(StatusCode::METHOD_NOT_ALLOWED, "/metrics can only be read") })
        .with_state(shared);
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&clients).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                connections.spawn(async move {
                    let _ = timeout(CONNECTION_MAX, converse(stream, app)).await;
                    drop(slot);
                });
            }
            Err(error) => failed(&error).await,
        }
    }
}

/// Answers one request. A connection that stayed open for the next scrape would keep a slot from others.
async fn converse(stream: TcpStream, app: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(BUFFER_BYTES_MAX).keep_alive(false);
    let _ = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
}

async fn failed(error: &io::Error) {
    warn!(%error, "cannot accept a client of the metrics");
    sleep(ACCEPT_PAUSE).await;
}
