//! Two containers behind Docker's bridge, with network namespaces of their own, that pod-steer forwards to from the host's port.

use super::{Running, Servers, Way};
use crate::measure::traffic::{lab::Lab, servers::Listen};
use anyhow::Result;

pub const FORWARDED: Way = Way {
    name: "pod-steer-bridge",
    title: "pod-steer, 8013 to 80 behind Docker's bridge",
    base: Some("direct-pod"),
    note: Some("Nothing is published. Compare it with `dnat`, whose packets take the same way."),
    start: |lab| start(lab, "bridged", "forward", (8013, 8413)),
};

pub const PEER: Way = Way {
    name: "pod-steer-bridge-peer",
    title: "pod-steer, 8014 to 80 behind Docker's bridge, `via=peer`",
    base: Some("direct-pod"),
    note: Some("Packets pass no firewall of the host."),
    start: |lab| start(lab, "peered", "peer", (8014, 8414)),
};

fn start(lab: &Lab, service: &'static str, via: &str, (http, tls): (u16, u16)) -> Result<Running> {
    let listen = Listen { http: 80, tls: 443, reuseport: false };
    let start = |number: u32| {
        let name = format!("{service}-{number}");
        let spec = lab.site.nginx(&name, 1, &listen)?.service(service, &format!("{http}:80,{tls}:443"));
        lab.start(&spec.network("bridge").label("pod-steer.via", via), &name)
    };
    let servers = vec![start(1)?, start(2)?];
    lab.wait_ready(service, servers.len())?;
    Ok(Running::new(lab.addr(http), lab.addr(tls), Servers::Own(servers)).steered(lab, service))
}
