//! An engine whose answers never end or are too large: the daemon reports it, and its memory does not grow.

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::{Daemon, Stage},
    exec::Exec,
    fake_engine::{FakeEngine, HEAD, stay_silent},
    host::Host,
    load::Load,
    report, require, tools, wait,
};

/// Limit of the daemon's peak memory.
const PEAK_KIB_MAX: u64 = 160 << 10;
/// More bytes than the daemon reads from one connection.
const ENDLESS: u64 = 256 << 20;
const MIB: u64 = 1 << 20;

/// A fault of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// An event without an end.
    Event,
    /// An event with labels of a megabyte.
    LongEvent,
    /// A list of containers without an end.
    List,
    /// A description of a container without an end.
    Details,
    /// A head without an end.
    Head,
    /// More containers than any machine has.
    Many,
    /// More empty containers than fit in memory, in a list that is not too long.
    Empty,
}

fn start(socket: &Path, fault: Fault) -> Result<(FakeEngine, Arc<AtomicU64>)> {
    // Bytes of the largest answer.
    let largest = Arc::new(AtomicU64::new(0));
    let sent = Arc::clone(&largest);
    Ok((FakeEngine::start(socket, move |path, stream| answer(path, stream, fault, &sent))?, largest))
}

fn answer(path: &str, mut stream: &UnixStream, fault: Fault, largest: &AtomicU64) {
    let (mut sent, mut is_open) = (0, true);
    let mut send = |text: &[u8]| {
        is_open = is_open && stream.write_all(text).is_ok();
        sent += text.len() as u64;
        is_open && sent < ENDLESS
    };
    let junk = [b'x'; 65_536];
    let container = |number: u64| format!(r#"{{"Id":"{number:064x}","Labels":{{"pod-steer.service":"web"}}}},"#);
    if path.starts_with("/version") && fault == Fault::Head {
        send(b"HTTP/1.1 200 OK\r\nX-Long: ");
        while send(&junk) {}
    } else if path.starts_with("/version") {
        send(HEAD);
        send(br#"{"ApiVersion":"1.41","Components":[{"Name":"Engine"}]}"#);
    } else if path.starts_with("/containers/json") {
        send(HEAD);
        match fault {
            Fault::List => {
                send(b"[{\"Id\":\"");
                while send(&junk) {}
            }
            Fault::Many => {
                send(b"[");
                (0..200_000).all(|number| send(container(number).as_bytes()));
                send(b"{}]");
            }
            Fault::Empty => {
                send(b"[");
                (0..30 * MIB / 3000).all(|_| send("{},".repeat(1000).as_bytes()));
                send(b"{}]");
            }
            Fault::Details => drop(send(format!("[{}{{}}]", container(7)).as_bytes())),
            Fault::Event | Fault::LongEvent | Fault::Head => drop(send(b"[]")),
        }
    } else if path.starts_with("/containers/") {
        send(HEAD);
        send(b"{\"Name\":\"");
        while send(&junk) {}
    } else if path.starts_with("/events") {
        send(HEAD);
        while fault == Fault::Event && send(&junk) {}
        if fault == Fault::LongEvent {
            (0..16).all(|_| send(&junk));
            send(b"\n");
        }
        // Any other stream is silent.
        if fault != Fault::Event {
            stay_silent(stream);
        }
    } else {
        send(HEAD);
        send(b"{}");
    }
    largest.fetch_max(sent, Ordering::Relaxed);
}

/// The daemon's peak memory.
fn peak_kib(daemon: &Daemon) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    line.split_whitespace().next().context("no number")?.parse().context("no number")
}

#[test]
fn endless_answers_are_cut_off_and_reported() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for (fault, wanted) in [
        (Fault::Event, Some("an event is longer than 16777216 bytes")),
        (Fault::List, Some("the answer to GET /containers/json is longer than 33554432 bytes")),
        (Fault::Details, Some("is longer than 1048576 bytes")),
        (Fault::Head, Some("the connection broke off")),
        (Fault::Many, Some("more than 16384 containers with pod-steer labels")),
        (Fault::Empty, None),
    ] {
        let host = Arc::new(Host::new()?);
        let socket = host.dir().join("engine.sock");
        let (_engine, largest) = start(&socket, fault)?;
        let daemon = Daemon::start(&host, &[&format!("unix://{}", socket.display())])?;
        match wanted {
            Some(wanted) => {
                let said = daemon.wait_for("the engine to be reported", |status| {
                    status.warnings().into_iter().find(|said| said.contains(wanted))
                });
                said.with_context(|| format!("{fault:?}"))?;
            }
            // The daemon answers before that if the engine is slow.
            None => wait::until("the engine to be connected", || {
                daemon.log().contains("container engine connected").then_some(())
            })
            .with_context(|| daemon.log_tail())?,
        }
        // The daemon reconnects meanwhile.
        thread::sleep(Duration::from_secs(1));
        let peak = peak_kib(&daemon)?;
        report::figure(&format!("peak memory of the daemon, {fault:?}"), format!("{} MiB", peak >> 10));
        ensure!(peak < PEAK_KIB_MAX, "{fault:?}: {peak} KiB");
        let largest = largest.load(Ordering::Relaxed);
        ensure!(largest < ENDLESS, "{fault:?}: {largest} bytes were taken");
        drop(daemon);
    }
    Ok(())
}

/// The daemon skips that container and follows the engine's other containers as before.
#[test]
fn a_long_event_does_not_end_the_stream() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Arc::new(Host::new()?);
    let socket = host.dir().join("engine.sock");
    let _engine = start(&socket, Fault::LongEvent)?;
    let daemon = Daemon::start(&host, &[&format!("unix://{}", socket.display())])?;
    wait::until("the event to be left out", || daemon.log().contains("an event that is too long").then_some(()))?;
    ensure!(daemon.status()?.warnings().is_empty(), "{}", daemon.status()?);
    ensure!(daemon.log().matches("container engine connected").count() == 1, "{}", daemon.log());
    Ok(())
}

#[test]
fn steering_continues_beside_it() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Arc::new(Host::new()?);
    let socket = host.dir().join("engine.sock");
    let _engine = start(&socket, Fault::Event)?;
    let stage = Stage::beside(host, &format!("unix://{}", socket.display()))?;
    let _web = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(200).run(stage.host.net())?;
    ensure!(tally.answered_by("web-1") == 200, "{tally}");
    Ok(())
}
