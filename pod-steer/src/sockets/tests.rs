//! Looks at sockets of the test's own process, and the facts of a backend for other tests.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
};

use super::*;
use crate::{
    ids::{BackendIndex, NetnsCookie},
    ports::Port,
    procs::process_id,
    sys,
};

/// The namespace of [`backend`].
pub const NETNS: NetnsCookie = NetnsCookie(9);

/// A backend of `web` that listens on port 8080 for clients of port 80.
pub fn backend(name: &str) -> BackendFacts {
    BackendFacts {
        id: name.to_owned(),
        name: name.to_owned(),
        service: "web".to_owned(),
        version: "v1".to_owned(),
        service_ports: BTreeSet::from([Port::tcp(80)]),
        target_ports: BTreeSet::from([Port::tcp(8080)]),
        netns: Some(NETNS),
        ingress: Some(NETNS),
        without_clients: Some("drained".to_owned()),
        ..BackendFacts::default()
    }
}

#[test]
fn the_ports_of_a_backend_depend_on_the_namespace() {
    let ports = |backend: &BackendFacts, netns| -> Vec<u16> {
        backend.ports_in(netns).iter().map(|port| port.number).collect()
    };
    let here = backend("a");
    assert_eq!((ports(&here, NETNS), ports(&here, NetnsCookie(1))), (vec![80, 8080], vec![]));
    let forwarded = BackendFacts { ingress: Some(NetnsCookie(1)), forwarded: true, ..here };
    assert_eq!((ports(&forwarded, NETNS), ports(&forwarded, NetnsCookie(1))), (vec![8080], vec![80]));
    assert_eq!(forwarded.local_ports(), BTreeSet::from([Port::tcp(8080)]));
}

/// Facts about the first of two listeners of this process, which have the same port. Only the first one is registered.
fn facts(listeners: &[TcpListener; 2]) -> Facts {
    let meta = File::open("/proc/self/ns/net").unwrap().metadata().unwrap();
    let cookie = sys::own_netns_cookie().unwrap();
    let netns = Netns { dev: meta.dev(), inode: meta.ino(), cookie };
    let bound = listeners[0].local_addr().unwrap();
    let port = Port::tcp(bound.port());
    let socket = Socket {
        backend: BackendIndex(0),
        netns_cookie: cookie,
        ip: bound.ip(),
        port,
        hidden_port: None,
        v6only: None,
        ifindex: 0,
        uid: None,
    };
    let registered = sys::socket_cookie(&listeners[0]).unwrap();
    let process = Some(process_id(std::process::id().cast_signed()).unwrap());
    let backend = BackendFacts {
        target_ports: BTreeSet::from([port]),
        netns: Some(cookie),
        ingress: Some(cookie),
        processes: ProcessSet { process, alone: true, ..ProcessSet::default() },
        sockets: vec![(registered, socket)],
        ..backend("a")
    };
    Facts {
        registered: HashSet::from([registered]),
        places: vec![(netns, Vec::new())],
        backends: vec![backend],
        holders: Holders::OfBackends,
        live: true,
        ..Facts::default()
    }
}

fn listeners() -> [TcpListener; 2] {
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = first.local_addr().unwrap().port();
    // Another test may have the port at this address.
    let second = TcpListener::bind(("127.0.0.2", port)).or_else(|_| TcpListener::bind(("127.0.0.3", port))).unwrap();
    [first, second]
}

#[test]
fn a_look_finds_a_socket_its_process_its_connections_and_the_other_listener() {
    let listeners = listeners();
    let _client = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
    let stays = || false;
    let found = look(&facts(&listeners), &Limits::new(Duration::from_secs(60), &stays));
    let [socket] = found.sockets.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (socket.waiting, socket.holders, socket.why.as_deref()),
        (Some(1), Some(1), Some("drained")),
        "{socket:?}"
    );
    assert_eq!(socket.processes[0].pid, std::process::id().cast_signed());
    let [other] = found.others.as_slice() else { panic!("{found:?}") };
    assert_eq!(other.listens, listeners[1].local_addr().unwrap().to_string());
    assert!(other.why.contains("a socket of the backend a that is not registered"), "{other:?}");
    assert_eq!((found.namespaces.len(), found.unseen.len()), (1, 0), "{found:?}");
    let connections = found.connections.unwrap();
    assert_eq!((connections[0].list.len(), connections[0].list[0].waiting), (1, true), "{connections:?}");
}

#[test]
fn a_viewer_gets_no_processes_and_no_users() {
    let listeners = listeners();
    let stays = || false;
    let facts = Facts { holders: Holders::Nowhere, live: false, ..facts(&listeners) };
    let found = look(&facts, &Limits::new(Duration::from_secs(60), &stays));
    let (socket, other) = (&found.sockets[0], &found.others[0]);
    assert_eq!((socket.uid, socket.holders, socket.processes.len()), (None, None, 0), "{socket:?}");
    assert_eq!((other.uid, other.holders, other.processes.len()), (None, None, 0), "{other:?}");
    assert_eq!((socket.waiting, found.connections), (Some(0), None));
}

#[test]
fn nothing_is_looked_at_for_a_client_that_has_left() {
    let listeners = listeners();
    let left = || true;
    let found = look(&facts(&listeners), &Limits::new(Duration::from_secs(60), &left));
    assert_eq!((found.sockets[0].waiting, found.sockets[0].holders), (None, None));
    assert!(found.unseen[0].starts_with("1 of 1 network namespaces were not looked at"), "{:?}", found.unseen);
    let late = || false;
    let found = look(&facts(&listeners), &Limits::new(Duration::ZERO, &late));
    assert!(found.unseen[0].ends_with("the time limit of 0 s was reached"), "{:?}", found.unseen);
}
