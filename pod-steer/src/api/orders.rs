//! Endpoints for orders, operations and the history.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    Ask, ERROR_CHARS_MAX, OrderAsk, OrderError, Shared, ask, misread,
    peer::ConnectedPeer,
    refuse,
    types::{ErrorBody, OperationStatus},
};
use crate::{
    rollout::{Operation, Order},
    text::{Name, quoted, shown},
};

/// Maximum length of an operation number that an error quotes.
const ID_CHARS_MAX: usize = 20;

/// Give an order for a service
///
/// The answer comes when the order has taken effect for every client. A deploy or canary is answered when it has begun; poll
/// `/v1/operations/{id}` for its progress.
#[utoipa::path(
    post, path = "/v1/services/{service}/orders",
    params(("service" = String, Path, description = "Name of the service", example = "web")),
    request_body(content = Order, examples(
        ("deploy" = (summary = "Move all new connections to a version", value = json!({
            "order": "deploy", "version": "v2", "timeout_ms": 60_000, "drain_timeout_ms": 30_000,
        }))),
        ("canary" = (summary = "Move them step by step, and go back if the version is worse", value = json!({
            "order": "canary", "version": "v2", "steps": [500, 2_500, 10_000], "every_ms": 300_000, "timeout_ms": 60_000,
        }))),
        ("shift" = (summary = "Set the shares of the versions", value = json!({
            "order": "shift", "weights": { "v1": 3, "v2": 1 },
        }))),
        ("rollback" = (summary = "Return to what was before", value = json!({ "order": "rollback" }))),
    )),
    responses(
        (status = 200, description = "The order is being carried out, or is done", body = Operation),
        (status = 400, description = "The request cannot be parsed", body = ErrorBody),
        (status = 403, description = "This user may only read", body = ErrorBody),
        (status = 409, description = "Another order for the service is being carried out", body = ErrorBody),
        (status = 422, description = "The request is invalid; nothing was changed", body = ErrorBody),
        (status = 500, description = "The order failed", body = ErrorBody),
    ),
)]
pub(super) async fn order(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<ConnectedPeer>,
    service: Result<Path<String>, PathRejection>,
    body: Result<Json<Value>, JsonRejection>,
) -> Response {
    let service = match service {
        Ok(Path(service)) => service,
        Err(error) => return misread(&error.body_text()),
    };
    let order = match body {
        Err(error) => return misread(&error.body_text()),
        Ok(Json(body)) => match parse(&body) {
            Ok(order) => order,
            Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
        },
    };
    let names = order.names().map(|(kind, name)| kind.check(name));
    if let Some(error) = names.chain([Name::Service.check(&service)]).find_map(Result::err) {
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, error);
    }
    let who = peer.who().await;
    let make = |answer: oneshot::Sender<_>| Ask::Order(Box::new(OrderAsk { service, order, who, answer }));
    match ask(&shared, make).await {
        Ok(Ok(operation)) => Json(operation).into_response(),
        Ok(Err(error)) => {
            let status = match error {
                OrderError::Input(_) => StatusCode::UNPROCESSABLE_ENTITY,
                OrderError::Held(_) => StatusCode::CONFLICT,
                OrderError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refuse(status, error.to_string())
        }
        Err(response) => response,
    }
}

/// Parses an order and refuses unknown fields: with a misspelt `version` a drain would drain the whole service.
pub(crate) fn parse(body: &Value) -> Result<Order, String> {
    let order: Order = serde_json::from_value(body.clone())
        .map_err(|error| format!("the order: {}", shown(&error.to_string(), ERROR_CHARS_MAX)))?;
    let known = serde_json::to_value(&order).map_err(|error| error.to_string())?;
    let unknown = body.as_object().and_then(|body| body.keys().find(|key| known.get(key.as_str()).is_none()));
    match unknown {
        None if order == Order::Forget => {
            Err("`forget` cannot be ordered; the daemon records it when a service has lost its backends".to_owned())
        }
        Some(key) => {
            let known: Vec<&str> = known.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            Err(format!("the order has the unknown field {}; its fields are {}", quoted(key), known.join(", ")))
        }
        None => Ok(order),
    }
}

/// Progress or result of an operation
#[utoipa::path(
    get, path = "/v1/operations/{id}",
    params(("id" = u64, Path, description = "Number of the operation")),
    responses(
        (status = 200, description = "Its progress, or how it ended", body = OperationStatus),
        (status = 400, description = "The request cannot be parsed", body = ErrorBody),
        (status = 404, description = "There is no such operation", body = ErrorBody),
    ),
)]
pub(super) async fn operation(State(shared): State<Arc<Shared>>, id: Result<Path<String>, PathRejection>) -> Response {
    let id = match id {
        Ok(Path(id)) => id,
        Err(error) => return misread(&error.body_text()),
    };
    let found = match id.parse() {
        Ok(id) => ask(&shared, |sender| Ask::Operation(id, sender)).await,
        Err(_) => Ok(None),
    };
    match found {
        Ok(Some(operation)) => Json(operation).into_response(),
        Ok(None) => refuse(
            StatusCode::NOT_FOUND,
            format!("there is no operation `{}`; see `pod-steer history`", shown(&id, ID_CHARS_MAX)),
        ),
        Err(response) => response,
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    service: Option<String>,
}

/// Past operations, oldest first
#[utoipa::path(
    get, path = "/v1/history", params(("service" = Option<String>, Query, description = "Only this service")),
    responses(
        (status = 200, description = "At most the last 1,000 operations", body = Vec<Operation>),
        (status = 400, description = "The request cannot be parsed", body = ErrorBody),
        (status = 404, description = "There is no such service, and there never was", body = ErrorBody),
    ),
)]
pub(super) async fn history(
    State(shared): State<Arc<Shared>>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return misread(&error.body_text()),
    };
    match ask(&shared, |sender| Ask::History(query.service, sender)).await {
        Ok(Ok(operations)) => Json(operations).into_response(),
        Ok(Err(error)) => refuse(StatusCode::NOT_FOUND, error),
        Err(response) => response,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unknown_field_is_refused() {
        assert_eq!(parse(&json!({ "order": "rollback" })), Ok(Order::Rollback));
        assert!(parse(&json!({ "order": "drain", "version": "v1" })).is_ok());
        let error = parse(&json!({ "order": "drain", "versoin": "v1" })).unwrap_err();
        assert!(error.contains("\"versoin\"") && error.contains("version"), "{error}");
        for bad in [
            json!({ "order": "dance" }),
            json!({ "order": "forget" }),
            json!([]),
            json!({}),
            json!({ "order": "deploy", "version": 2 }),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }
}
