//! pod-steer on the host's network: on the servers' own port, and from one port to another.

use anyhow::Result;

use super::{Running, Servers, Way};
use crate::measure::traffic::{
    lab::Lab,
    servers::{Listen, Server},
};

pub const HOST: Way = Way {
    name: "pod-steer",
    title: "pod-steer",
    base: Some("direct"),
    note: Some(
        "Its process is the daemon, which serves all rows of pod-steer and is on the path of no packet. What the kernel \
         program takes is in the whole machine's column.",
    ),
    start: host,
};

pub const ONE: Way = Way {
    name: "pod-steer-one",
    title: "pod-steer, one listener, two workers",
    base: Some("direct"),
    note: Some(
        "One backend with the servers of `direct`: the only difference is that pod-steer chooses the listener. The row `pod-steer` has two \
         listeners, each with a queue and a worker of its own.",
    ),
    start: one,
};

pub const PORT: Way =
    Way { name: "pod-steer-port", title: "pod-steer, 80 to 8080", base: Some("direct"), note: None, start: port };

pub const JUDGED: Way = Way {
    name: "pod-steer-judged",
    title: "pod-steer, while a canary compares two versions",
    base: Some("direct"),
    note: Some(
        "As `pod-steer`, with one server of each version, half of the connections for each, and `pod-steer.observe=http`: what a judgement costs.",
    ),
    start: judged,
};

fn judged(lab: &Lab) -> Result<Running> {
    let (service, listen) = ("judged", Listen { http: 8015, tls: 8415, reuseport: false });
    let start = |number: u32| {
        let (name, version) = (format!("{service}-{number}"), format!("v{number}"));
        let spec = lab.site.nginx(&name, 1, &listen)?.service(service, "8015,8415").network("host");
        lab.start(&spec.label("pod-steer.version", &version).label("pod-steer.observe", "http"), &name)
    };
    let servers = vec![start(1)?, start(2)?];
    lab.wait_ready(service, servers.len())?;
    lab.order("canary judged v2 --steps 50%,100% --every 24h --detach")?;
    Ok(Running::new(lab.addr(listen.http), lab.addr(listen.tls), Servers::Own(servers)).steered(lab, service))
}

fn host(lab: &Lab) -> Result<Running> {
    let listen = Listen { http: 8004, tls: 8404, reuseport: false };
    steered(lab, "steered", "8004,8404", &listen, (8004, 8404))
}

fn one(lab: &Lab) -> Result<Running> {
    let (service, listen) = ("alone", Listen { http: 8012, tls: 8412, reuseport: false });
    let spec = lab.site.nginx("alone-1", 2, &listen)?.service(service, "8012,8412").network("host");
    let servers = vec![lab.start(&spec, "alone-1")?];
    lab.wait_ready(service, servers.len())?;
    Ok(Running::new(lab.addr(listen.http), lab.addr(listen.tls), Servers::Own(servers)).steered(lab, service))
}

fn port(lab: &Lab) -> Result<Running> {
    let listen = Listen { http: 8080, tls: 8443, reuseport: false };
    steered(lab, "ported", "80:8080,443:8443", &listen, (80, 443))
}

fn steered(lab: &Lab, service: &'static str, ports: &str, listen: &Listen, (http, tls): (u16, u16)) -> Result<Running> {
    let servers = Servers::Own(backends(lab, service, ports, listen, "host")?);
    Ok(Running::new(lab.addr(http), lab.addr(tls), servers).steered(lab, service))
}

/// Two servers of a service, ready.
pub fn backends(lab: &Lab, service: &str, ports: &str, listen: &Listen, network: &str) -> Result<Vec<Server>> {
    let start = |number: u32| {
        let name = format!("{service}-{number}");
        lab.start(&lab.site.nginx(&name, 1, listen)?.service(service, ports).network(network), &name)
    };
    let servers = vec![start(1)?, start(2)?];
    lab.wait_ready(service, servers.len())?;
    Ok(servers)
}
