//! IPv6 clients, dual-stack sockets, and IPv4 clients of dual-stack sockets.

use std::net::SocketAddr;

use anyhow::Result;
use pod_steer_tests::{
    check,
    daemon::Stage,
    exec::Exec,
    load::{Load, Tally},
    process::{Process, run},
    require, server, tools, wait,
};

fn load(stage: &Stage, target: &str, count: u64) -> Result<Tally> {
    Load::to(target.parse::<SocketAddr>()?).threads(2).count(count).run(stage.host.net())
}

#[test]
fn each_family_reaches_the_sockets_that_take_it() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let start =
        |name: &str, listen: &str, args: &[&str]| Exec::new(name, "web", "80:8080", listen).server(args).start(&stage);
    let _servers = [
        start("four", "0.0.0.0:8080", &[])?,
        start("dual", "[::]:8080", &[])?,
        start("six", "[::]:8080", &["--v6only"])?,
    ];
    stage.daemon.wait_ready("web", 3)?;
    // The kernel program knows the family before it reads the socket.
    for (name, v6only) in [("dual", "false"), ("six", "true")] {
        let log = stage.daemon.log();
        let line = log.lines().find(|line| line.contains("listens") && line.contains(&format!("backend={name} ")));
        assert!(line.is_some_and(|line| line.contains(&format!("v6only=Some({v6only})"))), "{name}: {line:?}");
    }

    let four = load(&stage, "127.0.0.1:80", 1000)?;
    assert!(four.losses.is_empty(), "{four}");
    check::shares_follow("IPv4 clients", &four, &[("four", 1), ("dual", 1)])?;
    let six = load(&stage, "[::1]:80", 1000)?;
    assert!(six.losses.is_empty(), "{six}");
    check::shares_follow("IPv6 clients", &six, &[("dual", 1), ("six", 1)])?;
    assert!(four.disguised.is_empty() && six.disguised.is_empty(), "{:?} {:?}", four.disguised, six.disguised);

    let service = stage.daemon.wait_idle("web")?;
    for name in ["four", "dual", "six"] {
        let backend = service.backends.iter().find(|backend| backend.name == name).expect("it is ready");
        assert_eq!(backend.opened, four.answered_by(name) + six.answered_by(name), "{service:#?}");
    }
    Ok(())
}

#[test]
fn clients_of_a_family_without_a_listener_are_refused() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _six = Exec::new("six", "six", "80:8080", "[::]:8080").server(&["--v6only"]).start(&stage)?;
    let _four = Exec::new("four", "four", "81:8081", "0.0.0.0:8081").start(&stage)?;
    stage.daemon.wait_ready("six", 1)?;
    stage.daemon.wait_ready("four", 1)?;
    for (target, name) in
        [("127.0.0.1:80", None), ("[::1]:80", Some("six")), ("127.0.0.1:81", Some("four")), ("[::1]:81", None)]
    {
        let tally = load(&stage, target, 50)?;
        match name {
            Some(name) => assert_eq!(tally.answered_by(name), 50, "{target}: {tally}"),
            None => assert_eq!(tally.refused(), 50, "{target}: {tally}"),
        }
    }
    Ok(())
}

#[test]
fn an_ipv4_server_beside_an_ipv6_only_server_keeps_its_clients() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let net = stage.host.net().try_clone()?;
    let start = |stage: &Stage, name: &str, listen: &[&str]| -> Result<Process> {
        let mut command = stage.host.command(tools::named_server()?)?;
        let server = stage.host.start(name, command.args(["--name", name, "--listen"]).args(listen))?;
        wait::until(name, || server.stdout().contains("listening").then_some(()))?;
        Ok(server)
    };
    // An unmanaged server.
    let _four = start(&stage, "four", &["0.0.0.0:8080"])?;
    let _six = Exec::new("six", "six", "8080", "[::]:8080").server(&["--v6only"]).start(&stage)?;
    // A registered process has no cgroup of its own in which the next daemon could search.
    let also = start(&stage, "also", &["[::]:8081", "--v6only"])?;
    let mut register = stage.daemon.cli()?;
    register.args(["register", "--service", "also", "--ports", "8081", "--name", "also", "--pid"]);
    run(register.arg(also.pid().to_string()))?;
    let _also_four = start(&stage, "also-four", &["0.0.0.0:8081"])?;
    for _ in 0..2 {
        stage.daemon.wait_ready("six", 1)?;
        stage.daemon.wait_ready("also", 1)?;
        for (target, name) in
            [("127.0.0.1:8080", "four"), ("[::1]:8080", "six"), ("127.0.0.1:8081", "also-four"), ("[::1]:8081", "also")]
        {
            let tally = Load::to(target.parse::<SocketAddr>()?).threads(2).count(50).run(&net)?;
            assert_eq!(tally.answered_by(name), 50, "{target}: {tally}");
        }
        stage.daemon.kill()?;
        stage.daemon.restart()?;
    }
    Ok(())
}

#[test]
fn containers_serve_both_families() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    // busybox opens a dual-stack socket by itself.
    let specs = [server::named("named-1", "[::]:8080"), server::busybox("busybox-1", 8080)];
    let _containers = specs
        .into_iter()
        .map(|spec| stage.engine().start_container(&spec.service("web", "80:8080")))
        .collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let mut opened = 0;
    for ip in [client.host_ip4, client.host_ip6] {
        let tally = Load::to((ip, 80).into()).threads(2).count(1000).run(&client.ns)?;
        assert!(tally.losses.is_empty() && tally.disguised.is_empty(), "{tally} {:?}", tally.disguised);
        check::shares_follow(&format!("clients of {ip}"), &tally, &[("named-1", 1), ("busybox-1", 1)])?;
        opened += tally.answered();
    }
    assert_eq!(stage.daemon.wait_idle("web")?.opened(), opened);
    Ok(())
}

#[test]
fn one_address_of_many() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let start =
        |name: &str, service: &str, ports: &str, listen: &str| Exec::new(name, service, ports, listen).start(&stage);
    // Three claims on port 80: of one IPv4 address, of one IPv6 address, and of every other address.
    let _servers = [
        start("one-1", "one", "127.0.0.2:80:8081", "0.0.0.0:8081")?,
        start("six-1", "six", "[::1]:80:8082", "[::]:8082")?,
        start("rest-1", "rest", "80:8083", "[::]:8083")?,
    ];
    for service in ["one", "six", "rest"] {
        stage.daemon.wait_ready(service, 1)?;
    }
    for (target, name) in [("127.0.0.2:80", "one-1"), ("127.0.0.3:80", "rest-1"), ("[::1]:80", "six-1")] {
        let tally = load(&stage, target, 50)?;
        assert_eq!(tally.answered_by(name), 50, "{target}: {tally}");
    }
    Ok(())
}
