//! Values for the unit tests of `top` and of the web page.

use std::time::Duration;

use serde_json::{Value, json};

use super::{board::Board, sample::History};
use crate::api::{
    live::Live,
    types::{ServiceCountersStatus, Status},
};

/// The time of the last sample: 12:00:10.
pub(in crate::cli) const AT_MS: i64 = 43_210_000;

fn backend(name: &str, opened: u64, share: f64, state: &str) -> Value {
    let version = name.split_once('-').map_or(name, |(version, _)| version);
    json!({
        "id": format!("id-{name}"), "name": name, "kind": "container", "engine": "/run/docker.sock", "version": version, "weight": 1,
        "state": state, "sockets": 2, "steered": opened + 1, "opened": opened, "closed": opened / 2, "live": opened - opened / 2,
        "moved_in": 0, "moved_out": 0, "moved_half_open": 0, "not_moved": 0, "share": share, "served": 0.0, "conditions": [],
    })
}

fn service(name: &str, backends: Vec<Value>) -> Value {
    json!({
        "name": name, "ports": ["80:8080"], "namespaces": [], "counters": ServiceCountersStatus::default(), "backends": backends,
    })
}

fn status(services: Vec<Value>, conditions: Value) -> Status {
    let status = json!({ "version": "0.1.0", "pid": 7, "services": services, "conditions": conditions });
    serde_json::from_value(status).expect("a status")
}

/// A service whose backends have opened so many connections.
pub(in crate::cli) fn opened(backends: &[(&str, u64)]) -> Status {
    let backends = backends.iter().map(|(id, opened)| {
        let mut own = backend(id, *opened, 0.0, "ready");
        own["id"] = json!(id);
        own
    });
    status(vec![service("web", backends.collect())], json!([]))
}

fn scene(seconds: u64) -> Live {
    let condition = json!({
        "reason": "no-cgroup", "severity": "warning", "message": "its health check fails: 503", "remedy": "look at its log",
    });
    let mut ill = backend("v2-2", 100, 0.0, "unhealthy");
    ill["conditions"] = json!([condition]);
    let web = vec![
        backend("v1-1", 1_000 + 50 * seconds, 0.45, "ready"),
        backend("v1-2", 2_000 + 25 * seconds, 0.45, "ready"),
        backend("v2-1", 300 + 25 * seconds, 0.1, "ready"),
        ill,
    ];
    let mut web = service("web", web);
    web["operation"] = json!({
        "id": 4, "service": "web", "who": "root (uid 0, pid 7)", "begun_ms": 0, "order": "canary",
        "version": "v2", "steps": [1_000, 5_000, 10_000], "every_ms": 60_000, "timeout_ms": 60_000, "before": {},
        "phase": { "name": "stepping", "step": 0, "watched": {}, "since_ms": AT_MS - 30_000, "next_ms": AT_MS + 30_000 },
        "steps_done": [], "end": null, "ready": 1, "wanted": 1, "left": 0, "waiting_for": "",
    });
    let idle = service("idle", vec![backend("v1-3", 4, 1.0, "ready")]);
    let mut of = condition;
    of["subject"] = json!("backend v2-2 of web");
    let queue = |length: u64| json!({ "length": length, "limit": 128, "usage": 0.1, "drops": 0 });
    let queues = json!({ "id-v1-1": queue(1), "id-v1-2": queue(2), "id-v2-1": queue(0) });
    let queues = serde_json::from_value(queues).expect("queues");
    Live { status: status(vec![idle, web], json!([of])), queues }
}

/// An answer of the daemon: two services, of which `web` has a canary and a backend with a condition.
pub(in crate::cli) fn live() -> Live {
    scene(10)
}

/// Two services. `web` has 100 new connections a second, and a canary is under way.
pub(in crate::cli) fn board() -> Board {
    let mut history = History::default();
    for second in 0..=10 {
        history.add(Duration::from_secs(second), &scene(second).status);
    }
    Board::new(scene(10), &history, AT_MS)
}
