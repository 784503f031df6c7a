//! The API's description, generated from the handlers and the types that they take and give.

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "pod-steer",
        description = "HTTP/JSON on the daemon's unix socket, by default /run/pod-steer/api.sock. Root, the daemon's \
            user and the members of the group that `run --group` names may use all of it; the members of the group that \
            `run --viewers` names may send GET requests, and may not list connections.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "http://pod-steer", description = "The host name is ignored; connect to the unix socket")),
)]
pub(super) struct Frame;

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let document = super::router().split_for_parts().1;
    document.to_pretty_json().unwrap_or_default()
});

/// The OpenAPI 3.1 document.
pub fn document() -> &'static str {
    &DOCUMENT
}

/// This document
#[utoipa::path(
    get, path = "/v1/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value, content_type = "application/json")),
)]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document())
}

/// What this is, and where to look
///
/// The daemon reads no request of a browser: `pod-steer web` serves the page.
#[utoipa::path(
    get, path = "/",
    responses((status = 200, description = "One line for people", body = String, content_type = "text/plain")),
)]
pub(super) async fn root() -> &'static str {
    "The API of pod-steer. GET /v1/openapi.json describes it; `pod-steer web` shows services in a browser.\n"
}
