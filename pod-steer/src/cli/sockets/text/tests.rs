//! The text of an answer.

use super::*;
use crate::{
    api::sockets::{BackendConnections, ConnectionStatus},
    world::State,
};

fn found() -> Sockets {
    let socket = |backend: &str, listens: &str, role, clients: &[u16]| SocketStatus {
        service: "shop-checkout-frontend".into(),
        version: "sha256-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
        backend: backend.into(),
        backend_id: backend.into(),
        state: Some(State::Ready),
        cookie: 1,
        netns_cookie: 1,
        listens: listens.into(),
        hidden_port: None,
        v6only: None,
        ifindex: 0,
        uid: Some(0),
        role,
        why: None,
        clients: clients.to_vec(),
        forwarded: false,
        waiting: Some(3),
        backlog: Some(511),
        drops: Some(7),
        processes: vec![SocketProcess { pid: 4711, name: "nginx".into() }],
        holders: Some(3),
    };
    let hidden = SocketStatus {
        hidden_port: Some(41_234),
        v6only: Some(true),
        ifindex: 4,
        forwarded: true,
        netns_cookie: 2,
        waiting: None,
        backlog: None,
        drops: None,
        processes: Vec::new(),
        holders: Some(0),
        state: None,
        why: Some("the backend is drained".into()),
        ..socket("shop-checkout-frontend-12", "[::]:8080", SocketRole::Withheld, &[])
    };
    let namespace = SocketNamespace { id: "4:4026531840".into(), cookie: 1, overflows: 2, drops: 3, syn_drops: 0 };
    let connection = |idle_ms, waiting| ConnectionStatus {
        client: "[2001:db8:1234:5678:9abc:def0:1234:5678]:54321".into(),
        local: "10.0.0.1:8080".into(),
        state: "established".into(),
        active: idle_ms < 1_000,
        idle_ms: Some(idle_ms),
        waiting,
    };
    let other = OtherSocket {
        services: vec!["shop-checkout-frontend".into()],
        netns_cookie: 1,
        listens: "0.0.0.0:80".into(),
        ifindex: 0,
        uid: Some(0),
        why: "its process belongs to none of these services".into(),
        waiting: 0,
        backlog: 128,
        drops: 0,
        processes: vec![SocketProcess { pid: 815, name: "python3".into() }],
        holders: Some(1),
    };
    Sockets {
        others: vec![other],
        sockets: vec![socket("shop-checkout-frontend-1", "0.0.0.0:8080", SocketRole::Table, &[80, 81, 443]), hidden],
        namespaces: vec![namespace],
        connections: Some(vec![BackendConnections {
            service: "shop-checkout-frontend".into(),
            version: "v1".into(),
            backend: "shop-checkout-frontend-1".into(),
            backend_id: "shop-checkout-frontend-1".into(),
            active: 1,
            idle: 1,
            list: vec![connection(20, true), connection(65_000, false)],
        }]),
        unseen: vec!["not all processes were looked at within 5 s".into()],
    }
}

#[test]
fn a_narrow_terminal_gets_lines_that_name_everything() {
    let text = of(&found(), false, Some(80));
    assert!(text.lines().all(|line| line.width() <= 80), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let joined = words.join(" ");
    for told in [
        "sha256-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 shop-checkout-frontend-1 (ready)",
        "0.0.0.0:8080; table for 80-81,443; queue 3/511; 7 dropped; nginx[4711], 2 more; namespace 4:4026531840",
        "[::]:8080%4 (IPv6 only) (hidden port 41234); withheld, forwarded; queue ?; ? dropped; no process found; namespace unknown",
        "2 connections, 1 active, 1 idle",
        "[2001:db8:1234:5678:9abc:def0:1234:5678]:54321 10.0.0.1:8080 established, not accepted active",
        "2 clients found an accept queue full",
        "within 5 s",
        "b822cd15d6c15b0f00a08 shop-checkout-frontend-12 [::]:8080: the backend is drained",
        "0.0.0.0:80 (port of shop-checkout-frontend); queue 0/128; 0 dropped; python3[815]: its process belongs to none",
    ] {
        assert!(joined.contains(told), "{told} is not in\n{text}");
    }
}

#[test]
fn a_wide_terminal_gets_a_table() {
    let text = of(&found(), false, None);
    let head = text.lines().next().unwrap();
    assert!(head.starts_with("SERVICE") && head.ends_with("NAMESPACE"), "{text}");
    assert!(text.lines().nth(1).unwrap().contains("  80-81,443  table  "), "{text}");
    assert!(of(&Sockets::default(), false, None).contains("no backend listens"));
}

#[test]
fn sockets_with_one_reason_are_one_line() {
    let mut found = found();
    let standby = SocketStatus { why: Some("no share".into()), ..found.sockets[0].clone() };
    found.sockets = vec![standby.clone(), standby];
    let version = &found.sockets[0].version;
    assert_eq!(without_clients(&found), [format!("shop-checkout-frontend {version}, 2 sockets: no share")]);
}

#[test]
fn a_viewer_is_not_told_that_there_is_no_process() {
    let mut found = found();
    found.sockets[0].holders = None;
    found.sockets[0].processes.clear();
    found.sockets.truncate(1);
    assert!(of(&found, false, None).lines().nth(1).unwrap().ends_with("  7  ?"), "{}", of(&found, false, None));
}
