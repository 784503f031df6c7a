//! SYNs of which the kernel programs know something already: one that is repeated, and one from the port of an earlier connection.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_steer_tests::{
    bridged::{self, Kept, entries},
    daemon::Stage,
    load,
    netns::NetNs,
    process::run,
    require, tools, wait,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

/// How long a client waits for its connection.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Before Linux 6.5 the time from one SYN to the next always doubled.
const LINEAR: &str = "net.ipv4.tcp_syn_linear_timeouts";

#[test]
fn a_repeated_syn_that_gets_another_server_leaves_nothing_of_the_first() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["bpftool", "iptables"]));
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let start = |name: &str, version: &str| stage.engine().start_container(&bridged::web(name).version(version));
    let (old, _new) = (start("old", "v1")?, start("new", "v2")?);
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("deploy web v1")?;
    run(stage.host.command("iptables")?.args(["-I", "FORWARD", "-d", &old.ip()?.to_string(), "-j", "DROP"]))?;
    let (target, ns): (SocketAddr, NetNs) = ((client.host_ip4, 80).into(), client.ns.try_clone()?);
    // So a SYN is repeated after 1, 3 and 7 s on each kernel. The choice for the third one counts no longer at the fourth.
    if client.ns.has_sysctl(LINEAR) {
        client.ns.sysctl(LINEAR, "0")?;
    }
    let opened = thread::spawn(move || Kept::open(&ns, target));
    wait::until_ok("the third SYN", || Ok((client.ns.tcp_counter("TCPSynRetrans")? >= 2).then_some(())))?;
    ensure!(entries(&stage.host, "PENDING")? == 2, "both directions of the first choice");
    stage.daemon.order_done("deploy web v2")?;
    let mut kept = opened.join().map_err(|_| anyhow!("the client panicked"))??;
    ensure!(kept.server == "new", "{}", kept.server);
    kept.goes_on()?;
    let left = (entries(&stage.host, "PENDING")?, entries(&stage.host, "FLOWS")?);
    ensure!(left == (2, 2), "entries that may be evicted, and of connections that are established: {left:?}");
    Ok(())
}

/// Opens a connection from this port, and sends a request. Returns it with the server's name.
fn ask_from(net: &NetNs, port: u16, target: SocketAddr) -> Result<(TcpStream, String)> {
    net.run(|| {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).context("binding the client's port")?;
        for timeout in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
            sockopt::set_socket_timeout(&socket, timeout, Some(TIMEOUT))?;
        }
        connect(&socket, &target).context("connecting")?;
        let mut stream = TcpStream::from(socket);
        let (name, _) = load::ask(&mut stream, target, false).map_err(|loss| anyhow!("{loss:?}"))?;
        Ok((stream, name))
    })
}

#[test]
fn a_client_that_uses_its_port_again_finds_a_container_that_has_moved() -> Result<()> {
    const PORT: u16 = 9_000;
    require!(tools::docker());
    require!(tools::root_and(&["iptables"]));
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let docker = stage.engine().docker();
    for (name, subnet) in [("first", "10.88.0.0/24"), ("second", "10.89.0.0/24")] {
        docker.run(&["network", "create", "--subnet", subnet, name])?;
    }
    let web = stage.engine().start_container(&bridged::web("web-1").network("first"))?;
    stage.daemon.wait_ready("web", 1)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let (stream, name) = ask_from(&client.ns, PORT, target)?;
    ensure!(name == "web-1");
    // The client goes without a word, as one that is switched off: its server keeps the connection.
    let iptables = |args: &str| run(stage.host.command_in(&client.ns, "iptables")?.args(args.split(' ')));
    iptables("-I OUTPUT -p tcp -j DROP")?;
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    iptables("-D OUTPUT -p tcp -j DROP")?;

    docker.run(&["network", "connect", "second", &web.id])?;
    docker.run(&["network", "disconnect", "first", &web.id])?;
    stage.daemon.wait_for("the container to be found on its new network", |status| {
        let addresses = &status.backend("web", "web-1").bridge.as_ref()?.addresses;
        addresses.iter().any(|ip| ip.starts_with("10.89.0.")).then_some(())
    })?;
    let (_stream, name) = ask_from(&client.ns, PORT, target)?;
    ensure!(name == "web-1", "{name}");
    Ok(())
}
