//! `pod-steer.affinity=client`: a client's connections reach one backend, also across restarts of the daemon and changes of other
//! backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    load::{End, attempt_from},
    netns::NetNs,
    report, require, scale,
    settings::reload,
    tools,
};

const BACKENDS: usize = 5;
const TIMEOUT: Duration = Duration::from_secs(10);
const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80);
const V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 80);

fn count() -> usize {
    scale::of(3_000, 10_000)
}

/// The backend that answers each of these clients, which connect from ephemeral ports.
fn served(net: &NetNs, to: SocketAddr, clients: &[IpAddr]) -> Result<BTreeMap<IpAddr, String>> {
    let next = AtomicUsize::new(0);
    let client = || -> Result<Vec<(IpAddr, String)>> {
        let mut answers = Vec::new();
        net.try_clone()?.enter()?;
        while let Some(client) = clients.get(next.fetch_add(1, Ordering::Relaxed)) {
            match attempt_from(Some(*client), to, 1, TIMEOUT) {
                End::Answered(answer) => answers.push((*client, answer.name)),
                End::Lost(loss, _) => bail!("{client}: {loss:?}"),
            }
        }
        Ok(answers)
    };
    thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(client));
        let answers = threads.map(|thread| thread.join().expect("the thread does not panic"));
        Ok(answers.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// How many clients have another backend than before. Clients of the backends in `lost` do not count.
fn moved(before: &BTreeMap<IpAddr, String>, after: &BTreeMap<IpAddr, String>, lost: &[&str]) -> usize {
    before.iter().filter(|(client, name)| !lost.contains(&name.as_str()) && after[*client] != **name).count()
}

/// The bound of the slot tables when one of several equal members changes: at most so many clients of the others move.
fn bound(clients: usize) -> f64 {
    clients as f64 * (1.0 / BACKENDS as f64 + 0.02)
}

fn names(served: &BTreeMap<IpAddr, String>) -> BTreeSet<&str> {
    served.values().map(String::as_str).collect()
}

#[test]
fn clients_keep_their_backends() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::configured("[service.web]\naffinity = 'client'\n")?;
    let net = stage.host.net().try_clone()?;
    let mut backends = BTreeMap::new();
    for number in 0..BACKENDS {
        let name = format!("web-{number}");
        // The last two have another version, so that the test can change their weight.
        let version = if number < 3 { "v1" } else { "v2" };
        let backend =
            Exec::new(&name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", version]).start(&stage)?;
        backends.insert(name, backend);
    }
    stage.daemon.wait_ready("web", BACKENDS)?;
    let count = count();
    let clients: Vec<IpAddr> = (0..count).map(|i| Ipv4Addr::from_bits(0x7f01_0000 + i as u32).into()).collect();

    let first = served(&net, V4, &clients)?;
    assert_eq!(names(&first).len(), BACKENDS);
    assert_eq!(moved(&first, &served(&net, V4, &clients)?, &[]), 0, "from other ports");
    stage.daemon.kill()?;
    assert_eq!(moved(&first, &served(&net, V4, &clients)?, &[]), 0, "without a daemon");
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", BACKENDS)?;
    assert_eq!(moved(&first, &served(&net, V4, &clients)?, &[]), 0, "by the next daemon");

    // The backends of v1 get a larger share of the table and keep all their clients.
    stage.daemon.order_done("shift web v1=90 v2=10")?;
    let shifted = served(&net, V4, &clients)?;
    let left = moved(&first, &shifted, &["web-3", "web-4"]);
    report::figure(
        "clients_keep_their_backends",
        format!("{left} of {count} clients moved between backends whose weight did not change"),
    );
    ensure!(left as f64 <= bound(count), "{left} clients of v1 moved");
    stage.daemon.order_done("shift web v1=3 v2=2")?;
    assert_eq!(moved(&first, &served(&net, V4, &clients)?, &[]), 0, "the shares are as at first");

    drop(backends.remove("web-1").context("it was started")?);
    stage.daemon.wait_for("web-1 to be gone", |status| {
        status.service("web").is_some_and(|web| web.backends.len() == BACKENDS - 1).then_some(())
    })?;
    let after = served(&net, V4, &clients)?;
    let kept = first.values().filter(|name| *name != "web-1").count();
    let left = moved(&first, &after, &["web-1"]);
    report::figure(
        "clients_keep_their_backends",
        format!("{left} of {kept} clients moved, whose backends were not lost"),
    );
    assert!(!names(&after).contains("web-1"));
    ensure!(left as f64 <= bound(kept), "{left} of {kept} moved");
    assert_eq!(moved(&after, &served(&net, V4, &clients)?, &[]), 0);
    Ok(())
}

#[test]
fn clients_of_one_network_come_to_one_backend() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("[service.web]\naffinity = 'client/24,64'\n")?;
    let net = stage.host.net().try_clone()?;
    net.sysctl("net.ipv6.ip_nonlocal_bind", "1")?;
    net.ip("-6 route add local 2001:db8::/32 dev lo")?;
    let backends: Vec<_> = (0..BACKENDS)
        .map(|number| Exec::new(&format!("web-{number}"), "web", "80:8080", "[::]:8080").start(&stage))
        .collect::<Result<_>>()?;
    stage.daemon.wait_ready("web", BACKENDS)?;

    let v4 = |network: u32| -> Vec<IpAddr> {
        (1..=20).map(|host| Ipv4Addr::from_bits(0x7f02_0000 + (network << 8) + host * 12).into()).collect()
    };
    let v6 = |network: u128| -> Vec<IpAddr> {
        (1..=20)
            .map(|host| Ipv6Addr::from_bits((0x2001_0db8 << 96) + (network << 64) + (host << 58) + host).into())
            .collect()
    };
    let of_networks = |bits_v4: bool| -> Result<()> {
        let mut chosen = [BTreeSet::new(), BTreeSet::new()];
        for network in 0..20 {
            for (family, to, clients) in [(0, V4, v4(network)), (1, V6, v6(network.into()))] {
                let served = served(&net, to, &clients)?;
                let names = names(&served);
                let is_one = names.len() == 1;
                ensure!(is_one == (bits_v4 || family == 1), "{to}, network {network}: {served:?}");
                chosen[family].extend(names.into_iter().map(str::to_owned));
            }
        }
        ensure!(chosen.iter().all(|names| names.len() > 1), "networks are spread: {chosen:?}");
        Ok(())
    };
    of_networks(true)?;
    // A prefix longer than 32 applies to IPv6; for IPv4 the whole address counts.
    reload(&stage, "[service.web]\naffinity = 'client/64'\n")?;
    stage.daemon.wait_for("the reload", |status| {
        status.service("web").is_some_and(|web| web.affinity == "client/64").then_some(())
    })?;
    of_networks(false)?;

    // Without affinity the choice depends on the client's port too.
    reload(&stage, "")?;
    stage.daemon.wait_for("the reload", |status| {
        status.service("web").is_some_and(|web| web.affinity == "connection").then_some(())
    })?;
    let same = vec![IpAddr::from(Ipv4Addr::new(127, 3, 0, 1)); 1];
    let mut chosen = BTreeSet::new();
    for _ in 0..50 {
        chosen.extend(served(&net, V4, &same)?.into_values());
    }
    assert!(chosen.len() > 1, "{chosen:?}");
    drop(backends);
    Ok(())
}
