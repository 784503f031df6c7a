use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

use super::*;
use crate::sys;

#[test]
fn reads_the_listeners_of_a_table() {
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                 0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000  1000        0 84123 1 0 100\n   \
                 1: 0100007F:A3D2 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100\n  nonsense\n";
    let [found] = listening(table.as_bytes()).collect::<Vec<_>>()[..] else { panic!("one listens") };
    assert_eq!((found.ip, found.port), ("127.0.0.1".parse().unwrap(), Port::tcp(8080)));
    assert_eq!((found.uid, found.inode, found.waiting), (1000, 84_123, 3));
    assert_eq!(listening(&b"head\n 0: 0100007F:1F90 00000000:0000 0A 1\n"[..]).count(), 0);
}

#[test]
fn reads_the_addresses_of_a_table() {
    let of = |digits| table_address(digits).map(|ip| ip.to_string());
    assert_eq!(of("0101090A").as_deref(), Some("10.9.1.1"));
    assert_eq!(of("0000000000000000FFFF00000101090A").as_deref(), Some("::ffff:10.9.1.1"));
    assert_eq!(of("B80D0120000000000000000001000000").as_deref(), Some("2001:db8::1"));
    assert_eq!([of(""), of("0101090"), of("GGGGGGGG"), of("é010109")], [None, None, None, None]);
}

#[test]
fn sock_diag_and_the_tables_agree() {
    // More than one part of an answer has room for.
    let listeners: Vec<TcpListener> = (0..600).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let six = TcpListener::bind("[::1]:0");
    let own: BTreeSet<SocketAddr> =
        listeners.iter().chain(&six).map(|listener| listener.local_addr().unwrap()).collect();
    // Other tests listen meanwhile; ours are there in any case.
    let addresses = |found: &[Listener]| found.iter().map(|l| (l.ip, l.port.number).into()).collect::<BTreeSet<_>>();
    let asked = ask().expect("sock_diag(7)");
    assert!(addresses(&asked).is_superset(&own));
    let read = read_tables().unwrap();
    assert!(addresses(&read).is_superset(&own));
    for found in &read {
        let same = asked.iter().find(|l| l.inode == found.inode);
        assert!(same.is_none_or(|l| (l.ip, l.port, l.uid) == (found.ip, found.port, found.uid)), "{found:?} {same:?}");
    }
    // By the cookie the same socket is meant.
    for listener in &listeners {
        let cookie = sys::socket_cookie(listener).unwrap();
        let found = asked.iter().find(|l| l.cookie == Some(cookie)).expect("it listens");
        assert_eq!(SocketAddr::from((found.ip, found.port.number)), listener.local_addr().unwrap());
        assert!(found.backlog > 0 && found.ifindex == 0 && !found.mptcp, "{found:?}");
    }
}

#[test]
fn says_which_clients_an_ipv6_socket_takes() {
    for only in [false, true] {
        let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_ipv6_v6only(&socket, only).unwrap();
        bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
        listen(&socket, 1).unwrap();
        let cookie = sys::socket_cookie(&socket).unwrap();
        let asked = ask().unwrap();
        let found = asked.iter().find(|l| l.cookie == Some(cookie)).expect("it listens");
        assert_eq!((found.v6only, found.ip), (Some(only), Ipv6Addr::UNSPECIFIED.into()));
    }
}

#[test]
fn knows_the_socket_below_an_mptcp_listener() {
    let mptcp = rustix::net::Protocol::from_raw(std::num::NonZeroU32::new(pod_steer_ebpf::PROTO_MPTCP).unwrap());
    // A kernel may lack MPTCP, or it may be off.
    let Ok(socket) = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(mptcp)) else {
        return;
    };
    assert_ne!(mptcp, ipproto::TCP);
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    listen(&socket, 1).unwrap();
    let port = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap().port();
    let asked = ask().unwrap();
    let found = asked
        .iter()
        .find(|l| l.port == Port::tcp(port) && l.ip == IpAddr::from(Ipv4Addr::LOCALHOST))
        .expect("it listens");
    assert!(found.mptcp, "{found:?}");
}

#[test]
fn a_connection_keeps_the_port_of_its_listener() {
    let ns = File::open("/proc/self/ns/net").unwrap();
    let cookie = netns::identify(&ns).unwrap().cookie;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let used = |others: &[u16]| {
        let ports = BTreeSet::from_iter(others.iter().copied().chain([port]).map(Port::tcp));
        in_use(&ns, cookie, &ports).map(|used| used.contains(&Port::tcp(port)))
    };
    // Entering a namespace needs a privilege.
    let Ok(listening) = used(&[]) else { return };
    assert!(listening);
    drop(listener);
    assert!(used(&[]).unwrap() && used(&[1, 2]).unwrap(), "the connection is there");
    // The side that closes first keeps the socket in TIME_WAIT.
    drop(accepted);
    drop(client);
    let begun = std::time::Instant::now();
    while used(&[]).unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(10), "TIME_WAIT does not count");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_listener_that_one_dump_skips_is_found_by_the_next() {
    let listener = |cookie| Listener {
        cookie: Some(SocketCookie(cookie)),
        ip: Ipv4Addr::LOCALHOST.into(),
        port: Port::tcp(80),
        v6only: None,
        ifindex: 0,
        uid: 0,
        inode: cookie,
        mptcp: false,
        waiting: 0,
        backlog: 1,
        drops: 0,
    };
    let answered = |dumps: &[&[u64]], may_miss: bool| {
        let mut number = 0;
        let found = complete(|each| {
            dumps[number].iter().for_each(|cookie| each(listener(*cookie)));
            number += 1;
            Ok(may_miss)
        });
        (found.unwrap().iter().filter_map(|listener| Some(listener.cookie?.0)).collect::<Vec<_>>(), number)
    };
    // In one part the kernel misses nothing.
    assert_eq!(answered(&[&[1, 2]], false), (vec![1, 2], 1));
    assert_eq!(answered(&[&[1, 2], &[2, 1]], true), (vec![1, 2], 2));
    assert_eq!(answered(&[&[1, 3], &[1, 2, 3], &[1, 2]], true), (vec![1, 3, 2], 3));
    assert_eq!(answered(&[&[1], &[2], &[3], &[4], &[5]], true), (vec![1, 2, 3, 4], 4));
    assert_eq!(answered(&[&[], &[]], true), (vec![], 2));
}
