//! `pod-steer explain` says which server answers a client: random packets, each of which is then sent by a real client from the same
//! port.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::Container,
    daemon::{BPFFS, Stage},
    exec::{Backend, Exec},
    host::Client,
    load::{End, Loss, attempt_by},
    report, require, scale, server, tools,
};
use rustix::process::Signal;
use serde_json::Value;

/// How long a client waits if it is to get no answer: less than the time to the first retransmission of its SYN.
const SILENCE: Duration = Duration::from_millis(700);
/// How long a client waits if it is to be answered or refused.
const PATIENCE: Duration = Duration::from_secs(10);
/// Packets of one state of the tables. Those of a paused service are never answered, and are fewer.
const PACKETS: usize = 50;
/// The ports of clients: each is used once for an address.
const FIRST_PORT: u16 = 10_001;
/// Networks of clients that may be given to a version, and addresses in and outside of them.
const NETWORKS: [&str; 2] = ["10.77.0.16/28", "fd77::10/124"];
const CLIENTS: [&str; 4] = ["10.77.0.2", "10.77.0.17", "fd77::2", "fd77::11"];
const LOCAL: [&str; 4] = ["127.0.0.1", "10.77.0.1", "::1", "fd77::1"];
/// Ports: of the versions, with rules for a single address, by the client's address, one that no service has, and one with a rule for a
/// single device. Most packets are for the first one.
const WEB: u16 = 80;
const FREE: u16 = 83;
const OF_DEVICE: u16 = 84;
const PORTS: [u16; 7] = [WEB, WEB, WEB, 81, 82, FREE, OF_DEVICE];
const STALE: &str = "v1-2";

/// Numbers that look random (xorshift64*), from a seed that is printed.
struct Random(u64);

impl Random {
    fn new() -> Result<Self> {
        let given = std::env::var("POD_STEER_TESTS_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let seed: u64 = given.unwrap_or(now).max(1);
        report::figure("seed (POD_STEER_TESTS_SEED)", seed);
        Ok(Self(seed))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % end
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Servers of both versions on the host and behind a bridge, and their clients.
struct Scene {
    stage: Stage,
    client: Client,
    hosts: BTreeMap<&'static str, Backend>,
    _others: Vec<Backend>,
    _bridged: Vec<Container>,
    next_port: BTreeMap<IpAddr, u16>,
}

impl Scene {
    fn start() -> Result<Self> {
        let stage = Stage::with_docker()?;
        let client = stage.host.new_client()?;
        for address in CLIENTS {
            let bits = if address.contains(':') { "64 dev eth0 nodad" } else { "24 dev eth0" };
            // The client has the first of each family.
            if !["10.77.0.2", "fd77::2"].contains(&address) {
                client.ns.ip(&format!("addr add {address}/{bits}"))?;
            }
        }
        stage.host.net().sysctl("net.ipv6.conf.all.forwarding", "1")?;
        let docker = stage.engine().docker();
        docker.run(&["network", "create", "--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "shop"])?;
        let bridged = [("in-1", "v1"), ("in-2", "v2")].map(|(name, version)| {
            let spec = server::named(name, "[::]:8080").service("web", "80:8080").network("shop").version(version);
            stage.engine().start_container(&spec)
        });
        let bridged = bridged.into_iter().collect::<Result<Vec<_>>>()?;
        let hosts = ["v1-1", STALE, "v2-1"].map(|name| Ok((name, web(name).start(&stage)?)));
        let hosts = hosts.into_iter().collect::<Result<BTreeMap<_, _>>>()?;
        let v4_only = Exec::new("v2-4", "web", "80:8080", "0.0.0.0:8080").flags(&["--version=v2"]);
        let others = [
            v4_only,
            Exec::new("one", "one", "10.77.0.1:81:8181", "[::]:8181"),
            Exec::new("any", "any", "81:8182", "[::]:8182"),
            Exec::new("near", "near", "84:84", "[::]:84%client0"),
            Exec::new("sticky-1", "sticky", "82:8183", "[::]:8183").flags(&["--affinity=client"]),
            Exec::new("sticky-2", "sticky", "82:8183", "[::]:8183").flags(&["--affinity=client"]),
        ];
        let others = others.map(|exec| exec.start(&stage)).into_iter().collect::<Result<Vec<_>>>()?;
        stage.daemon.wait_ready("web", 6)?;
        stage.daemon.wait_ready("sticky", 2)?;
        stage.daemon.wait_ready("near", 1)?;
        Ok(Self { stage, client, hosts, _others: others, _bridged: bridged, next_port: BTreeMap::new() })
    }

    /// A packet of a client, which is here or elsewhere.
    fn packet(&mut self, ports: &[u16], random: &mut Random) -> Result<(SocketAddr, SocketAddr)> {
        let source: IpAddr = if random.below(4) == 0 { random.one(&LOCAL) } else { random.one(&CLIENTS) }.parse()?;
        let own: Vec<IpAddr> = LOCAL.into_iter().filter_map(|ip| ip.parse().ok()).collect();
        let is_far = !own.contains(&source);
        // A client with a loopback address is not answered by a server that is bound to a device, nor refused by all other addresses.
        let fits = |ip: &&IpAddr| {
            ip.is_ipv4() == source.is_ipv4()
                && !(is_far && ip.is_loopback())
                && (!source.is_loopback() || ip.is_loopback())
        };
        let to: Vec<&IpAddr> = own.iter().filter(fits).collect();
        let port = self.next_port.entry(source).or_insert(FIRST_PORT);
        *port += 1;
        Ok((SocketAddr::new(source, *port), SocketAddr::new(**random.one(&to), *random.one(ports))))
    }

    /// The answers of `pod-steer explain` about these packets.
    fn explain(&self, packets: &[(SocketAddr, SocketAddr)]) -> Result<Vec<Value>> {
        let mut command = self.stage.daemon.cli()?;
        command.args(["explain", "tcp", "--packets", "-", "--json", "--bpffs", BPFFS]);
        let mut explain = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines: String = packets.iter().map(|(from, to)| format!("{from} {to}\n")).collect();
        explain.stdin.take().context("it is piped")?.write_all(lines.as_bytes())?;
        let said = explain.wait_with_output()?;
        ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let answers: Vec<Value> =
            serde_json::Deserializer::from_slice(&said.stdout).into_iter().collect::<Result<_, _>>()?;
        ensure!(answers.len() == packets.len(), "{} answers to {} packets", answers.len(), packets.len());
        Ok(answers)
    }

    /// Who answers a real client; `refused`, or `no answer` within this time.
    fn connect(&self, (from, to): (SocketAddr, SocketAddr), within: Duration) -> Result<String> {
        let is_local = LOCAL.contains(&from.ip().to_string().as_str());
        let ns = if is_local { self.stage.host.net() } else { &self.client.ns };
        match ns.run(|| attempt_by(from, to, within)) {
            End::Answered(answer) => Ok(answer.name),
            End::Lost(Loss::Refused, _) => Ok("refused".to_owned()),
            End::Lost(Loss::ConnectTimedOut, _) => Ok("no answer".to_owned()),
            End::Lost(Loss::AnswerTimedOut(_), _) => Ok("held".to_owned()),
            End::Lost(loss, _) => anyhow::bail!("{from} to {to}: {loss:?}"),
        }
    }

    /// Explains packets, sends them, and compares. Counts the kinds of choices.
    fn compare(&mut self, state: &State, random: &mut Random, kinds: &mut Kinds) -> Result<()> {
        let packets = (0..state.count).map(|_| self.packet(state.ports, random)).collect::<Result<Vec<_>>>()?;
        let name = &state.name;
        for (packet, answer) in packets.iter().zip(self.explain(&packets)?) {
            let (choice, kind) = (&answer["choice"], answer["choice"]["kind"].as_str().unwrap_or_default());
            let expected = match kind {
                "socket" | "forwarded" => choice["backend"]["name"].as_str().unwrap_or_default(),
                "refused" => "refused",
                "paused" => "no answer",
                "held" => "held",
                // Nothing listens there, or only for clients of another device: whether Linux refuses them is its own matter.
                "passed" if [FREE, OF_DEVICE].contains(&packet.1.port()) => "no server",
                _ => "another kind",
            };
            let within = if ["socket", "forwarded", "refused"].contains(&kind) { PATIENCE } else { SILENCE };
            let answered = match self.connect(*packet, within)? {
                none if expected == "no server" && ["refused", "no answer"].contains(&&*none) => expected.to_owned(),
                answered => answered,
            };
            ensure!(answered == expected, "{name}: {answered} answered {packet:?}, and explain said\n{answer:#}");
            ensure!(answer["difference"].is_null(), "{name}: {answer:#}");
            let tables = answer["tables"].as_array().context("no tables")?;
            let of_network = tables.iter().any(|table| !table["network"].is_null());
            let is_gone = |tried: &Value| tried["declined"] == "gone";
            let stale = tables.iter().any(|table| table["tries"].as_array().is_some_and(|all| all.iter().any(is_gone)));
            let family = if packet.0.is_ipv4() { "IPv4" } else { "IPv6" };
            let of_device = answer["rule"]["device"].is_number();
            let also = [of_device.then_some("by device"), of_network.then_some("by network"), stale.then_some("stale")];
            for is in [kind, family].into_iter().chain(also.into_iter().flatten()) {
                *kinds.entry(is.to_owned()).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// How many packets were of each kind.
type Kinds = BTreeMap<String, usize>;

/// A state of the tables, and the packets that are tried in it.
struct State {
    name: String,
    count: usize,
    ports: &'static [u16],
}

/// A server of `web` for both families.
fn web(name: &'static str) -> Exec<'static> {
    let version = &name[..2];
    Exec::new(name, "web", "80:8080", "[::]:8080").flags(&["--version", version])
}

#[test]
fn explain_agrees_with_real_connections() -> Result<()> {
    require!(tools::docker());
    let mut scene = Scene::start()?;
    let mut random = Random::new()?;
    let (mut kinds, mut sent) = (Kinds::new(), 0);
    let all = scale::of(300, 10_000);
    let backends = ["v1-1", "v2-1", "v2-4", "in-1", "in-2"];
    let mut drained = None;
    // Each kind of state comes in turn, and its details at random.
    for round in 0.. {
        let mut state = State { name: String::new(), count: PACKETS.min(all - sent), ports: &PORTS };
        if state.count == 0 {
            break;
        }
        let daemon = &scene.stage.daemon;
        match round % 6 {
            0 => state.name = format!("shift web v1={} v2={}", random.below(4), 1 + random.below(3)),
            1 => {
                daemon.order_done("drain any")?;
                let to = NETWORKS.map(|network| (network, if random.below(2) == 0 { "v1" } else { "v2" }));
                state.name = format!("shift web --from {}={} --from {}={}", to[0].0, to[0].1, to[1].0, to[1].1);
            }
            2 => {
                let now = *random.one(&backends);
                if let Some(before) = drained.replace(now) {
                    daemon.order_done(&format!("resume web --backend {before}"))?;
                }
                state.name = format!("drain web --backend {now}");
            }
            3 => state.name = format!("shift web v1={} v2={}", 1 + random.below(3), random.below(4)),
            4 => {
                daemon.order_done("resume any")?;
                (state.name, state.count, state.ports) = ("pause web".to_owned(), state.count.min(3), &[WEB]);
            }
            _ => {
                daemon.order_done("unpause web")?;
                let networks = NETWORKS.map(|network| format!(" --no-from {network}")).concat();
                daemon.order_done(&format!("shift web v1=3 v2=1{networks}"))?;
                state.ports = &[WEB];
            }
        }
        if state.name.is_empty() {
            // The tables name a socket that is gone, and the daemon does not know it.
            state.name = "a stale listener".to_owned();
            daemon.signal(Signal::STOP)?;
            drop(scene.hosts.remove(STALE));
            scene.compare(&state, &mut random, &mut kinds)?;
            scene.stage.daemon.signal(Signal::CONT)?;
            scene.hosts.insert(STALE, web(STALE).start(&scene.stage)?);
            scene.stage.daemon.wait_ready("web", 6 - usize::from(drained.is_some()))?;
        } else {
            daemon.order_done(&state.name)?;
            scene.compare(&state, &mut random, &mut kinds)?;
        }
        sent += state.count;
    }
    report::figure("packets that explain agrees on with real clients", format!("{sent} of {all}: {kinds:?}"));
    for kind in ["socket", "forwarded", "refused", "passed", "held", "by device", "by network", "stale", "IPv4", "IPv6"]
    {
        ensure!(kinds.contains_key(kind), "no packet was {kind}: {kinds:?}");
    }
    Ok(())
}
