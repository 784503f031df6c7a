//! The answer for `pod-steer top`, which asks once a second: the status, and the accept queues, which the status does not have.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::{
    App,
    metrics::{
        self,
        measured::{Measured, Queues},
    },
    refuse,
    types::Status,
};
use crate::ids::BackendId;

/// `GET /v1/live`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Live {
    /// As `GET /v1/status` answers.
    pub status: Status,
    /// By the ids of backends; without those whose listeners could not be looked at.
    #[schema(value_type = BTreeMap<String, QueueStatus>)]
    pub queues: BTreeMap<BackendId, QueueStatus>,
}

/// The accept queues of a backend's listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QueueStatus {
    /// Connections that wait to be accepted.
    pub length: u64,
    /// Connections that may wait: the sum of the backlogs.
    pub limit: u64,
    /// How full the fullest of them is; at 1 it turns clients away.
    pub usage: f64,
    /// Packets that the listeners have dropped, mostly because a queue was full.
    pub drops: u64,
}

impl Live {
    fn of(status: Status, measured: &Measured) -> Self {
        let queue = |(id, queues): (&BackendId, &Queues)| {
            let Queues { length, limit, usage } = *queues;
            let drops = measured.drops.get(id).copied().unwrap_or(0);
            (id.clone(), QueueStatus { length, limit, usage, drops })
        };
        Self { status, queues: measured.queues.iter().map(queue).collect() }
    }
}

/// The status, with the accept queues of the backends
#[utoipa::path(get, path = "/v1/live", responses((status = 200, description = "As it is now", body = Live)))]
pub(super) async fn live(State(shared): App) -> Response {
    let (status, measured) = match metrics::read(&shared).await {
        Ok(read) => read,
        Err(response) => return response,
    };
    // With a thousand backends it is a megabyte of JSON: the loop is not to wait for that.
    match spawn_blocking(move || serde_json::to_vec(&Live::of(status, &measured))).await {
        Ok(Ok(json)) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        _ => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written; see the daemon's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_found_by_the_id_of_their_backend() {
        let status = Status { version: String::new(), pid: 1, services: Vec::new(), conditions: Vec::new() };
        let mut measured = Measured::default();
        measured.queues.insert("a".into(), Queues { length: 2, limit: 128, usage: 0.5 });
        measured.drops.insert("a".into(), 7);
        measured.drops.insert("b".into(), 1);
        let live = Live::of(status, &measured);
        let json = serde_json::to_value(&live).unwrap();
        assert_eq!(json["queues"], serde_json::json!({ "a": { "length": 2, "limit": 128, "usage": 0.5, "drops": 7 } }));
        assert_eq!(serde_json::from_value::<Live>(json).unwrap(), live);
    }
}
