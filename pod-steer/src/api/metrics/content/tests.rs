use super::*;
use crate::{
    api::types::SubjectCondition,
    condition::{Condition, Reason},
    ids::BackendId,
    listening::TurnedAway,
};

fn backend(name: &str, steered: u64, state: State) -> BackendStatus {
    let json = serde_json::json!({
        "id": format!("{name}-{steered}"), "name": name, "kind": "exec", "engine": null, "version": "v1", "weight": 3,
        "state": state, "sockets": 2, "steered": steered, "opened": 7, "closed": 5, "live": 2, "moved_in": 0, "moved_out": 0,
        "moved_half_open": 0, "not_moved": 1, "share": 0.25,
    });
    serde_json::from_value(json).unwrap()
}

fn status(backends: Vec<BackendStatus>) -> Status {
    let counters = ServiceCountersStatus { stale_slots: 4, ..ServiceCountersStatus::default() };
    let service = ServiceStatus {
        name: "web".to_owned(),
        ports: Vec::new(),
        namespaces: Vec::new(),
        options: Default::default(),
        decision: Default::default(),
        pause: None,
        cold_starts: None,
        operation: None,
        conditions: Vec::new(),
        counters,
        backends,
    };
    let condition = Condition::without_remedy(Reason::ChangeRefused, "a map is full");
    let of = |subject: &str| SubjectCondition { subject: subject.to_owned(), condition: condition.clone() };
    Status { version: String::new(), pid: 1, services: vec![service], conditions: vec![of("web"), of("shop")] }
}

fn measured() -> Measured {
    let mut totals = Totals { restarts: 2, tables_published: 9, ..Totals::default() };
    totals.decision_effect.add(std::time::Duration::from_millis(2), &EFFECT_S);
    let mut service = ServiceTotals { decisions: 6, ..ServiceTotals::new("web") };
    service.count_operation("deploy", "done");
    service.count_listener("listening");
    let id = || BackendId::from("web-1-9");
    let mut queues = Queues::default();
    queues.add(3, 127);
    Measured {
        totals,
        services: vec![service],
        engines: BTreeMap::from([("unix:///docker.sock".to_owned(), false)]),
        queues: BTreeMap::from([(id(), queues)]),
        drops: BTreeMap::from([(id(), 11)]),
        namespaces: BTreeMap::from([("4:5".to_owned(), TurnedAway { overflows: 1, drops: 2, syn_drops: 3 })]),
        lost: Lost { events: 1, descriptions: 0 },
    }
}

/// The series of a page without their values.
fn series(page: &str) -> Vec<&str> {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series).collect()
}

#[test]
fn a_page_has_each_value_once() {
    let page = of_daemon(&status(vec![backend("web-1", 9, State::Ready)]), &measured(), None);
    let labels = r#"service="web",version="v1",backend="web-1""#;
    for line in [
        format!("pod_steer_backend_steered_total{{{labels}}} 9"),
        format!("pod_steer_backend_connections_opened_total{{{labels}}} 7"),
        format!("pod_steer_backend_connections{{{labels}}} 2.0"),
        format!("pod_steer_backend_share_ratio{{{labels}}} 0.25"),
        format!("pod_steer_backend_state{{{labels},state=\"ready\"}} 1.0"),
        format!("pod_steer_backend_listen_drops_total{{{labels}}} 11"),
        format!("pod_steer_backend_accept_queue_length{{{labels}}} 3.0"),
        format!("pod_steer_backend_accept_queue_limit{{{labels}}} 127.0"),
        r#"pod_steer_version_backends{service="web",version="v1",state="ready"} 1.0"#.to_owned(),
        r#"pod_steer_version_backends{service="web",version="v1",state="exited"} 0.0"#.to_owned(),
        r#"pod_steer_service_outcomes_total{service="web",outcome="stale_slots"} 4"#.to_owned(),
        r#"pod_steer_service_outcomes_total{service="web",outcome="refused_no_backend"} 0"#.to_owned(),
        r#"pod_steer_service_operations_total{service="web",operation="deploy",outcome="done"} 1"#.to_owned(),
        r#"pod_steer_service_operations_total{service="web",operation="canary",outcome="went-back"} 0"#.to_owned(),
        r#"pod_steer_service_listener_events_total{service="web",event="listening"} 1"#.to_owned(),
        r#"pod_steer_service_listener_events_total{service="web",event="left_out"} 0"#.to_owned(),
        r#"pod_steer_service_decisions_total{service="web"} 6"#.to_owned(),
        r#"pod_steer_namespace_syn_drops_total{netns="4:5"} 3"#.to_owned(),
        r#"pod_steer_engine_up{engine="unix:///docker.sock"} 0.0"#.to_owned(),
        r#"pod_steer_time_to_effect_seconds_bucket{le="0.002",change="decision"} 1"#.to_owned(),
        r#"pod_steer_conditions{reason="change-refused",severity="warning"} 2.0"#.to_owned(),
        "pod_steer_tables_published_total 9".to_owned(),
        "pod_steer_daemon_restarts_total 2".to_owned(),
        "pod_steer_kernel_events_lost_total 1".to_owned(),
        "pod_steer_up 1.0".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert_eq!(page.lines().filter(|own| *own == line).count(), 1, "{line}\n{page}");
    }
}

#[test]
fn backends_of_one_name_are_added_up() {
    let backends = vec![backend("a", 2, State::Ready), backend("a", 3, State::Drained), backend("b", 4, State::Ready)];
    let page = of_daemon(&status(backends), &Measured::default(), None);
    let line = r#"pod_steer_backend_steered_total{service="web",version="v1",backend="a"} 5"#;
    assert!(page.lines().any(|own| own == line), "{page}");
    let mut series = series(&page);
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all, "a series is there twice");
}

/// Zero would be a number.
#[test]
fn what_is_not_known_is_left_out() {
    let mut unknown = backend("a", 2, State::Ready);
    unknown.kind = "registered".to_owned();
    let condition = Condition::without_remedy(Reason::ConnectionsNotCounted, "its process cannot be read");
    unknown.conditions.push(condition);
    let backends = vec![unknown, backend("a", 3, State::Ready), backend("b", 4, State::Ready)];
    let page = of_daemon(&status(backends), &Measured::default(), None);
    for name in ["connections", "connections_opened_total", "connections_closed_total"] {
        let of = |backend: &str| {
            let start = format!("pod_steer_backend_{name}{{service=\"web\",version=\"v1\",backend=\"{backend}\"}}");
            page.lines().any(|line| line.starts_with(&start))
        };
        assert!(!of("a") && of("b"), "{name}: {page}");
    }
    let steered = r#"pod_steer_backend_steered_total{service="web",version="v1",backend="a"} 5"#;
    assert!(page.lines().any(|line| line == steered), "{page}");
}

#[test]
fn a_backend_has_a_bounded_number_of_series() {
    let page = |backends: u64| {
        let backends = (0..backends).map(|number| backend(&format!("web-{number}"), number, State::Ready)).collect();
        of_daemon(&status(backends), &measured(), None)
    };
    let [one, three] = [1, 3].map(|backends| series(&page(backends)).len());
    assert!(three - one <= 2 * 20, "{one} series with one backend and {three} with three");
}
