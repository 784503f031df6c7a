//! Forwarding by filters of a clsact qdisc, as on kernels without TCX. The daemon is told to use them on this kernel too.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    check,
    container::Spec,
    daemon::{Conditions, Stage},
    host::Host,
    load::Load,
    process::{output, run},
    require, server,
    status::Status,
    tools,
    upgrades::{PROGRAM, take_over},
    wait,
};

const PINS: &str = "/sys/fs/bpf/pod-steer";
/// The device of the clients, and the engine's bridge.
const UPLINK: &str = "client0";
const BRIDGE: &str = "docker0";

fn stage() -> Result<Stage> {
    let mut stage = Stage::with_docker()?;
    stage.daemon.terminate()?;
    let env = vec![("POD_STEER_TEST_CLSACT", "1".to_owned())];
    stage.daemon.restart_under(Conditions { env, ..Conditions::default() })?;
    Ok(stage)
}

/// A server behind the engine's default bridge.
fn bridged(name: &str) -> Spec {
    server::named(name, "0.0.0.0:8080").service("web", "80:8080").network("bridge").label("pod-steer.via", "forward")
}

/// `tc ARGS` in the host; the arguments are separated by spaces.
fn tc(host: &Host, args: &str) -> Result<String> {
    run(host.command("tc")?.args(args.split(' ')))
}

/// The filters of a device, as tc(8) shows them.
fn filters(host: &Host, device: &str) -> Result<String> {
    let directions = ["ingress", "egress"].map(|direction| tc(host, &format!("filter show dev {device} {direction}")));
    let [ingress, egress] = directions;
    Ok(ingress? + &egress?)
}

/// Fails unless a device has one filter of ours for each direction.
fn ensure_attached(host: &Host, device: &str) -> Result<()> {
    let shown = filters(host, device)?;
    let count = |program: &str| shown.lines().filter(|line| line.contains(program)).count();
    ensure!((count("from_wire") + count("from_bridge"), count("to_wire")) == (1, 1), "{device}:\n{shown}");
    Ok(())
}

fn has_clsact(host: &Host, device: &str) -> Result<bool> {
    Ok(tc(host, &format!("qdisc show dev {device}"))?.contains("clsact"))
}

#[test]
fn filters_of_others_stay_and_ours_are_attached_once() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["tc", "bpftool"]));
    let mut stage = stage()?;
    let client = stage.host.new_client()?;
    // Another user of the same device.
    tc(&stage.host, &format!("qdisc add dev {UPLINK} clsact"))?;
    let other = format!("filter add dev {UPLINK} ingress pref 300 protocol ip u32 match u32 0 0 flowid 1:1");
    tc(&stage.host, &other)?;
    let has_other = |host: &Host| Ok::<_, anyhow::Error>(filters(host, UPLINK)?.contains("pref 300 u32"));
    let weights = [("web-1", 1), ("web-2", 3)];
    let servers = weights.map(|(name, weight)| stage.engine().start_container(&bridged(name).weight(weight)));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let target = (client.host_ip4, 80).into();
    let load = Load::to(target).threads(4);
    check::measured_shares("two bridged servers, by filters", &stage.daemon, &client.ns, &load, &weights)?;
    let links = run(stage.host.command("bpftool")?.args(["net", "show"]))?;
    ensure!(!links.contains("tcx/"), "{links}");
    for device in [UPLINK, BRIDGE, "lo"] {
        ensure_attached(&stage.host, device)?;
    }
    ensure!(has_other(&stage.host)?, "{}", filters(&stage.host, UPLINK)?);
    let before = filters(&stage.host, UPLINK)?;

    stage.daemon.kill()?;
    let all = Load::to(target).threads(4).count(400).run(&client.ns)?;
    ensure!(all.losses.is_empty() && all.disguised.is_empty() && all.answered() == 400, "without a daemon: {all}");
    let running = Load::to(target).threads(2).start(&client.ns)?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 2)?;
    // The restarted daemon has looked at the devices by now.
    let _later = stage.engine().start_container(&bridged("web-3"))?;
    stage.daemon.wait_ready("web", 3)?;
    let all = running.stop()?;
    ensure!(all.losses.is_empty() && all.disguised.is_empty() && all.connections() > 100, "at the restart: {all}");
    ensure!(filters(&stage.host, UPLINK)? == before, "before:\n{before}\nafter:\n{}", filters(&stage.host, UPLINK)?);

    // A script that shapes traffic removes the qdisc with all filters, and sets its own. A resync, each 30 s, would not see it so often.
    for _ in 0..4 {
        tc(&stage.host, &format!("qdisc del dev {UPLINK} clsact"))?;
        wait::until_within(Duration::from_secs(6), "the filters to be attached again", || {
            Ok(ensure_attached(&stage.host, UPLINK).ok())
        })?;
    }
    tc(&stage.host, &other)?;

    let unload = format!("unload --bpffs {PINS} --state-dir {}", stage.daemon.state_dir().display());
    let said = stage.daemon.order_done(&unload)?.stderr;
    ensure!(said.contains("programs of network devices"), "{said}");
    for device in [UPLINK, BRIDGE, "lo"] {
        let left = filters(&stage.host, device)?;
        ensure!(!left.contains("wire"), "{device}:\n{left}");
    }
    ensure!(has_other(&stage.host)? && has_clsact(&stage.host, UPLINK)?, "{}", filters(&stage.host, UPLINK)?);
    ensure!(!has_clsact(&stage.host, BRIDGE)? && !has_clsact(&stage.host, "lo")?, "a qdisc of ours is left");
    let left = output(stage.host.command("ls")?.arg(PINS))?;
    ensure!(!left.status.success(), "{}", String::from_utf8_lossy(&left.stdout));
    drop(servers);
    Ok(())
}

#[test]
fn devices_that_come_and_go_are_followed() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["tc"]));
    let stage = stage()?;
    let server = stage.engine().start_container(&bridged("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    let client = stage.host.new_client()?;
    let target = (client.host_ip4, 80).into();
    wait::until_ok("the new uplink to forward", || {
        let tally = Load::to(target).count(1).timeout(Duration::from_millis(500)).run(&client.ns)?;
        Ok((tally.answered_by("web-1") == 1).then_some(()))
    })?;
    ensure_attached(&stage.host, UPLINK)?;
    // A device of a bridge gives its packets to that one, which has programs of its own.
    stage.host.net().ip("link add later type veth peer name later-peer")?;
    let is_attached = |device: &str| Ok::<_, anyhow::Error>(filters(&stage.host, device)?.contains(" name from_"));
    wait::until_ok("a later device to be attached to", || Ok(is_attached("later")?.then_some(())))?;
    stage.host.net().ip(&format!("link set later master {BRIDGE}"))?;
    wait::until_ok("the port of a bridge to be left", || Ok((!is_attached("later")?).then_some(())))?;
    ensure!(!has_clsact(&stage.host, "later")?, "its qdisc is left");
    stage.host.net().ip("link del later")?;
    // Without a backend to forward to, nothing is attached.
    server.kill("KILL")?;
    wait::until_ok("the programs to be detached", || Ok((!has_clsact(&stage.host, UPLINK)?).then_some(())))
        .with_context(|| filters(&stage.host, UPLINK).unwrap_or_default())
}

#[test]
fn an_upgrade_replaces_the_programs_of_filters_in_place() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["tc"]));
    let mut stage = stage()?;
    let client = stage.host.new_client()?;
    let servers = ["web-1", "web-2"].map(|name| stage.engine().start_container(&bridged(name)));
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 2)?;
    let running = Load::to((client.host_ip4, 80).into()).threads(2).start(&client.ns)?;
    for feature in [Some(PROGRAM), None] {
        let before = filters(&stage.host, UPLINK)?;
        take_over(&mut stage, feature)?;
        let now = filters(&stage.host, UPLINK)?;
        ensure!(now != before, "the programs are the former ones:\n{before}");
        ensure_attached(&stage.host, UPLINK)?;
        stage.daemon.wait_ready("web", 2)?;
        ensure_attached(&stage.host, UPLINK)?;
    }
    let all = running.stop()?;
    ensure!(all.losses.is_empty() && all.disguised.is_empty() && all.connections() > 100, "{all}");
    Ok(())
}

#[test]
fn a_device_without_room_is_named_until_it_has_room_and_the_others_are_attached() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["tc"]));
    let mut stage = stage()?;
    let net = stage.host.net();
    net.ip("link add full type veth peer name full-peer")?;
    tc(&stage.host, "qdisc add dev full ingress")?;
    let _server = stage.engine().start_container(&bridged("web-1"))?;
    stage.daemon.wait_ready("web", 1)?;
    let named = |status: &Status| status.conditions.iter().any(|of| of.subject == "network device full");
    stage.daemon.wait_for("the condition of the device", |status| named(status).then_some(()))?;
    ensure_attached(&stage.host, BRIDGE)?;
    // With each device that comes, the daemon looks at all of them.
    for device in ["later1", "later2"] {
        net.ip(&format!("link add {device} type veth peer name {device}-peer"))?;
        let is_attached = || Ok(filters(&stage.host, device)?.contains(" name from_").then_some(()));
        wait::until_ok("a later device to be attached to", is_attached)?;
    }
    ensure!(named(&stage.daemon.status()?), "the device is still not attached to: {:?}", stage.daemon.status()?);
    ensure!(!stage.daemon.log().contains("ended: its packets are not forwarded"), "{}", stage.daemon.log_tail());
    // A resync tries it again: at the latest that of the next daemon.
    tc(&stage.host, "qdisc del dev full ingress")?;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_for("the condition to end", |status| (!named(status)).then_some(()))?;
    wait::until_ok("the device to be attached to", || Ok(ensure_attached(&stage.host, "full").ok()))
}
