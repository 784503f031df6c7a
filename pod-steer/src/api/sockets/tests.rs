//! Clients of `GET /v1/sockets` that hang up.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{super::tests::Served, *};

/// Far above the usual times.
const STUCK: Duration = Duration::from_secs(30);

#[test]
fn clients_that_hang_up_begin_no_further_look() {
    let (begun, looks) = mpsc::channel();
    let served = Served::start("sockets", move |ask| {
        if let Ask::Sockets(ask) = ask {
            let _ = begun.send(ask);
        }
    });
    let request = || {
        let mut stream = UnixStream::connect(&served.socket).unwrap();
        stream.set_read_timeout(Some(STUCK)).unwrap();
        stream.write_all(b"GET /v1/sockets?live=true HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream
    };
    let first = request();
    let look = looks.recv_timeout(STUCK).unwrap();
    assert!(look.query.live && look.with_processes && !look.answer.is_closed());
    drop(first);
    let began = Instant::now();
    while !look.answer.is_closed() {
        assert!(began.elapsed() < STUCK, "the look does not hear that its client has left");
        thread::sleep(Duration::from_millis(1));
    }
    (0..40).for_each(|_| drop(request()));
    let mut last = request();
    assert!(looks.recv_timeout(Duration::from_millis(300)).is_err(), "the first look still has the place");
    drop(look);
    let answers = thread::spawn(move || {
        for SocketsAsk { answer, turn, .. } in looks {
            let _ = answer.send(Ok(b"{}".to_vec()));
            drop(turn);
        }
    });
    let mut answer = [0; 15];
    last.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    drop(served);
    answers.join().unwrap();
}
