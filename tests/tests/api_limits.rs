//! API clients that keep connections open, send slowly or send too much affect neither steering nor other API clients.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::{Conditions, Stage},
    exec::Exec,
    load::Load,
    process::Process,
    report, require,
    roles::{OPERATORS, User, VIEWERS},
    tools, wait,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

/// The daemon's limit of open files: far below the default, so that few clients can exhaust it.
const FILES: u64 = 512;
/// Opens connections, sends the beginning of a request on each, and replaces each one that the daemon closes.
const FLOOD: &str = r#"
import os, socket, sys, time
path, most = os.environ["POD_STEER_SOCKET"], 1400
held, opened = [], 0
while True:
    try:
        s = socket.socket(socket.AF_UNIX)
        s.setblocking(False)
        s.connect(path)
        s.send(b"GET /v1/status HTTP/1.1\r\nHost: x\r\nX-")
        held.append(s)
        opened += 1
    except OSError:
        time.sleep(0.001)
    if opened == most:
        print("flooded", flush=True)
    if len(held) > 800:
        held.pop(0).close()
"#;

fn settings() -> String {
    format!("group = '{OPERATORS}'\nviewers = '{VIEWERS}'\n")
}

#[test]
fn unfinished_requests_leave_steering_and_operators_alone() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "python3"]));
    let stage = Stage::configured_under(&settings(), Conditions { files: Some(FILES), ..Conditions::default() })?;
    let _first = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    for (name, group) in [("viewers", VIEWERS), ("operators", OPERATORS)] {
        let mut flood = User::with_groups(&[group]).command(&stage, "/usr/bin/python3")?;
        let flood: Process = stage.host.start(name, flood.args(["-c", FLOOD]))?;
        wait::until("the flood", || flood.stdout().contains("flooded").then_some(()))
            .with_context(|| flood.stderr())?;
        let open = fs::read_dir(format!("/proc/{}/fd", stage.daemon.pid()))?.count();
        report::figure(&format!("open files of the daemon, {name} flooding"), open);
        ensure!(open < FILES as usize * 3 / 4, "{open} files are open");
        // Operations that need descriptors in the daemon, and requests of root.
        let service = format!("of-{name}");
        let port = if name == "viewers" { "81:8081" } else { "82:8082" };
        let listen = format!("0.0.0.0:{}", port.split(':').nth(1).context("no port")?);
        let _second = Exec::new(&service, &service, port, &listen).start(&stage)?;
        stage.daemon.wait_ready(&service, 1)?;
        let target = format!("127.0.0.1:{}", &port[..2]).parse()?;
        let tally = Load::to(target).count(20).run(stage.host.net())?;
        ensure!(tally.answered_by(&service) == 20, "{tally}");
        stage.daemon.order_done("pause web")?;
        stage.daemon.order_done("unpause web")?;
    }
    ensure!(stage.daemon.status()?.warnings().is_empty(), "{}", stage.daemon.status()?);
    Ok(())
}

/// The daemon's answer until it closes the connection, while the client sends so many bytes a second.
fn slow(mut stream: UnixStream, beginning: &str) -> Result<String> {
    // A request that is too long is refused while the client still sends it.
    let _ = stream.write_all(beginning.as_bytes());
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (begun, mut answer, mut buffer) = (Instant::now(), String::new(), [0; 4096]);
    while begun.elapsed() < wait::STUCK {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.push_str(&String::from_utf8_lossy(&buffer[..count])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => drop(stream.write(b" ")),
            Err(_) => return Ok(answer),
        }
    }
    anyhow::bail!("the daemon still waits for the rest of {beginning:?}")
}

#[test]
fn a_slow_or_long_request_is_ended() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let post = "POST /v1/services/web/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let body = format!("{post}Content-Length: 100000\r\n\r\n{{");
    let ended = thread::scope(|scope| {
        let all = [&post[..post.len() - 2], &chunked, &body, ""];
        let all = all.map(|beginning| {
            let stream = stage.daemon.connect();
            scope.spawn(move || slow(stream?, beginning))
        });
        all.map(|one| one.join().expect("the thread does not panic"))
    });
    let [head, chunked, body, nothing] = ended;
    for answer in [&body?, &chunked?] {
        ensure!(answer.starts_with("HTTP/1.1 4") && answer.contains("body"), "{answer}");
    }
    for answer in [&head?, &nothing?] {
        ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // A request whose declared length is too large is refused before its body arrives.
    let long = slow(stage.daemon.connect()?, &format!("{post}Content-Length: 999999999\r\n\r\n{{"))?;
    ensure!(long.starts_with("HTTP/1.1 413") && long.contains("1048576 bytes"), "{long}");
    let long = slow(stage.daemon.connect()?, &format!("{post}X-Long: {}", "x".repeat(1 << 20)))?;
    ensure!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
    stage.daemon.status().map(drop)
}

#[test]
fn a_client_that_does_not_read_its_answers_is_ended() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let mut client = stage.daemon.connect()?;
    client.set_nonblocking(true)?;
    // Until the daemon stops reading, because the client does not read the answers.
    let request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    wait::until("the answers to be held up", || {
        let sent = (0..10_000).try_for_each(|_| client.write_all(request));
        sent.is_err_and(|error| error.kind() == ErrorKind::WouldBlock).then_some(())
    })?;
    wait::until("the daemon to hang up", || {
        let mut look = [PollFd::new(&client, PollFlags::empty())];
        let polled = poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        (polled.is_ok() && look[0].revents().contains(PollFlags::HUP)).then_some(())
    })?;
    stage.daemon.status().map(drop)
}
