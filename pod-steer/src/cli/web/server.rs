//! The HTTP server: connections with their limits, checks that hold for every request, and the routes.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::net::sockopt::set_tcp_user_timeout;
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::sleep,
};

use super::{access::Refusal, orders, page, site::Site, updates};

/// Connections that are served at a time; others wait in the backlog.
const CLIENTS_MAX: usize = 64;
/// Time limit for the head of a request, and for the pause between two requests.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long a client may leave what was sent to it unread.
const UNREAD_MAX_MS: u32 = 10_000;
/// Maximum size of a head, and of the buffer of one client.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Pause after a failed accept, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Everything comes from this server, and nothing else is run, loaded, connected to or framed.
const CONTENT_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                              form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// Headers of every answer. With `no-referrer`, browsers would hide the origin of a form from us too.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Serves until the future is dropped.
pub(super) async fn serve(listener: TcpListener, site: Arc<Site>) {
    let app = router(&site);
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&clients).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                connections.spawn(async move {
                    converse(stream, app).await;
                    drop(place);
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn converse(stream: TcpStream, app: Router) {
    // Linux ends a connection whose peer takes nothing for so long (`TCP_USER_TIMEOUT`, tcp(7)). It cannot fail on a TCP socket.
    let _ = set_tcp_user_timeout(&stream, UNREAD_MAX_MS);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(BUFFER_BYTES_MAX);
    // A client that leaves is no error.
    let _: Result<(), _> = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await;
}

fn router(site: &Arc<Site>) -> Router {
    let at = |path: &str| format!("{}{path}", site.access.folder());
    let file =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    Router::new()
        .route(&at(""), get(page::page))
        .route(&at("updates"), get(updates::updates))
        .route(&at("confirm"), post(orders::confirm))
        .route(&at("order"), post(orders::order))
        .route(&at("page.css"), file("text/css; charset=utf-8", include_str!("page.css")))
        .route(&at("page.js"), file("text/javascript; charset=utf-8", include_str!("page.js")))
        .route(&at("icon.svg"), file("image/svg+xml", include_str!("icon.svg")))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page\n").into_response() })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, "this can only be read\n").into_response()
        })
        .layer(middleware::from_fn_with_state(Arc::clone(site), with_session))
        // Only this needs no session.
        .route("/", get(enter))
        .layer(middleware::from_fn_with_state(Arc::clone(site), from_here))
        .with_state(Arc::clone(site))
}

/// Refuses requests that were meant for another host, and gives every answer its headers.
async fn from_here(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let mut response = match site.access.check_host(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests without a session, and those that would change something, unless the page may give orders and has sent them.
async fn with_session(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let checked = site.access.check_session(request.headers()).and_then(|()| match reads {
        true => Ok(()),
        false => site.access.check_origin(request.headers()).and(if site.allow_orders {
            Ok(())
        } else {
            Err(Refusal::ReadOnly)
        }),
    });
    match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::FORBIDDEN, format!("{}\n", self.text())).into_response()
    }
}

#[derive(Debug, Deserialize)]
struct Entrance {
    token: Option<String>,
}

/// Takes the token. The answer is a page that leads on, not a redirection: a browser that follows a link from elsewhere sends the cookie
/// only with a request that this page makes.
async fn enter(
    State(site): State<Arc<Site>>,
    method: Method,
    query: Result<Query<Entrance>, QueryRejection>,
) -> Response {
    if method != Method::GET {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let token = query.ok().and_then(|Query(entrance)| entrance.token);
    match site.access.enter(token.as_deref()) {
        Ok(cookie) => match HeaderValue::from_str(&cookie) {
            Ok(cookie) => ([(header::SET_COOKIE, cookie)], page::entrance(&site.access.folder())).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        },
        Err(refusal) => refusal.into_response(),
    }
}
