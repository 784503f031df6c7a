//! Unmanaged listeners keep their clients. A claim affects only the addresses that it names.

use anyhow::Result;
use pod_steer_tests::{
    daemon::Stage,
    exec::Backend,
    listeners::{all_known, exec, expect, start, unmanaged},
    process::output,
    require, server, tools, wait,
};

#[test]
fn an_unmanaged_server_keeps_its_address_in_either_order() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for unmanaged_first in [true, false] {
        let mut stage = Stage::without_engine()?;
        let net = stage.host.net().try_clone()?;
        let managed = |stage: &Stage| start(stage, "m", "s", "8080", &["127.0.0.2:8080"]);
        let (_m, _u): (Backend, _);
        if unmanaged_first {
            _u = unmanaged(&stage, &net, "U", &["127.0.0.3:8080"])?;
            _m = managed(&stage)?;
        } else {
            _m = managed(&stage)?;
            _u = unmanaged(&stage, &net, "U", &["127.0.0.3:8080"])?;
        }
        let right = [
            ("127.0.0.2:8080", Some("m@127.0.0.2:8080")),
            ("127.0.0.3:8080", Some("U@127.0.0.3:8080")),
            ("127.0.0.4:8080", None),
        ];
        expect(&net, &right)?;
        stage.daemon.kill()?;
        expect(&net, &right)?;
        stage.daemon.restart()?;
        all_known(&stage, "s", "m", 1)?;
        expect(&net, &right)?;
        assert!(stage.daemon.status()?.warnings().is_empty(), "{}", stage.daemon.status()?);
    }
    Ok(())
}

#[test]
fn an_address_may_be_claimed_beside_another() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    net.ip("addr add 10.9.1.1/32 dev lo")?;
    let _resolver = unmanaged(&stage, net, "resolver", &["127.0.0.53:53", "[::1]:53"])?;
    let _dns = start(&stage, "dns", "dns", "10.9.1.1:53:5353", &["0.0.0.0:5353"])?;
    expect(
        net,
        &[
            ("10.9.1.1:53", Some("dns@0.0.0.0:5353")),
            ("127.0.0.53:53", Some("resolver@127.0.0.53:53")),
            ("[::1]:53", Some("resolver@[::1]:53")),
            ("127.0.0.1:53", None),
        ],
    )?;
    // A backend that listens elsewhere has a condition with the right address.
    let _lost = exec("lost", "dns", "10.9.1.1:53:5353", &["127.0.0.1:5353"]).start(&stage)?;
    stage.daemon.wait_state("dns", "lost", "not-steered")?;
    let said = stage.daemon.status()?.said_about("lost").join(" ");
    assert!(said.contains("listens on 127.0.0.1:5353, not at 10.9.1.1"), "{said}");
    expect(net, &[("10.9.1.1:53", Some("dns@0.0.0.0:5353"))])
}

#[test]
fn a_wildcard_leaves_single_addresses_to_earlier_listeners() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let net = stage.host.net().try_clone()?;
    let mut there = unmanaged(&stage, &net, "there", &["127.0.0.3:80"])?;
    let _web = start(&stage, "m", "web", "80:8080", &["0.0.0.0:8080"])?;
    let others = [("127.0.0.2:80", Some("m@0.0.0.0:8080")), ("127.0.0.4:80", Some("m@0.0.0.0:8080"))];
    let kept = [("127.0.0.3:80", Some("there@127.0.0.3:80"))];
    expect(&net, &others)?;
    expect(&net, &kept)?;
    // A server that starts later gets no clients, which `status` reports.
    let _later = unmanaged(&stage, &net, "later", &["127.0.0.4:80"])?;
    for _ in 0..2 {
        stage.daemon.kill()?;
        expect(&net, &others)?;
        expect(&net, &kept)?;
        stage.daemon.restart()?;
        stage.daemon.wait_ready("web", 1)?;
        let said = stage.daemon.wait_for("the condition", |status| {
            let said = status.said_about("listener 127.0.0.4:80");
            (!said.is_empty()).then(|| said.join(" "))
        })?;
        assert!(said.contains("gets no clients") && said.contains("`web`"), "{said}");
        assert!(stage.daemon.status()?.said_about("listener 127.0.0.3:80").is_empty());
        expect(&net, &others)?;
        expect(&net, &kept)?;
    }
    // When it has ended, the service has its address.
    there.kill()?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    wait::until_ok("the address to be the service's", || {
        Ok(expect(&net, &[("127.0.0.3:80", Some("m@0.0.0.0:8080"))]).ok())
    })?;
    expect(&net, &others)
}

#[test]
fn a_taken_port_is_refused_with_the_reason() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let _u = unmanaged(&stage, net, "U", &["0.0.0.0:8443"])?;
    for ports in ["8443:9000", "8443:9000,18443:8443", "127.0.0.2:8443:9000"] {
        let mut command = stage.daemon.cli()?;
        command.args(["exec", "--service", "s", "--ports", ports, "--", "true"]);
        let outcome = output(&mut command)?;
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(!outcome.status.success(), "{ports}");
        assert!(said.contains("already listens on port 8443") && said.contains("0.0.0.0:8443"), "{ports}: {said}");
    }
    expect(net, &[("127.0.0.2:8443", Some("U@0.0.0.0:8443"))])?;
    // The other family may be claimed.
    let _six = start(&stage, "six", "s", "[::]:8443:9000", &["[::]:9000"])?;
    expect(net, &[("127.0.0.2:8443", Some("U@0.0.0.0:8443")), ("[::1]:8443", Some("six@[::]:9000"))])
}

#[test]
fn the_place_of_an_unmanaged_server_is_not_taken() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let _u = unmanaged(&stage, net, "U", &["127.0.0.3:80"])?;
    let _m = exec("m", "s", "80:8080", &["127.0.0.3:8080", "127.0.0.2:8080"]).start(&stage)?;
    all_known(&stage, "s", "m", 2)?;
    expect(net, &[("127.0.0.3:80", Some("U@127.0.0.3:80")), ("127.0.0.2:80", Some("m@127.0.0.2:8080"))])?;
    let said = stage.daemon.status()?.said_about("backend m").join(" ");
    assert!(said.contains("already listens on port 80") && said.contains("127.0.0.3:80"), "{said}");
    Ok(())
}

#[test]
fn containers_beside_containers() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let net = stage.host.net().try_clone()?;
    let told = |name: &str, listen: &str| server::named_with(name, &["--listen", listen, "--tell-listener"]);
    // An unmanaged container.
    let _plain = stage.engine().start_container(&told("plain", "127.0.0.3:8080"))?;
    let _web = stage.engine().start_container(&told("web-1", "127.0.0.2:8080").service("web", "8080"))?;
    stage.daemon.wait_ready("web", 1)?;
    let right = [
        ("127.0.0.2:8080", Some("web-1@127.0.0.2:8080")),
        ("127.0.0.3:8080", Some("plain@127.0.0.3:8080")),
        ("127.0.0.4:8080", None),
    ];
    expect(&net, &right)?;
    // These start without a daemon. The next daemon recognises their listeners as their own.
    stage.daemon.kill()?;
    let _early = stage.engine().start_container(&told("early", "0.0.0.0:9090").service("early", "9090"))?;
    let _also = stage.engine().start_container(&told("also", "127.0.0.2:9191").service("also", "9191"))?;
    let _other = stage.engine().start_container(&told("other", "127.0.0.3:9191"))?;
    wait::until_ok("all three", || {
        let ports = net.listening_ports()?;
        Ok([9090, 9191].iter().all(|port| ports.contains(port)).then_some(()))
    })?;
    stage.daemon.restart()?;
    for (service, name) in [("web", "web-1"), ("early", "early"), ("also", "also")] {
        stage.daemon.wait_state(service, name, "ready")?;
    }
    expect(&net, &right)?;
    expect(
        &net,
        &[
            ("127.0.0.7:9090", Some("early@0.0.0.0:9090")),
            ("127.0.0.2:9191", Some("also@127.0.0.2:9191")),
            ("127.0.0.3:9191", Some("other@127.0.0.3:9191")),
            ("127.0.0.4:9191", None),
        ],
    )?;
    let status = stage.daemon.status()?;
    assert!(status.warnings().is_empty(), "{status}");
    for service in ["early", "also"] {
        let service = status.service(service).expect("it is there");
        assert!(service.backends[0].steered > 0, "{service:#?}");
    }
    Ok(())
}
