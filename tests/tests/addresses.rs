//! The kernel chooses a listener by address, device and family, not only by port. Steering must never give a client to a socket that
//! the kernel would not have chosen.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Backend,
    listeners::{all_known, exec, expect, start, unmanaged},
    load::{End, Load, Loss, attempt},
    netns::NetNs,
    process::run,
    require, tools, wait,
};

#[test]
fn each_address_of_a_server_has_its_own_clients() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for (ports, front) in [("8080", 8080), ("80:8080", 80)] {
        let mut stage = Stage::without_engine()?;
        let _x = start(&stage, "x", "s", ports, &["127.0.0.2:8080", "127.0.0.3:8080", "[::1]:8080"])?;
        let right = [
            (format!("127.0.0.2:{front}"), Some("x@127.0.0.2:8080")),
            (format!("127.0.0.3:{front}"), Some("x@127.0.0.3:8080")),
            (format!("[::1]:{front}"), Some("x@[::1]:8080")),
            (format!("127.0.0.4:{front}"), None),
            (format!("127.0.0.1:{front}"), None),
        ];
        let right: Vec<_> = right.iter().map(|(target, answer)| (target.as_str(), *answer)).collect();
        expect(stage.host.net(), &right)?;
        stage.daemon.kill()?;
        expect(stage.host.net(), &right)?;
        stage.daemon.restart()?;
        all_known(&stage, "s", "x", 3)?;
        expect(stage.host.net(), &right)?;
        let service = stage.daemon.wait_idle("s")?;
        assert_eq!(service.counter("refused_no_backend"), 0, "the kernel refuses where no socket listens");
        assert_eq!(service.backends[0].steered, 3 * 3 * 20, "every answered client was steered: {service:#?}");
    }
    Ok(())
}

#[test]
fn servers_share_the_addresses_that_they_both_have() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let _x = start(&stage, "x", "s", "8080", &["127.0.0.2:8080", "127.0.0.3:8080"])?;
    let mut y = start(&stage, "y", "s", "8080", &["127.0.0.2:8080", "127.0.0.5:8080"])?;
    let by = |target: &str| Load::to(target.parse()?).count(200).run(net);
    let both = by("127.0.0.2:8080")?;
    let (from_x, from_y) = (both.answered_by("x@127.0.0.2:8080"), both.answered_by("y@127.0.0.2:8080"));
    assert!(from_x > 40 && from_y > 40 && from_x + from_y == 200, "{both}");
    let alone = [("127.0.0.3:8080", Some("x@127.0.0.3:8080")), ("127.0.0.4:8080", None)];
    expect(net, &alone)?;
    expect(net, &[("127.0.0.5:8080", Some("y@127.0.0.5:8080"))])?;

    // A wildcard listener takes every address without a listener of its own, and a share of the other addresses.
    let _z = start(&stage, "z", "s", "8080", &["0.0.0.0:8080"])?;
    expect(net, &[("127.0.0.4:8080", Some("z@0.0.0.0:8080"))])?;
    let mixed = by("127.0.0.3:8080")?;
    let (from_x, from_z) = (mixed.answered_by("x@127.0.0.3:8080"), mixed.answered_by("z@0.0.0.0:8080"));
    assert!(from_x > 40 && from_z > 40 && from_x + from_z == 200, "{mixed}");
    // The service keeps the other address of y.
    y.process.kill()?;
    stage.daemon.wait_for("y to be gone", |status| (status.service("s")?.backends.len() == 2).then_some(()))?;
    expect(net, &[("127.0.0.5:8080", Some("z@0.0.0.0:8080"))])
}

/// Two networks with the host in both: `e0` and `e1`, each with a client.
struct Networks {
    clients: [NetNs; 2],
}

impl Networks {
    fn new(host: &NetNs) -> Result<Self> {
        let clients = [NetNs::new()?, NetNs::new()?];
        for (n, client) in clients.iter().enumerate() {
            let host_addrs = [format!("10.8.{n}.1/24"), format!("fd08:{n}::1/64")];
            let addrs = [format!("10.8.{n}.2/24"), format!("fd08:{n}::2/64")];
            let host_addrs = host_addrs.each_ref().map(String::as_str);
            host.connect(&format!("e{n}"), &host_addrs, client, "eth0", &addrs.each_ref().map(String::as_str))?;
            client.ip(&format!("route add default via 10.8.{n}.1"))?;
            client.ip(&format!("-6 route add default via fd08:{n}::1"))?;
        }
        // Addresses that are reachable through either device.
        for addr in ["10.9.1.1/32", "10.9.1.2/32", "fd09::1/128", "fd09::2/128"] {
            let nodad = if addr.contains(':') { " nodad" } else { "" };
            host.ip(&format!("addr add {addr} dev lo{nodad}"))?;
        }
        Ok(Self { clients })
    }
}

#[test]
fn each_device_has_its_own_clients() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let networks = Networks::new(stage.host.net())?;
    let [left, right] = &networks.clients;
    let _a = start(&stage, "a", "s", "8080", &["0.0.0.0:8080%e0"])?;
    let _b = start(&stage, "b", "s", "8080", &["0.0.0.0:8080%e1", "[::]:8080%e1,v6only"])?;
    let host = stage.host.net().try_clone()?;
    let check = |a: Option<&str>| -> Result<()> {
        expect(left, &[("10.8.0.1:8080", a), ("10.9.1.1:8080", a), ("[fd09::1]:8080", None)])?;
        expect(
            right,
            &[("10.8.1.1:8080", Some("b@0.0.0.0:8080%e1")), ("[fd09::1]:8080", Some("b@[::]:8080%e1,v6only"))],
        )?;
        // Packets of the host's own clients arrive on the device that has the address.
        expect(&host, &[("127.0.0.1:8080", None), ("10.9.1.1:8080", None), ("10.8.0.1:8080", a)])
    };
    check(Some("a@0.0.0.0:8080%e0"))?;
    stage.daemon.kill()?;
    check(Some("a@0.0.0.0:8080%e0"))?;
    stage.daemon.restart()?;
    all_known(&stage, "s", "b", 2)?;
    check(Some("a@0.0.0.0:8080%e0"))?;

    // A listener without a device serves the other devices, and shares the clients of these.
    let _c = start(&stage, "c", "s", "8080", &["0.0.0.0:8080"])?;
    expect(&host, &[("127.0.0.1:8080", Some("c@0.0.0.0:8080"))])?;
    let shared = Load::to("10.8.0.1:8080".parse()?).count(200).run(left)?;
    let (from_a, from_c) = (shared.answered_by("a@0.0.0.0:8080%e0"), shared.answered_by("c@0.0.0.0:8080"));
    assert!(from_a > 40 && from_c > 40 && from_a + from_c == 200, "{shared}");
    Ok(())
}

#[test]
fn a_mapped_address_takes_ipv4_clients_alone() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    stage.host.net().ip("addr add 10.9.1.1/32 dev lo")?;
    stage.host.net().ip("addr add 10.9.1.2/32 dev lo")?;
    let _one = exec("one", "s", "8080", &["[::ffff:10.9.1.1]:8080"]).flags(&["--version", "v1"]).start(&stage)?;
    all_known(&stage, "s", "one", 1)?;
    let net = stage.host.net();
    let none = [("[::1]:8080", None), ("127.0.0.1:8080", None), ("10.9.1.2:8080", None)];
    expect(net, &[("10.9.1.1:8080", Some("one@[::ffff:10.9.1.1]:8080"))])?;
    expect(net, &none)?;
    // The same with an IPv4 server.
    let _two = exec("two", "s", "8080", &["10.9.1.1:8080"]).flags(&["--version", "v2"]).start(&stage)?;
    stage.daemon.wait_ready("s", 2)?;
    stage.daemon.order_done("deploy s v2")?;
    expect(net, &[("10.9.1.1:8080", Some("two@10.9.1.1:8080"))])?;
    expect(net, &none)
}

#[test]
fn a_version_that_listens_elsewhere_is_not_deployed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let version = |name: &'static str, listeners: &[&str]| -> Result<Backend> {
        let backend = exec(name, "s", "8080", listeners).flags(&["--version", name]).start(&stage)?;
        all_known(&stage, "s", name, listeners.len())?;
        Ok(backend)
    };
    let _old = version("v1", &["127.0.0.2:8080"])?;
    let _elsewhere = version("v2", &["127.0.0.3:8080"])?;
    let mut refused = stage.daemon.cli()?;
    let said = run(refused.args(["deploy", "s", "v2", "--timeout", "2s"])).expect_err("no backend would listen at .2");
    let said = format!("{said:#}");
    assert!(said.contains("port 8080 at 127.0.0.2"), "{said}");
    expect(net, &[("127.0.0.2:8080", Some("v1@127.0.0.2:8080")), ("127.0.0.3:8080", Some("v2@127.0.0.3:8080"))])?;
    // A listener on every address takes over.
    let _all = version("v3", &["0.0.0.0:8080"])?;
    stage.daemon.order_done("deploy s v3")?;
    let all = Some("v3@0.0.0.0:8080");
    expect(net, &[("127.0.0.2:8080", all), ("127.0.0.3:8080", all), ("127.0.0.4:8080", all)])
}

/// The answer at each destination: the listener's name, or `None` if the kernel refuses the connection.
type Answers = BTreeMap<String, Option<String>>;

/// Sends a request to every destination.
fn answers(host: &NetNs, networks: &Networks, port: u16) -> Result<Answers> {
    let mut answers = Answers::new();
    let ips = ["10.9.1.1", "10.9.1.2", "10.8.0.1", "fd09::1", "fd09::2", "fd08:1::1", "127.0.0.1", "::1"];
    let nets = [("e0", &networks.clients[0]), ("e1", &networks.clients[1]), ("lo", host)];
    for (device, net) in nets {
        for ip in ips.into_iter().filter(|ip| device == "lo" || !["127.0.0.1", "::1"].contains(ip)) {
            let target = SocketAddr::new(ip.parse()?, port);
            let answer = match net.run(|| attempt(target, 1, wait::STUCK)) {
                End::Answered(answer) => Some(answer.name),
                End::Lost(Loss::Refused, _) => None,
                End::Lost(loss, _) => anyhow::bail!("{target} by {device}: {loss:?}"),
            };
            answers.insert(format!("{ip} by {device}"), answer);
        }
    }
    Ok(answers)
}

#[test]
fn steering_chooses_the_listener_that_the_kernel_would() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let host = stage.host.net();
    let networks = Networks::new(host)?;
    // The same server twice: the kernel's own lookup chooses among its listeners, then steering does.
    let all: [&'static str; 13] = [
        "0.0.0.0",
        "0.0.0.0%e0",
        "10.9.1.1",
        "10.9.1.1%e0",
        "10.9.1.2%e1",
        "[::]",
        "[::]%e0",
        "[::],v6only",
        "[::]%e1,v6only",
        "[fd09::1]",
        "[fd09::1]%e1",
        "[::ffff:10.9.1.1]",
        "[::ffff:10.9.1.2]%e0",
    ];
    // At one address, the kernel stops at the first listener of its list that shares its port, and does not search for one
    // that has the device: which is the first depends on the order in which they began to listen.
    let address = |listener: &'static str| listener.split(['%', ',']).next();
    let device = |listener: &'static str| listener.contains('%');
    let conflict = |one, other| address(one) == address(other) && !(device(one) && device(other));
    let mut compared = 0;
    // Each listener alone, and each with two selections of those after it.
    let sets = (0..all.len()).flat_map(|first| (0..3).map(move |step| (first, step)));
    for (number, (first, step)) in sets.enumerate() {
        let chosen = all.iter().skip(first).step_by(step.max(1)).take(if step == 0 { 1 } else { 5 });
        let mut listeners: Vec<&'static str> = Vec::new();
        for listener in chosen {
            if !listeners.iter().any(|other| conflict(other, listener)) {
                listeners.push(listener);
            }
        }
        let at = |port: u16| -> Vec<String> {
            let with_port = |listener: &&str| {
                let end = listener.find(['%', ',']).unwrap_or(listener.len());
                format!("{}:{port}{}", &listener[..end], &listener[end..])
            };
            listeners.iter().map(with_port).collect()
        };
        let (own, managed) = (at(7000), at(8000));
        let own_refs: Vec<&str> = own.iter().map(String::as_str).collect();
        let managed_refs: Vec<&str> = managed.iter().map(String::as_str).collect();
        let _own = unmanaged(&stage, host, &format!("own-{number}"), &own_refs).with_context(|| format!("{own:?}"))?;
        let mut server = start(&stage, "x", "s", "8000", &managed_refs).with_context(|| format!("{own:?}"))?;
        let by_kernel = answers(host, &networks, 7000)?;
        let steered = answers(host, &networks, 8000)?;
        for (destination, expected) in &by_kernel {
            let name = |own: &String| own.replace(&format!("own-{number}@"), "x@").replace(":7000", ":8000");
            let expected = expected.as_ref().map(name);
            let answer = &steered[destination];
            ensure!(*answer == expected, "{destination}: {answer:?}, the kernel says {expected:?}, of {managed:?}");
            compared += 1;
        }
        let steered_to = stage.daemon.wait_idle("s")?.backends[0].steered as usize;
        assert_eq!(steered_to, steered.values().flatten().count(), "all that were answered were steered: {managed:?}");
        server.process.kill()?;
        stage.daemon.wait_for("it to be gone", |status| status.service("s").is_none().then_some(()))?;
    }
    pod_steer_tests::report::figure("destinations at which the kernel and steering were compared", compared);
    Ok(())
}
