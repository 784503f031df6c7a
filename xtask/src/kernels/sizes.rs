//! The guest's scene of packet sizes: one of the links on the way to a server behind a bridge takes smaller packets than its neighbours, and
//! every byte arrives in both directions. The kernel tells the senders, by path MTU discovery.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::netns::NetNs;

use super::bridged::{Inside, Place, UPLINK, ip};
use super::engine::Engine;
use crate::demo::stage::Stage;
use crate::say;

/// The clients' port and the server's port.
const ECHO: (u16, u16) = (84, 8084);
/// The addresses on the link from the router to its client.
const BEHIND: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 1), Ipv4Addr::new(10, 78, 0, 2)];
/// In each direction.
const BYTES: usize = 1 << 20;
/// The packets, in bytes, that the link between host and router takes, and those that the bridge takes. All other links take 1,500.
const SIZES: [(u32, u32); 3] = [(1500, 1500), (1400, 1500), (1500, 1400)];
/// Longest wait for bytes.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server: sends back the bytes of each connection once it has all of them.
pub fn echo(port: u16) -> Result<Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("the server cannot listen")?;
    loop {
        let (mut client, _) = listener.accept()?;
        let mut bytes = Vec::new();
        // A client that goes away is not the server's fault.
        let _ = client.read_to_end(&mut bytes).and_then(|_| client.write_all(&bytes));
    }
}

/// Plays it with a router that is connected to the host.
pub fn play(stage: &Stage, engine: &Engine, router: &NetNs, container: &NetNs) -> Result<()> {
    say::heading("links that take smaller packets");
    router.sysctl("net.ipv4.ip_forward", "1")?;
    let host = NetNs::of_pid(std::process::id())?;
    let client = Place::new(|args| router.ip(args), "south", BEHIND[1], BEHIND[0])?;
    router.ip(&format!("addr add {}/24 dev south", BEHIND[0]))?;
    ip(&format!("route add 10.78.0.0/24 via {}", UPLINK[1]))?;
    let (asked, listens) = ECHO;
    let ports = format!("{asked}:{listens}");
    let labels = [("service", "echo"), ("ports", ports.as_str()), ("version", "v1"), ("via", "forward")];
    let line = format!("/init kernels-guest --echo {listens}");
    let server = Inside::start(stage, engine, container, "echo", &labels, &line)?;
    for (uplink, bridge) in SIZES {
        ip(&format!("link set uplink mtu {uplink}"))?;
        router.ip(&format!("link set eth0 mtu {uplink}"))?;
        ip(&format!("link set br0 mtu {bridge}"))?;
        // Each case learns the size of its path anew.
        for net in [&client.ns, router, container] {
            net.sysctl("net.ipv4.route.flush", "1")?;
        }
        // Of packets that the host could not pass on, and told their senders so.
        let too_large = || host.snmp("Ip", "FragFails");
        let before = too_large()?;
        let case = format!("uplink {uplink}, bridge {bridge}");
        client.ns.run(|| exchange((UPLINK[0], asked).into())).with_context(|| case.clone())?;
        let told = too_large()? - before;
        ensure!((told > 0) == (uplink.min(bridge) < 1500), "{case}: {told} packets were too large");
        say::note(&format!("{case}: {BYTES} bytes both ways, {told} packets were too large"));
    }
    for net in [&client.ns, container] {
        let wrong = net.snmp("Tcp", "InCsumErrors")?;
        ensure!(wrong == 0, "{wrong} segments had a wrong checksum");
    }
    server.end(engine)?;
    client.end()
}

/// Sends bytes, and checks that they come back.
fn exchange(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // A period that no packet size shares.
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    stream.write_all(&sent).context("sending")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receiving")?;
    ensure!(answer == sent, "{} of {BYTES} bytes came back, or others", answer.len());
    Ok(())
}
