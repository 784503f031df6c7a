use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{netns, process_set::ProcessSet, procs::process_id};

const AFTER: Duration = Duration::from_secs(1);

fn talk(said: Said) -> Established {
    let address = ([127, 0, 0, 1], 1).into();
    Established {
        local: address,
        client: address,
        inode: 1,
        cookie: SocketCookie(1),
        cgroup: None,
        half_closed: false,
        is_shut: false,
        queued: false,
        said: Some(said),
    }
}

#[test]
fn a_client_that_waits_for_an_answer_is_not_idle() {
    let said = |sent_ms, received_ms, acked_ms| Said { unacked: 0, sent_ms, received_ms, acked_ms, received: 80 };
    let idle = |said, heard: Option<bool>| {
        let (mut memory, talk) = (Memory::default(), talk(said));
        memory.note([talk].iter(), &heard.map(|heard| (talk.cookie, heard)).into_iter().collect());
        is_idle(&talk, AFTER, memory.is_answered(&talk))
    };
    assert!(idle(said(5_000, 5_004, 5_000), None), "answered in a later tick");
    assert!(!idle(said(9_000, 5_000, 5_000), Some(true)), "a request without an answer");
    assert!(idle(said(5_000, 5_000, 5_000), Some(true)), "answered in the same tick");
    assert!(!idle(said(5_000, 5_000, 5_000), Some(false)), "the next request came in that tick");
    assert!(idle(said(9_000, 9_000, 4_500), Some(true)), "acknowledged late");
    assert!(!idle(said(9_000, 9_000, 1_000), Some(true)), "a probe of the server hides the order");
    assert!(!idle(said(5_000, 5_000, 5_000), None) && idle(said(60_000, 60_000, 60_000), None), "it is not known");
    assert!(!idle(said(90_000, 90_000, 90_000), Some(false)), "it waits, for however long");
    assert!(!idle(said(999, 1_003, 999), None), "not for long enough");
    let unasked = Said { received: 0, sent_ms: 5_000, received_ms: 5_000, ..Said::default() };
    assert!(idle(unasked, None), "it has asked for nothing");
    assert!(!is_idle(&Established { queued: true, ..talk(unasked) }, AFTER, Some(true)));
    assert!(!idle(Said { unacked: 1, ..said(5_000, 5_004, 5_000) }, None));

    // What an earlier pass has seen counts until the client sends more.
    let mut memory = Memory::default();
    let answered = talk(said(200, 200, 160));
    memory.note([answered].iter(), &HashMap::from([(answered.cookie, true)]));
    let probed = talk(said(20_000, 20_000, 5_000));
    memory.note([probed].iter(), &HashMap::from([(probed.cookie, true)]));
    assert!(is_idle(&probed, AFTER, memory.is_answered(&probed)));
    let asked = talk(Said { received: 160, ..probed.said.unwrap() });
    assert!(!is_idle(&asked, AFTER, memory.is_answered(&asked)));
}

#[test]
fn connections_are_closed_evenly_over_the_time_that_is_left() {
    let quarter = Duration::from_millis(250);
    assert_eq!(share(5_000, quarter, Duration::from_secs(10)), 125);
    assert_eq!(share(1, quarter, Duration::from_secs(10)), 1);
    assert_eq!(share(0, quarter, Duration::from_secs(10)), 0);
    assert_eq!(share(7, quarter, Duration::from_millis(10)), 7, "the end is near");
    assert_eq!(share(7, quarter, Duration::ZERO), 7);
}

#[test]
fn a_server_sees_the_end_of_an_idle_connection_and_of_no_other() {
    let which = Closes { idle: Some(Duration::from_millis(300)), ..Closes::default() };
    answered_connections_end(which, Duration::from_millis(600));
}

#[test]
fn old_connections_end_when_they_are_idle_for_a_moment() {
    let which = Closes { old: Some(Duration::from_secs(60)), ..Closes::default() };
    answered_connections_end(which, MOMENT * 3);
    let which = Closes { idle: Some(Duration::from_secs(60)), ..which };
    answered_connections_end(which, MOMENT * 3);
}

/// Each server's connection was accepted by this test, which stands for a backend, a minute ago.
fn answered_connections_end(which: Closes, later: Duration) {
    // Loading the iterator takes a privilege, which a unit test need not have.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut pairs: Vec<(TcpStream, TcpStream)> =
        (0..4).map(|_| (TcpStream::connect(("127.0.0.1", port)).unwrap(), listener.accept().unwrap().0)).collect();
    let ages = Arc::new(Mutex::new(Ages::default()));
    let cookies = pairs.iter().map(|(_, server)| sys::socket_cookie(server).unwrap()).collect();
    ages.lock().unwrap().note(&cookies, Instant::now().checked_sub(Duration::from_secs(60)).unwrap());
    let mut buffer = [0; 8];
    // The first two are answered; the third waits for an answer, of which the request came with the one before; the
    // last has sent a request that was not read.
    for (at, (client, server)) in pairs.iter_mut().enumerate() {
        client.write_all(b"question").unwrap();
        server.read_exact(&mut buffer).unwrap();
        server.write_all(b"answered").unwrap();
        client.read_exact(&mut buffer).unwrap();
        if at >= 2 {
            client.write_all(b"question").unwrap();
        }
        if at == 2 {
            server.read_exact(&mut buffer).unwrap();
        }
    }
    let own = ProcessSet { process: process_id(std::process::id().cast_signed()).ok(), ..ProcessSet::default() };
    let netns = netns::identify(&File::open("/proc/self/ns/net").unwrap()).unwrap();
    let (mut memory, counted) = (Memory::default(), AtomicI64::new(0));
    let mut close = |number: u64| {
        let backends =
            vec![Question { id: "a".into(), netns, processes: own.clone(), ports: BTreeSet::from([Port::tcp(port)]) }];
        let pace = Pace::Number(number);
        close(Pass { backends, which, ages: Arc::clone(&ages), pace, within: Duration::ZERO }, &mut memory, &counted)
    };
    if which.old.is_none() {
        assert_eq!(close(9), Closed { active: 4, ..Closed::default() }, "nothing is idle yet");
    }
    thread::sleep(later);
    assert_eq!(close(1), Closed { closed: 1, idle: 1, active: 2, failure: None });
    assert_eq!(
        close(9),
        Closed { closed: 1, idle: 0, active: 2, failure: None },
        "an end that was seen is not told again"
    );
    assert_eq!(counted.load(Relaxed), 2);
    for (at, (client, server)) in pairs.iter_mut().enumerate() {
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let read = server.read(&mut buffer);
        match at {
            0 | 1 => assert_eq!(read.unwrap(), 0),
            2 => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock),
            _ => assert_eq!(read.unwrap(), 8),
        }
        // What the client sends until the server closes is read.
        client.write_all(b"question").unwrap();
        server.read_exact(&mut buffer).unwrap();
    }
}
