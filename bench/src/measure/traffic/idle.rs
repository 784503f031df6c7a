//! The memory of thousands of idle connections.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::say::thousands;

use crate::report::{Better, Column, Row, Section};
use rustix::net::sockopt::set_socket_linger;

use super::{
    contest::Contest,
    kernel::{self, Objects},
    lab::Lab,
    proof::Proof,
    servers::SMALL,
    tally::Tally,
    ways::Running,
};
use crate::{measure::costs, options::Options};

const NAME: &str = "idle";
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long kernel, servers and proxies take to release earlier connections.
const REST: Duration = Duration::from_millis(300);
/// Threads that open connections. They are in the namespace of the thread that starts them.
const OPENERS: u64 = 8;
/// Descriptors that a process needs besides those of connections.
const OTHER_FILES: u64 = 1000;

/// Measures it, if it is wanted. On a host of its own: memory that proxies have kept of an earlier load would not count.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    if !options.wants_section(NAME) {
        return Ok(Vec::new());
    }
    let (rounds, wish) = if options.quick { (1, 2_000) } else { (3, 10_000) };
    let contest = Contest::new(options, |_| true)?;
    for ns in [contest.lab.host.net(), &contest.lab.client.ns] {
        // Remains of ended connections would count for the next contestant.
        ns.sysctl("net.ipv4.tcp_max_tw_buckets", "0")?;
    }
    let mut least_b = BTreeMap::new();
    for (way, running) in contest.turns() {
        // A contestant that has ended meanwhile fails in its turn.
        least_b.insert(way.name, users_b(running).unwrap_or(u64::MAX));
    }
    let mut tally = Tally::default();
    for round in 0..rounds {
        eprintln!("{NAME}: round {} of {rounds}", round + 1);
        contest.round(NAME, &mut tally, |way, running| {
            turn(&contest.lab, running, wish, least_b.entry(way.name).or_insert(u64::MAX))
        });
    }
    tally.subtract_base("total_b", "own_b");
    let (columns, about) = (columns(), about(wish, rounds));
    let rows: Vec<Row> = contest.shown().filter_map(|way| tally.row(way, way.base, &columns)).collect();
    let failed = contest.failed().map(|(way, why)| (way.name.to_owned(), why));
    let skipped = failed.chain(tally.failed()).collect();
    Ok(vec![Section { name: NAME.into(), title: "Idle connections".into(), about, columns, rows, skipped }])
}

/// Bytes for each of a number of connections, held open for a moment. There are fewer where a process would exceed its limit of open
/// files. `least_b` is the least memory that servers and proxies have had without connections, since they may keep memory for later
/// connections.
fn turn(lab: &Lab, running: &Running, wish: u64, least_b: &mut u64) -> Result<Vec<(&'static str, f64)>> {
    let connections = (lab.files_max.saturating_sub(OTHER_FILES) / running.files_each).min(wish);
    ensure!(connections > 0, "no connection is possible where a process may have {} files open", lab.files_max);
    let proof = Proof::before(lab, running)?;
    thread::sleep(REST);
    kernel::forget_connections(lab.host.net())?;
    *least_b = users_b(running)?.min(*least_b);
    // The kernel frees memory only after a grace period.
    thread::sleep(REST);
    let before = Objects::now()?;
    let addr = running.http;
    let held = lab.ns(running.from).run(|| open(addr, connections))?;
    thread::sleep(REST);
    let kernel_b = Objects::now()?.growth_b(&before, connections);
    let users_b = users_b(running)?.saturating_sub(*least_b);
    drop(held);
    proof.after(connections)?;
    let each = |bytes: u64| bytes as f64 / connections as f64;
    Ok(vec![
        ("total_b", each(kernel_b + users_b)),
        ("kernel_b", each(kernel_b)),
        ("process_b", each(users_b)),
        ("connections", connections as f64),
    ])
}

/// Memory of the servers, and of the processes in front of them.
fn users_b(running: &Running) -> Result<u64> {
    costs::own_memory_b(&[running.own.as_slice(), &running.servers.pids()].concat())
}

/// Opens connections with one answered request each. One after the other, they would take minutes on a busy machine.
fn open(addr: SocketAddr, connections: u64) -> Result<Vec<TcpStream>> {
    let open_part = |first: u64| -> Result<Vec<TcpStream>> {
        let numbers = (first..connections).step_by(OPENERS as usize);
        numbers.map(|number| open_one(addr).with_context(|| format!("connection {number} to {addr}"))).collect()
    };
    thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS).map(|first| scope.spawn(move || open_part(first))).collect();
        let mut held = Vec::new();
        for opener in openers {
            held.extend(opener.join().map_err(|_| anyhow::anyhow!("a thread that opens connections panicked"))??);
        }
        Ok(held)
    })
}

fn open_one(addr: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&addr, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Closed by a reset: 10,000 connections in TIME_WAIT would affect the next contestant.
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    stream.write_all(format!("GET {SMALL} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !is_whole(&answer) {
        match stream.read(&mut buffer)? {
            0 => bail!("the connection was closed"),
            length => answer.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(stream)
}

/// Whether an answer is complete: its body has only one line.
fn is_whole(answer: &[u8]) -> bool {
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map(|head| &answer[head + 4..]);
    body.is_some_and(|body| body.ends_with(b"\n"))
}

fn columns() -> Vec<Column> {
    let columns = [
        ("own_b", "bytes per connection beyond the base's"),
        ("total_b", "bytes per connection"),
        ("kernel_b", "of them in the kernel"),
        ("process_b", "of them in servers and proxies"),
    ];
    let column = |key: &str, title: &str, better| Column { key: key.into(), title: title.into(), better };
    let mut columns: Vec<_> = columns.map(|(key, title)| column(key, title, Better::Lower)).into();
    columns.push(column("connections", "connections", Better::Higher));
    columns
}

fn about(connections: u64, rounds: usize) -> String {
    format!(
        "{} connections (fewer, where a proxy may not have the files open that it needs for them), each after \
         one request, held open by one client; {rounds} rounds, one contestant after the other within a round. Counted \
         are those objects of the kernel that grow in number with the connections (both ends of each), and the memory of \
         servers, proxies and daemons (PSS without files), against the least that they have had without connections. The base pays \
         for both ends and the server; the first column is what a contestant takes beyond that.",
        thousands(connections)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_with_its_body() {
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ndirect\n"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\n"));
    }
}
