//! What one run of the kernel program costs, by the number of services and of backends. Not for people: the benchmark of
//! the tests crate starts one of these for each size and asks them in turn, so that the machine's drift hits all alike.
//!
//! `program DIR SERVICES BACKENDS` steers in its own network namespace, with its state below DIR of a bpffs: so many
//! services with so many listening sockets each, all real and all its own. It prints `ready`, and then, for each line that
//! it reads, one line of JSON. Needs root and bpftool.

use std::{
    collections::BTreeMap,
    error::Error,
    fs::File,
    io::{ErrorKind, Write as _, stdin},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    programs::{ProgramInfo, links::FdLink, links::PinnedLink, loaded_programs},
    sys::{Stats, enable_stats},
};
use pod_steer::{
    ids::{BackendIndex, ServiceIndex, SocketCookie},
    kernel::Kernel,
    netns::{Netns, identify},
    ports::Port,
    rule::RuleKey,
    slots::Member,
    world::{Plan, PlannedRule, PlannedTable},
};
use pod_steer_ebpf::{FAMILY_V4, NONE, PROTO_TCP, SocketInfo};
use rustix::{
    net::sockopt::{set_socket_linger, socket_cookie},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Port of the first service; the others follow.
const FIRST_PORT: u16 = 2_000;
/// Port of the first socket; the others follow, below the ports that clients are given.
const FIRST_SOCKET: u16 = 12_000;
/// First of the ports that nobody claims.
const FIRST_UNCLAIMED: u16 = 64_000;
/// Where the packets of `BPF_PROG_TEST_RUN` say that they come from: an address kept for documentation (RFC 5737).
const CLIENT: [u8; 4] = [192, 0, 2, 1];
/// Packets of one answer, each of another client and for another service, if there are so many.
const PACKETS: u32 = 15;
/// How often each of them is looked up.
const REPEAT: u32 = 100_000;
/// Connections of one answer.
const CONNECTIONS: usize = 10_000;
/// Clients that are connected at one time.
const CLIENTS_MAX: usize = 2_048;
/// Open files beside sockets.
const FILES: usize = 512;
/// Bytes of `struct bpf_sk_lookup` (`include/uapi/linux/bpf.h`).
const CONTEXT_BYTES: usize = 72;

/// So many services, in the kernel and with sockets.
struct Steered {
    dir: PathBuf,
    kernel: Kernel,
    netns: Netns,
    plan: Plan,
    indices: BTreeMap<String, ServiceIndex>,
    listeners: Vec<TcpListener>,
    packets: PathBuf,
    /// Where bpftool writes what the program made of a packet.
    outcomes: PathBuf,
    /// Numbers that look random and are the same in every run.
    state: u64,
}

impl Steered {
    fn new(dir: &Path, services: u16, backends: u32) -> Result<Self> {
        let ns = File::open("/proc/self/ns/net")?;
        let netns = identify(&ns)?;
        let mut kernel = Kernel::open(dir, backends, false)?.kernel;
        let (mut members, mut listeners) = (Vec::new(), Vec::new());
        for (port, backend) in (FIRST_SOCKET..).zip((0..u32::from(services) * backends).take(sockets_max())) {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
            listener.set_nonblocking(true)?;
            let cookie = SocketCookie(socket_cookie(&listener)?);
            let backend = backend % backends;
            let info = SocketInfo {
                netns_cookie: netns.cookie.0,
                backend,
                table: NONE,
                service: NONE,
                port,
                proto: PROTO_TCP,
                family: FAMILY_V4,
                ..SocketInfo::default()
            };
            kernel.register_socket(cookie, &listener, info)?;
            members.push(Member { cookie, backend: BackendIndex(backend), weight: 1, is_forwarded: false });
            listeners.push(listener);
        }
        let (mut plan, mut indices) = (Plan::default(), BTreeMap::new());
        // Where the limit on open files is too low for all, a few sockets serve two services.
        let mut next = members.iter().cycle();
        for number in 0..services {
            let members = next.by_ref().take(backends as usize).copied().collect();
            let (name, table) = (format!("service-{number}"), PlannedTable { members, ..PlannedTable::default() });
            let rule =
                PlannedRule { service: Some(name.clone()), table: Some(Arc::new(table)), ..PlannedRule::default() };
            plan.rules.insert(key(&netns, FIRST_PORT + number), rule);
            indices.insert(name, ServiceIndex(u32::from(number)));
        }
        if let Some(error) = kernel.apply(&plan, &indices, BTreeMap::new).error {
            return Err(error.into());
        }
        if let Some(attachment) = kernel.namespace_attachment(netns, ns, false) {
            attachment.run()?;
        }
        // bpftool reads the packet from a file; these go with the directory of the process that has started us.
        let file = |what: &str| {
            Ok::<_, std::io::Error>(std::env::current_dir()?.join(format!("{what}-{services}-{backends}")))
        };
        let (packets, outcomes) = (file("packet")?, file("outcome")?);
        Ok(Self { dir: dir.to_owned(), kernel, netns, plan, indices, listeners, packets, outcomes, state: 1 })
    }

    fn random(&mut self, below: usize) -> usize {
        // Knuth's multiplier of a linear congruential generator; its high bits are good enough to choose by.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % below
    }

    fn random_port(&mut self) -> u16 {
        FIRST_PORT + self.random(self.plan.rules.len()) as u16
    }

    /// Nanoseconds of one run, again and again with the same packet: the median over some packets to such ports. Fails if
    /// the program does not choose a socket for a port that is claimed, or chooses one for another port.
    fn run_ns(&mut self, program: u32, is_claimed: bool, port: impl Fn(&mut Self) -> u16) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..PACKETS {
            let (from, to) = (10_000 + self.random(50_000) as u16, port(self));
            std::fs::write(&self.packets, context(from, to))?;
            let id = program.to_string();
            let mut bpftool = Command::new("bpftool");
            bpftool.args(["--json", "prog", "run", "id", &id, "repeat", &REPEAT.to_string(), "ctx_in"]);
            bpftool.arg(&self.packets).arg("ctx_out").arg(&self.outcomes);
            let answer = bpftool.output().map_err(|error| format!("bpftool cannot be run: {error}"))?;
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            let run: serde_json::Value =
                serde_json::from_str(&text).map_err(|error| format!("bpftool said {text:?}: {error}"))?;
            let (verdict, time) = (run["retval"].as_u64(), run["duration"].as_f64());
            // SK_PASS; without a socket too, if the kernel is to go on by itself.
            let (Some(1), Some(time)) = (verdict, time) else { return Err(format!("bpftool said {text:?}").into()) };
            if is_chosen(&std::fs::read(&self.outcomes)?)? != is_claimed {
                let what = if is_claimed { "no socket for a port that is" } else { "a socket for a port that is not" };
                return Err(format!("the program has chosen {what} claimed: {to}").into());
            }
            times.push(time);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Nanoseconds of one run while clients connect: the mean, by the kernel's own statistics.
    fn load_ns(&mut self, program: u32) -> Result<f64> {
        let _counting = enable_stats(Stats::RunTime)?;
        let before = info(program)?;
        // No queue may run full: then the client would wait for its SYN's second try.
        let between = (self.listeners.len() * 16).clamp(32, CLIENTS_MAX);
        let mut clients = Vec::new();
        for number in 1..=CONNECTIONS {
            let port = self.random_port();
            let client = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            // A reset at the end: else its address would be taken for a minute.
            set_socket_linger(&client, Some(Duration::ZERO))?;
            clients.push(client);
            if number % between == 0 || number == CONNECTIONS {
                self.accept_all()?;
                clients.clear();
            }
        }
        let after = info(program)?;
        let (runs, time) = (after.run_count() - before.run_count(), after.run_time() - before.run_time());
        if runs < CONNECTIONS as u64 {
            return Err(format!("{CONNECTIONS} connections, and the program ran {runs} times").into());
        }
        Ok(time.as_secs_f64() * 1e9 / runs as f64)
    }

    fn accept_all(&self) -> Result<()> {
        for listener in &self.listeners {
            loop {
                match listener.accept() {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Milliseconds from a change of one table until it is in effect; nobody waits until the old one is out of use.
    fn publish_ms(&mut self) -> Result<f64> {
        let port = self.random_port();
        let rule = self.plan.rules.get_mut(&key(&self.netns, port)).ok_or("no rule for a port of ours")?;
        let member = rule
            .table
            .as_mut()
            .and_then(|table| Arc::make_mut(table).members.first_mut())
            .ok_or("a table without members")?;
        // Another weight is another table, and nobody has to close a socket for it.
        member.weight = 3 - member.weight;
        let begun = Instant::now();
        let error = self.kernel.apply(&self.plan, &self.indices, BTreeMap::new).error;
        let time = begun.elapsed();
        error.map_or(Ok(ms(time)), |error| Err(error.into()))
    }

    fn answer(&mut self) -> Result<String> {
        let link = FdLink::from(PinnedLink::from_pin(self.dir.join("netns").join(self.netns.cookie.to_string()))?);
        let program = link.info()?.program_id();
        let run_ns = self.run_ns(program, true, Self::random_port)?;
        let other_ns = self.run_ns(program, false, |this| FIRST_UNCLAIMED + this.random(1_000) as u16)?;
        let (publish_ms, load_ns) = (self.publish_ms()?, self.load_ns(program)?);
        let found = [("run_ns", run_ns), ("other_ns", other_ns), ("load_ns", load_ns), ("publish_ms", publish_ms)];
        Ok(serde_json::to_string(&BTreeMap::from(found))?)
    }
}

/// How many listening sockets this process may have.
fn sockets_max() -> usize {
    let all = Rlimit { current: Some(1 << 17), maximum: Some(1 << 17) };
    // Not everybody who is root may have more than others.
    let _ = setrlimit(Resource::Nofile, all);
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(CLIENTS_MAX + FILES).max(1)
}

fn key(netns: &Netns, port: u16) -> RuleKey {
    RuleKey { netns_cookie: netns.cookie, addr: [0; 16], port: Port::tcp(port), family: FAMILY_V4, ifindex: 0 }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// `struct bpf_sk_lookup` of a SYN.
fn context(from: u16, to: u16) -> [u8; CONTEXT_BYTES] {
    let mut bytes = [0; CONTEXT_BYTES];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(8, &u32::from(FAMILY_V4).to_ne_bytes());
    put(12, &u32::from(PROTO_TCP).to_ne_bytes());
    put(16, &CLIENT);
    put(36, &from.to_be_bytes());
    put(40, &Ipv4Addr::LOCALHOST.octets());
    put(60, &u32::from(to).to_ne_bytes());
    bytes
}

/// Whether the program chose a socket: the test run begins `struct bpf_sk_lookup` with that socket's cookie, or with 0.
fn is_chosen(outcome: &[u8]) -> Result<bool> {
    let cookie = outcome.first_chunk().ok_or_else(|| format!("bpftool wrote {} bytes of context", outcome.len()))?;
    Ok(u64::from_ne_bytes(*cookie) != 0)
}

fn info(program: u32) -> Result<ProgramInfo> {
    let found = loaded_programs().flatten().find(|info| info.id() == program);
    Ok(found.ok_or("the program is loaded no more")?)
}

fn main() -> Result<()> {
    // What `cargo bench` adds is nothing for us.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [dir, services, backends] = args.as_slice() else {
        return Err("usage: program DIR SERVICES BACKENDS".into());
    };
    let mut steered = Steered::new(Path::new(dir), services.parse()?, backends.parse()?)?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    for line in stdin().lines() {
        line?;
        writeln!(out, "{}", steered.answer()?)?;
    }
    Ok(())
}
