//! `pod-steer trace` reports each decision as it happens: what really answered, and nothing that was not asked for.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bpf,
    daemon::{BPFFS, Stage},
    exec::Exec,
    load::{End, Loss, attempt_by},
    netns::NetNs,
    report, require, server,
    sk_lookup::ForeignLookup,
    tools,
    trace::{Trace, command},
    wait,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

/// A server of `web` for both families.
fn web(name: &str) -> Exec<'static> {
    Exec::new(name, "web", "80:8080", "[::]:8080").flags(&["--version", "v1"])
}

/// Connects from a port of its own, and returns the client, the server's address and the name of the server that answered.
fn connect(net: &NetNs, from: IpAddr, port: u16, to: IpAddr, to_port: u16) -> (SocketAddr, SocketAddr, String) {
    let (from, to) = (SocketAddr::new(from, port), SocketAddr::new(to, to_port));
    let name = match net.run(|| attempt_by(from, to, PATIENCE)) {
        End::Answered(answer) => answer.name,
        End::Lost(Loss::Refused, _) => "refused".to_owned(),
        End::Lost(loss, _) => format!("{loss:?}"),
    };
    (from, to, name)
}

/// Compares decisions with what answered. Returns how many there were of each backend.
fn compare(traced: &[Value], answered: &[(SocketAddr, SocketAddr, String)]) -> Result<BTreeMap<String, usize>> {
    let by_client: BTreeMap<&str, &Value> =
        traced.iter().filter_map(|decision| Some((decision["source"].as_str()?, decision))).collect();
    let mut counts = BTreeMap::new();
    for (from, to, name) in answered {
        let decision = *by_client.get(&*from.to_string()).with_context(|| format!("{from} was not traced"))?;
        ensure!(decision["backend"] == **name, "{name} answered {from}, and trace said\n{decision:#}");
        ensure!(decision["destination"] == to.to_string() && decision["service"] == "web", "{decision:#}");
        ensure!(decision["version"] == "v1" && decision["socket"].is_u64(), "{decision:#}");
        *counts.entry(name.clone()).or_default() += 1;
    }
    Ok(counts)
}

#[test]
fn decisions_are_those_of_real_connections() -> Result<()> {
    require!(tools::root_and(&[]));
    let stage = Stage::without_engine()?;
    let client = stage.host.new_client()?;
    let _servers = [web("web-1").start(&stage)?, web("web-2").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let ways = [
        (&client.ns, client.ip4, client.host_ip4),
        (&client.ns, client.ip6, client.host_ip6),
        (stage.host.net(), "127.0.0.1".parse()?, "127.0.0.1".parse()?),
        (stage.host.net(), "::1".parse()?, "::1".parse()?),
    ];
    let packets = ways.iter().flat_map(|(_, from, to)| (20_001..20_061).map(move |port| (*from, port, *to)));
    let explained = explained(&stage, packets)?;
    ensure!(bpf::attached_to(stage.host.net())? == 1, "more than our program is attached");
    let trace = Trace::start(&stage, "trace", &[])?;
    ensure!(bpf::attached_to(stage.host.net())? == 2, "trace has not attached one program");
    let answered: Vec<_> = ways
        .iter()
        .flat_map(|(net, from, to)| (20_001..20_061).map(move |port| connect(net, *from, port, *to, 80)))
        .collect();
    let traced = trace.wait(answered.len())?;
    let counts = compare(&traced, &answered)?;
    ensure!(counts.len() == 2, "one backend answered all: {counts:?}");
    for decision in &traced {
        // The dry run found the same slot.
        let slot = explained.get(decision["source"].as_str().unwrap_or_default()).context("not explained")?;
        ensure!(decision["slot"].as_u64() == Some(*slot) && decision["reason"] == "steered", "{slot}: {decision:#}");
    }
    report::figure("decisions that were traced as they were answered", format!("{} {counts:?}", answered.len()));
    drop(trace);
    wait::until_ok("trace to be detached", || Ok((bpf::attached_to(stage.host.net())? == 1).then_some(())))
}

/// By the client: the slot that `pod-steer explain` finds.
fn explained(stage: &Stage, packets: impl Iterator<Item = (IpAddr, u16, IpAddr)>) -> Result<BTreeMap<String, u64>> {
    let mut command = stage.daemon.cli()?;
    command.args(["explain", "tcp", "--packets", "-", "--json", "--bpffs", BPFFS]);
    let mut explain = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let lines: String = packets
        .map(|(from, port, to)| format!("{} {}\n", SocketAddr::new(from, port), SocketAddr::new(to, 80)))
        .collect();
    explain.stdin.take().context("it is piped")?.write_all(lines.as_bytes())?;
    let said = explain.wait_with_output()?;
    let mut slots = BTreeMap::new();
    for answer in serde_json::Deserializer::from_slice(&said.stdout).into_iter::<Value>() {
        let answer = answer?;
        let entry = answer["tables"][0]["tries"][0]["entry"].as_u64().context("no entry")?;
        slots.insert(answer["source"].as_str().unwrap_or_default().to_owned(), entry - 1);
    }
    Ok(slots)
}

#[test]
fn forwarded_connections_are_traced() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    stage.host.net().sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let docker = stage.engine().docker();
    docker.run(&["network", "create", "--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "shop"])?;
    let spec = server::named("in-1", "[::]:8080").service("web", "80:8080").network("shop").version("v1");
    let _bridged = stage.engine().start_container(&spec)?;
    let _here = web("web-1").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let trace = Trace::start(&stage, "trace", &[])?;
    // As on Linux before 6.6: it says what it does not see.
    let older = Trace::start_by(&stage, "older", command(&stage, &[])?.env("POD_STEER_TEST_CLSACT", "1"))?;
    ensure!(trace.0.stderr().contains("via=peer are not seen"), "{}", trace.0.stderr());
    ensure!(older.0.stderr().contains("that needs Linux 6.6"), "{}", older.0.stderr());
    let ways = [
        (&client.ns, client.ip4, client.host_ip4),
        (&client.ns, client.ip6, client.host_ip6),
        (stage.host.net(), "127.0.0.1".parse()?, "127.0.0.1".parse()?),
    ];
    let answered: Vec<_> = ways
        .iter()
        .flat_map(|(net, from, to)| (21_001..21_041).map(move |port| connect(net, *from, port, *to, 80)))
        .collect();
    let traced = trace.wait(answered.len())?;
    let counts = compare(&traced, &answered)?;
    ensure!(counts.len() == 2, "one backend answered all: {counts:?}");
    for decision in &traced {
        let wanted = if decision["backend"] == "in-1" { "forwarded" } else { "steered" };
        ensure!(decision["reason"] == wanted && decision["slot"].is_u64(), "{decision:#}");
    }
    older.wait(counts["web-1"])?;
    report::figure("decisions for a container behind a bridge", format!("{counts:?}"));
    Ok(())
}

#[test]
fn the_kernel_leaves_out_what_is_not_wanted() -> Result<()> {
    require!(tools::root_and(&[]));
    let mut stage = Stage::without_engine()?;
    let api = Exec::new("api-1", "api", "81:8181", "[::]:8181").flags(&["--version", "v1"]);
    let servers = [web("web-1").start(&stage)?, web("web-2").start(&stage)?];
    let _api = api.start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.wait_ready("api", 1)?;
    let all = Trace::start(&stage, "all", &[])?;
    let of_service = Trace::start(&stage, "service", &["--service", "api"])?;
    let of_backend = Trace::start(&stage, "backend", &["--backend", "web-2"])?;
    let reasons = ["--reason", "refused_no_backend", "--reason", "paused", "--reason", "passed_no_daemon"];
    let of_reason = Trace::start(&stage, "reason", &reasons)?;
    let mut limited = Trace::start(&stage, "limited", &["--count", "5"])?;
    let here: IpAddr = "127.0.0.1".parse()?;
    let mut port = 22_000;
    let mut go = |to| {
        port += 1;
        connect(stage.host.net(), here, port, here, to).2
    };
    let names: Vec<String> = (0..60).map(|number| go(if number % 3 == 0 { 81 } else { 80 })).collect();
    let second = names.iter().filter(|name| *name == "web-2").count();
    ensure!(second > 0 && second < 40, "web-2 answered {second} of 40");
    stage.daemon.order_done("drain api")?;
    let refused = (0..3).filter(|_| go(81) == "refused").count();
    ensure!(refused == 3, "a drained service answered");
    let backends = |lines: &[Value]| -> Vec<String> {
        lines.iter().filter_map(|line| Some(line["backend"].as_str()?.to_owned())).collect()
    };
    let lines = of_service.wait(23)?;
    ensure!(lines.iter().all(|line| line["service"] == "api") && backends(&lines).len() == 20, "{lines:#?}");
    let lines = of_backend.wait(second)?;
    ensure!(backends(&lines).iter().all(|name| name == "web-2"), "{lines:#?}");
    let lines = of_reason.wait(3)?;
    ensure!(lines.iter().all(|line| line["reason"] == "refused_no_backend" && line["slot"].is_null()), "{lines:#?}");
    ensure!(limited.0.wait(wait::STUCK)?.success() && limited.lines()?.len() == 5, "{}", limited.0.stderr());
    all.wait(63)?;
    // A listener that the tables still have, then none at all, without a daemon.
    stage.daemon.kill()?;
    let [first, second] = servers;
    drop(first);
    let (here_port, from) = (80, 23_001..23_021);
    let answers: Vec<String> = from.map(|port| connect(stage.host.net(), here, port, here, here_port).2).collect();
    ensure!(answers.iter().all(|name| name == "web-2"), "{answers:?}");
    drop(second);
    ensure!(connect(stage.host.net(), here, 23_101, here, 80).2 == "refused", "a server that has ended answered");
    let lines = all.wait(84)?;
    let stale = lines[63..]
        .iter()
        .filter(|line| line["also"].as_array().is_some_and(|also| also.contains(&"stale_slots".into())));
    ensure!(stale.count() > 1, "no slot was stale: {lines:#?}");
    ensure!(of_reason.wait(4)?[3]["reason"] == "passed_no_daemon", "{:#?}", of_reason.lines()?);
    Ok(())
}

#[test]
fn pauses_and_other_programs_are_told() -> Result<()> {
    require!(tools::root_and(&[]));
    let stage = Stage::without_engine()?;
    let _other = ForeignLookup::attach(stage.host.net(), 81)?;
    let _api = Exec::new("api-1", "api", "81:8181", "[::]:8181").start(&stage)?;
    let _server = web("web-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.wait_ready("api", 1)?;
    let trace = Trace::start(&stage, "trace", &[])?;
    let here: IpAddr = "127.0.0.1".parse()?;
    connect(stage.host.net(), here, 24_001, here, 81);
    stage.daemon.order_done("pause web")?;
    let held = stage.host.net().run(|| {
        attempt_by("127.0.0.1:24002".parse().unwrap(), "127.0.0.1:80".parse().unwrap(), Duration::from_millis(300))
    });
    ensure!(matches!(held, End::Lost(..)), "{held:?}");
    stage.daemon.order_done("unpause web")?;
    let lines = trace.wait(2)?;
    ensure!(lines[0]["reason"] == "assign_eexist" && lines[0]["backend"].is_null(), "{lines:#?}");
    ensure!(lines[1]["reason"] == "paused" && lines[1]["backend"].is_null(), "{lines:#?}");
    Ok(())
}
