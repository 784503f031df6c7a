//! A flood of spoofed SYNs, ten for each entry of the table of half-open connections: open connections go on, new clients are served
//! meanwhile, and only open connections have entries in the table of established ones.

use std::{
    fs,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    bridged::{self, Kept, kept},
    daemon::Stage,
    flood::Flood,
    load::{Load, Tally},
    report, require, scale, tools,
};

const SERVERS: [&str; 2] = ["web-1", "web-2"];

/// No client was lost. A server may see another port of a client: if that one returns while the server has it in TIME_WAIT, its entries may
/// have made room for others.
fn none_lost(tally: &Tally) -> Result<()> {
    let has_its_address = tally.disguised.iter().all(|(own, seen)| own.ip() == seen.ip());
    ensure!(tally.losses.is_empty() && has_its_address, "{tally}");
    Ok(())
}

/// Packets that the queues of all processors have dropped, in every namespace.
fn dropped_by_queues() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat")?;
    let numbers = text.lines().map(|line| line.split(' ').nth(1).context("no second column"));
    numbers.map(|number| Ok(u64::from_str_radix(number?, 16)?)).sum()
}

#[test]
fn a_flood_of_spoofed_syns_ends_no_connection() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["bpftool"]));
    let mut stage = Stage::with_docker()?;
    if !scale::is_soak() {
        // The table is made when the first such backend starts. A smaller one is flooded sooner.
        stage.daemon.terminate()?;
        stage.daemon.conditions.env = vec![("POD_STEER_TEST_LIMITS", "PENDING=4096".to_owned())];
        stage.daemon.restart()?;
    }
    let client = stage.host.new_client()?;
    let servers = SERVERS.map(|name| stage.engine().start_container(&bridged::web(name)));
    let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", SERVERS.len())?;
    let IpAddr::V4(host) = client.host_ip4 else { bail!("the host's address is not one of IPv4") };
    let target = SocketAddrV4::new(host, 80);
    let mut held = kept(&client, target.into(), SERVERS.len())?;
    let table = bridged::max_entries(&stage.host, "PENDING")?;
    let count = 10 * table;
    ensure!(count >= scale::of(40_000, 655_360), "a table of {table} entries");

    let running = Load::to(target.into()).threads(2).pause(Duration::from_micros(500)).start(&client.ns)?;
    let (before, begun) = (running.answered(), Instant::now());
    let dropped_before = dropped_by_queues()?;
    let flood = Flood::start(stage.host.net(), &client, target, count)?;
    let mut rounds = 0;
    while !flood.is_over() {
        held.iter_mut().try_for_each(Kept::goes_on).with_context(|| format!("after {} SYNs", flood.sent()))?;
        rounds += 1;
    }
    flood.join()?;
    let (took, meanwhile) = (begun.elapsed(), running.answered() - before);
    held.iter_mut().try_for_each(Kept::goes_on)?;
    let tally = running.stop()?;
    none_lost(&tally)?;
    ensure!(meanwhile > 20 && rounds > 0, "{meanwhile} clients and {rounds} rounds during the flood");
    // The kernel has chosen a server for each SYN.
    let service = stage.daemon.status()?.service("web").context("no service")?.clone();
    let steered: u64 = service.by_name(|backend| backend.steered).values().sum();
    let spoofed = steered - tally.connections() - held.len() as u64;
    // A queue of the kernel may drop some, and a client that lost its entries may repeat its SYN.
    let dropped = dropped_by_queues()? - dropped_before;
    ensure!(
        spoofed.abs_diff(count) <= count / 1_000 + dropped,
        "{spoofed} of {count} SYNs, {dropped} dropped: {service:#?}"
    );
    // Nothing but the open connections has entries which nothing evicts. A client whose entry in one direction was evicted before the other
    // direction told the end of the connection may have left some.
    let kept = bridged::entries(&stage.host, "FLOWS")?;
    let clients = tally.connections() as usize + held.len();
    let left = kept.checked_sub(2 * held.len()).with_context(|| format!("only {kept} entries"))?;
    ensure!(left <= 2 * clients.div_ceil(100), "{left} entries of {clients} clients that have ended");
    let half_open = bridged::entries(&stage.host, "PENDING")?;
    report::figure(
        "a flood of spoofed SYNs",
        format!(
            "{count} SYNs in {:.1} s to a table of {table} entries, {half_open} in it afterwards, and {kept} of {clients} clients that nothing evicts; meanwhile {meanwhile} new connections, \
             and {rounds} requests on each of {} open ones; {} adopted; {tally}",
            took.as_secs_f64(),
            held.len(),
            service.counter("adopted"),
        ),
    );
    for counter in ["refused_no_backend", "flows_full", "not_rewritten", "ports_exhausted", "adopt_limited"] {
        ensure!(service.counter(counter) == 0, "{service:#?}");
    }
    // New clients after the flood, as before it.
    let target: SocketAddr = target.into();
    let after = Load::to(target).threads(2).count(400).run(&client.ns)?;
    none_lost(&after)?;
    ensure!(SERVERS.iter().all(|name| after.answered_by(name) > 100), "{after}");
    held.iter_mut().try_for_each(Kept::goes_on)
}
