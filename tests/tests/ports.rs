//! Ports whose rules change: an address of one port, a namespace that is detached from and attached to again, a socket that listens
//! again, hundreds of ports at once, and tables with stale members.

use std::{collections::BTreeSet, net::Ipv4Addr, ops::RangeInclusive, thread, time::Duration};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    bpf, check,
    daemon::Stage,
    exec::{Backend, Exec},
    load::{Load, Tally},
    netns::NetNs,
    report, require, tools, wait,
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};

fn until_gone(stage: &Stage, service: &str) -> Result<()> {
    stage.daemon.wait_for(&format!("{service} to be gone"), |status| status.service(service).is_none().then_some(()))
}

#[test]
fn an_address_comes_and_goes_on_a_plain_port() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let net = stage.host.net();
    let start = |name: &str, service: &str, ports: &str, listen: &str| -> Result<Backend> {
        let backend = Exec::new(name, service, ports, listen).start(&stage)?;
        stage.daemon.wait_ready(service, 1)?;
        Ok(backend)
    };
    // The kernel keeps both ports and both families of each in one word.
    let _next = start("next", "next", "8081:9081", "[::]:9081")?;
    let neighbours = [("127.0.0.2:8081", "next"), ("[::1]:8081", "next")];
    let load = |target: &str| Load::to(target.parse()?).pause(Duration::from_millis(1)).start(net);
    let loads = neighbours.iter().map(|(target, _)| load(target)).collect::<Result<Vec<_>>>()?;
    let single_claim = |name: &str| Exec::new(name, "single", "127.0.0.2:8080:9080", "0.0.0.0:9080");

    let mut answered = check::Answered::default();
    for round in 1..=3 {
        let (single_name, plain_name) = (format!("single-{round}"), format!("plain-{round}"));
        let mut single = single_claim(&single_name).start(&stage)?;
        stage.daemon.wait_ready("single", 1)?;
        answered.expect(net, &[("127.0.0.2:8080", &single_name)])?;
        for target in ["127.0.0.1:8080", "[::1]:8080"] {
            let tally = Load::to(target.parse()?).count(20).run(net)?;
            assert_eq!(tally.refused(), 20, "{target} is of no service: {tally}");
        }
        // A service claims the rest of the port, and the address keeps its own.
        let stays = load("127.0.0.2:8080")?;
        let mut plain = start(&plain_name, "plain", "8080", "[::]:8080")?;
        let both = [("127.0.0.1:8080", &*plain_name), ("127.0.0.2:8080", &single_name), ("[::1]:8080", &plain_name)];
        answered.expect(net, &both)?;
        let tally = stays.stop()?;
        assert_eq!(
            tally.answered_by(&single_name),
            tally.connections(),
            "it was {single_name}'s all the time: {tally}"
        );
        answered.add(tally)?;
        answered.agrees(&stage.daemon.wait_idle("single")?, &single_name)?;
        // The address's service ends: the other service takes it over, and it can no longer be claimed.
        single.process.kill()?;
        until_gone(&stage, "single")?;
        let alone = ["127.0.0.1:8080", "127.0.0.2:8080", "[::1]:8080"].map(|target| (target, &*plain_name));
        answered.expect(net, &alone)?;
        answered.expect(net, &neighbours)?;
        let mut late = single_claim("late").launch(&stage)?;
        assert_eq!(late.process.wait(wait::STUCK)?.code(), Some(2), "{}", late.process.stderr());
        answered.agrees(&stage.daemon.wait_idle("plain")?, &plain_name)?;
        plain.process.kill()?;
        until_gone(&stage, "plain")?;
    }
    for (load, (target, name)) in loads.into_iter().zip(neighbours) {
        let tally = load.stop()?;
        assert_eq!(tally.answered_by(name), tally.connections(), "{target} was always {name}'s: {tally}");
        answered.add(tally)?;
    }
    answered.agrees(&stage.daemon.wait_idle("next")?, "next")
}

/// Waits until exactly these namespaces have pins of either kind.
fn until_pinned(stage: &Stage, cookies: &[u64]) -> Result<()> {
    let wanted = BTreeSet::from_iter(cookies.iter().copied());
    for kind in ["netns", "ports"] {
        let pinned = || bpf::pinned_namespaces(&stage.host, kind);
        wait::until_ok("the pins to be as the namespaces", || Ok((pinned()? == wanted).then_some(())))
            .with_context(|| format!("{kind}: {:?} and not {wanted:?}\n{}", pinned(), stage.daemon.log_tail()))?;
    }
    Ok(())
}

#[test]
fn a_namespace_is_detached_from_and_attached_to_again() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let inside = NetNs::new()?;
    let mut outer = Exec::new("outer", "outer", "80:8080", "0.0.0.0:8080").start(&stage)?;
    let host = stage.daemon.wait_ready("outer", 1)?.namespaces[0].cookie;
    until_pinned(&stage, &[host])?;
    let inner = |name: &str| Exec::new(name, "inner", "80:8080", "0.0.0.0:8080");
    for round in 1..=6 {
        let name = format!("inner-{round}");
        let mut backend = inner(&name).inside(&inside).start(&stage)?;
        stage.daemon.wait_state("inner", &name, "ready")?;
        let cookie = stage.daemon.wait_ready("inner", 1)?.namespaces[0].cookie;
        until_pinned(&stage, &[host, cookie])?;
        assert_eq!(bpf::attached_to(&inside)?, 1);
        let mut answered = check::Answered::default();
        answered.expect(&inside, &[("127.0.0.1:80", &name)])?;
        answered.agrees(&stage.daemon.wait_idle("inner")?, &name)?;
        answered.expect(stage.host.net(), &[("127.0.0.1:80", "outer")])?;
        backend.process.kill()?;
        // In every other round the next backend starts while the daemon detaches from the namespace.
        if round % 2 == 0 {
            until_pinned(&stage, &[host])?;
            let tally = Load::to("127.0.0.1:80".parse()?).count(10).run(&inside)?;
            assert_eq!(tally.refused(), 10, "{tally}");
        }
    }
    assert_eq!(bpf::attached_to(&inside)?, 0);
    // The backend ends while the program is being loaded for its namespace.
    for round in 1..=5 {
        let fresh = NetNs::new()?;
        let mut hasty = inner(&format!("hasty-{round}")).inside(&fresh).launch(&stage)?;
        wait::until_ok("the namespace's ports", || {
            Ok((bpf::pinned_namespaces(&stage.host, "ports")?.len() == 2).then_some(()))
        })?;
        // At different moments of the loading, which takes about 50 ms.
        thread::sleep(Duration::from_millis(10 * (round - 1)));
        hasty.process.kill()?;
        // The next backend starts before the daemon has detached.
        let name = format!("prompt-{round}");
        let mut prompt = inner(&name).inside(&fresh).start(&stage)?;
        stage.daemon.wait_state("inner", &name, "ready")?;
        check::Answered::default().expect(&fresh, &[("127.0.0.1:80", &name)])?;
        prompt.process.kill()?;
        until_pinned(&stage, &[host])?;
    }
    outer.process.kill()?;
    until_pinned(&stage, &[])
}

/// Listens. A signal makes it stop, the next one makes it listen again with the same socket. It never accepts.
const LISTENS_TWICE: &str = r#"
import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 8080))
listener.listen(128)
print("once", flush=True)
signal.sigwait({signal.SIGUSR1})
listener.shutdown(socket.SHUT_RDWR)
print("stopped", flush=True)
signal.sigwait({signal.SIGUSR1})
listener.listen(128)
print("again", flush=True)
signal.pause()
"#;

#[test]
fn a_listener_that_listens_again_hands_its_queue_on() -> Result<()> {
    listens_again(false)
}

#[test]
fn a_listener_that_listens_again_before_the_daemon_looks_hands_its_queue_on() -> Result<()> {
    listens_again(true)
}

/// The daemon learns that it has stopped before it listens again, or of both at once.
fn listens_again(at_once: bool) -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    const CLIENTS: u64 = 40;
    let stage = Stage::without_engine()?;
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", "twice", "--"]);
    command.arg(tools::find("python3").context("python3 is not installed")?).args(["-c", LISTENS_TWICE]);
    let mut twice = stage.host.start("twice", &mut command)?;
    let said = |word: &'static str| wait::until(word, || twice.stdout().contains(word).then_some(()));
    let heard = |what: &str| stage.daemon.log().matches(&format!("DEBUG {what} service=web backend=twice")).count();
    said("once")?;
    let _good = Exec::new("good", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    if at_once {
        stage.daemon.signal(Signal::STOP)?;
    }
    twice.signal(Signal::USR1)?;
    said("stopped")?;
    if !at_once {
        wait::until("the daemon to hear of the end", || (heard("no longer listens") == 1).then_some(()))?;
    }
    twice.signal(Signal::USR1)?;
    said("again")?;
    stage.daemon.signal(Signal::CONT)?;
    wait::until("the daemon to hear of it again", || (heard("listens") == 2).then_some(()))?;
    stage.daemon.wait_ready("web", 2)?;

    let clients = Load::to("127.0.0.1:80".parse()?).threads(CLIENTS).count(CLIENTS).start(stage.host.net())?;
    let waiting = stage.daemon.wait_for("every client to be connected", |status| {
        (status.service("web")?.opened() == CLIENTS).then(|| status.backend("web", "twice").opened)
    })?;
    assert!(waiting > 0 && waiting < CLIENTS, "{waiting} of {CLIENTS} wait: {}", stage.daemon.status()?);
    wait::until("the other clients' answers", || (clients.answered() == CLIENTS - waiting).then_some(()))?;
    twice.kill()?;
    let tally = clients.stop()?;
    assert_eq!(tally.answered_by("good"), CLIENTS, "{waiting} waited: {tally}");
    let service = stage.daemon.wait_idle("web")?;
    let good = service.backends.iter().find(|backend| backend.name == "good").context("good is gone")?;
    assert_eq!((good.moved_in, good.steered), (waiting, CLIENTS - waiting), "{service:#?}");
    assert_eq!(service.counter("refused_no_backend"), 0);
    Ok(())
}

const PORTS: RangeInclusive<u16> = 2000..=2299;

#[test]
fn hundreds_of_ports_switch_together() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // The usual limit of a shell, which the daemon inherits.
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(1024) }).context("limiting open files")?;
    let mut stage = Stage::configured("[service.web]\nrollout = 'manual'\n")?;
    let count = PORTS.count() as u64;
    let listen: Vec<String> = PORTS.flat_map(|port| ["--listen".into(), format!("0.0.0.0:{}", port + 1000)]).collect();
    let start = |stage: &Stage, name: &str, state: &str| -> Result<Backend> {
        let exec = Exec::new(name, "web", "2000-2299:3000-3299", &listen[1]).flags(&["--version", name]);
        let args: Vec<&str> = listen[2..].iter().map(String::as_str).collect();
        let backend = exec.server(&args).start(stage)?;
        stage.daemon.wait_for(&format!("all sockets of {name}"), |status| {
            let all = status.service("web")?.backends.iter().any(|one| one.name == name && one.sockets == count);
            all.then_some(())
        })?;
        stage.daemon.wait_state("web", name, state)?;
        Ok(backend)
    };
    let _old = start(&stage, "v1", "ready")?;
    let _new = start(&stage, "v2", "standby")?;
    let to = |port: u16| Load::to((Ipv4Addr::LOCALHOST, port).into());
    let mut total = Tally::default();
    let mut all_by = |stage: &Stage, name: &str| -> Result<()> {
        let mut tally = Tally::default();
        for port in PORTS {
            tally.merge(to(port).count(1).run(stage.host.net())?);
        }
        assert_eq!(tally.answered_by(name), count, "every port is to be answered by {name}: {tally}");
        total.merge(tally);
        Ok(())
    };
    all_by(&stage, "v1")?;

    let load = |port: u16| to(port).pause(Duration::from_millis(1)).logged().start(stage.host.net());
    let loads = [2000, 2099, 2150, 2299].into_iter().map(load).collect::<Result<Vec<_>>>()?;
    wait::until("clients", || loads.iter().all(|load| load.answered() > 20).then_some(()))?;
    let took = stage.daemon.order_done("deploy web v2")?.took();
    all_by(&stage, "v2")?;
    let mut during = Tally::default();
    for load in loads {
        during.merge(load.stop()?);
    }
    report::figure("a deploy of 300 ports under a limit of 1,024 files", format!("{took:?}, {during}"));
    let switched = during.log.iter().filter(|one| one.name == "v2").map(|one| one.ended).min();
    let switched = switched.context("no connection reached v2")?;
    let late = during.log.iter().filter(|one| one.name == "v1" && one.began > switched).count();
    assert_eq!(late, 0, "v1 answered after v2 had, on whatever port: {during}");

    // The next daemon keeps the switch, and the rollback is one switch too.
    stage.daemon.kill()?;
    all_by(&stage, "v2")?;
    stage.daemon.restart()?;
    all_by(&stage, "v2")?;
    stage.daemon.order_done("deploy web v1")?;
    all_by(&stage, "v1")?;
    total.merge(during);
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &total)
}

#[test]
fn a_stale_slot_is_counted_once() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    const CONNECTIONS: u64 = 2000;
    let mut stage = Stage::without_engine()?;
    let start = |name: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").start(&stage);
    let (_kept, mut doomed) = (start("kept")?, start("doomed")?);
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.kill()?;
    doomed.process.kill()?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(CONNECTIONS).run(stage.host.net())?;
    assert_eq!(tally.answered_by("kept"), CONNECTIONS, "{tally}");
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    let service = stage.daemon.wait_idle("web")?;
    let kept = service.backends.iter().find(|backend| backend.name == "kept").context("kept is gone")?;
    assert_eq!((kept.steered, kept.opened), (CONNECTIONS, CONNECTIONS), "{service:#?}");
    // Half of the slots are stale: half of the clients try one first, half of those a second one, and so on, which is one for each
    // client. A slot that is tried or counted twice adds half of one.
    let stale = service.counter("stale_slots");
    report::figure("stale slots of 2,000 connections, one of two backends being gone", stale);
    assert!(stale > CONNECTIONS * 3 / 4 && stale < CONNECTIONS * 5 / 4, "{stale} stale slots: {service:#?}");
    Ok(())
}
