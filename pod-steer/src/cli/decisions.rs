//! Lines of `status`: the running operation of a service, above the table, and the decisions about it, below.

use super::{
    table, words,
    words::{name, progress},
};
use crate::{
    api::{metrics::totals::ColdStarts, types::ServiceStatus},
    daemon::hold_words,
    rollout::{Part, Policy},
    settings::ServiceOptions,
};

/// Each line begins with the service's name and is wrapped at `columns`.
pub(super) fn lines(service: &ServiceStatus, columns: usize) -> String {
    let mut lines = Vec::new();
    match service.options.rollout {
        Policy::Balance => {}
        Policy::Latest => lines.push("a new version takes over when it is ready (policy latest)".to_owned()),
        Policy::Manual => lines.push("a new version waits for deploy or shift (policy manual)".to_owned()),
    }
    let defaults = ServiceOptions::default().written();
    let other =
        service.options.written().into_iter().filter(|option| option.0 != "rollout" && !defaults.contains(option));
    let other: Vec<String> = other.map(|(key, value)| format!("{key}={value}")).collect();
    if !other.is_empty() {
        lines.push(format!("options: {}", other.join(" ")));
    }
    let decision = &service.decision;
    if let Some(weights) = &decision.traffic.weights {
        let weights: Vec<String> = weights.iter().map(|(version, weight)| format!("{version}={weight}")).collect();
        lines.push(format!("shares by version: {}", weights.join(" ")));
    }
    for (network, version) in &decision.traffic.from {
        lines.push(format!("clients of {network} go to {version}"));
    }
    if !decision.drained.is_empty() {
        let parts: Vec<String> = decision.drained.iter().map(|part| part_name(service, part)).collect();
        lines.push(format!("drained, no new connections: {}", parts.join(", ")));
    }
    if decision.paused {
        lines.extend(if decision.asleep.is_some() { vec![asleep(service)] } else { paused(service) });
    }
    if let Some(ColdStarts { count, last_ms }) = service.cold_starts {
        let s = if count == 1 { "" } else { "s" };
        lines.push(format!("{count} cold start{s}; the last one took {last_ms} ms"));
    }
    lines.iter().map(|line| shown(service, line, columns)).collect()
}

/// What wakes a service that sleeps.
fn asleep(service: &ServiceStatus) -> String {
    let held = service.pause.as_ref().map_or(0, |pause| pause.held);
    let wake = format!("the next client wakes it, or `pod-steer wake {}`", service.name);
    match service.pause.as_ref().is_some_and(|pause| pause.over) {
        true => "asleep, and its clients are refused, since its containers could not be started in time".to_owned(),
        false if held > 0 => format!("asleep, {held} clients are held until its containers serve"),
        false => format!("asleep, its containers are stopped; {wake}"),
    }
}

/// How clients of a paused service wait.
fn paused(service: &ServiceStatus) -> Vec<String> {
    let end = format!("end this with `pod-steer unpause {}`", service.name);
    let Some(pause) = &service.pause else { return vec![format!("paused, new connections wait; {end}")] };
    if pause.over {
        return vec![format!("paused for longer than its order allowed, new connections are refused; {end}")];
    }
    let words = hold_words(&pause.ports, pause.backlog);
    let held = format!("paused, {} clients are held now; {end}", pause.held);
    [held].into_iter().chain((!words.is_empty()).then_some(words)).collect()
}

/// The operation that is under way, or nothing.
pub(super) fn operation(service: &ServiceStatus, now_ms: i64, columns: usize) -> String {
    let Some(status) = &service.operation else { return String::new() };
    let operation = &status.operation;
    let what = match &operation.order {
        crate::rollout::Order::Canary(canary) => format!("canary {}", canary.version),
        order => words::order(order),
    };
    shown(service, &format!("{what}: {}; by {}", progress(status, now_ms), name(&operation.who)), columns)
}

fn shown(service: &ServiceStatus, text: &str, columns: usize) -> String {
    let wrapped = table::wrapped("  ", &format!("{}: {text}", service.name), columns);
    // Only continuation lines are indented.
    wrapped.strip_prefix("  ").unwrap_or(&wrapped).to_owned()
}

fn part_name(service: &ServiceStatus, part: &Part) -> String {
    match part {
        Part::Service => "the whole service".to_owned(),
        Part::Version(version) => format!("version {version}"),
        Part::Backend(id) => {
            let backend = service.backends.iter().find(|backend| *id == *backend.id);
            // Of a removed backend only the id is known.
            backend.map_or_else(|| id.chars().take(12).collect(), |backend| backend.name.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> ServiceStatus {
        let service = json!({
            "name": "web", "ports": ["80:8080"], "namespaces": [], "fallback": "pass", "rollout": "manual", "slow_start_ms": 30_000,
            "decision": {
                "revision": 3,
                "traffic": { "weights": { "v1": 95, "v2": 5 }, "from": { "10.0.0.0/8": "v2" } },
                "drained": [{ "part": "service" }, { "part": "version", "name": "v1" },
                    { "part": "backend", "name": "0123456789abcdef" }, { "part": "backend", "name": "x" }],
                "paused": true,
            },
            "pause": { "held": 12, "over": false, "ports": [{ "port": "80", "held": true }] },
            "operation": {
                "id": 4, "service": "web", "who": "root (uid 0, pid 7)", "begun_ms": 0, "order": "canary",
                "version": "v2", "steps": [100, 500, 2500, 10000], "every_ms": 120_000, "timeout_ms": 60_000,
                "before": {}, "phase": { "name": "stepping", "step": 1, "watched": {}, "since_ms": 1, "next_ms": 100_000 }, "steps_done": [],
                "end": null, "ready": 3, "wanted": 3, "left": 0, "waiting_for": "",
            },
            "counters": crate::api::types::ServiceCountersStatus::default(),
            "backends": [],
        });
        let mut service: ServiceStatus = serde_json::from_value(service).unwrap();
        let backend = json!({
            "id": "x", "name": "web-2", "kind": "exec", "engine": null, "version": "v1", "weight": 1, "state": "ready",
            "sockets": 1, "steered": 0, "opened": 0, "closed": 0, "live": 0, "moved_in": 0, "moved_out": 0,
            "moved_half_open": 0, "not_moved": 0, "share": 0.0,
        });
        service.backends.push(serde_json::from_value(backend).unwrap());
        service
    }

    #[test]
    fn all_lines_of_a_service() {
        let text = lines(&service(), 80);
        assert_eq!(
            text,
            "web: a new version waits for deploy or shift (policy manual)\n\
             web: options: fallback=pass slow-start=30s\n\
             web: shares by version: v1=95 v2=5\n\
             web: clients of 10.0.0.0/8 go to v2\n\
             web: drained, no new connections: the whole service, version v1, 0123456789ab,\n  \
             web-2\n\
             web: paused, 12 clients are held now; end this with `pod-steer unpause web`\n\
             web: clients of 80 are held\n"
        );
        assert_eq!(operation(&service(), 0, 80), "web: canary v2: step 2 of 4, 5%, next in 1m 40s; by root\n");
        let quiet =
            ServiceStatus { options: Default::default(), decision: Default::default(), operation: None, ..service() };
        assert_eq!(lines(&quiet, 80) + &operation(&quiet, 0, 80), "");
    }
}
