//! The kernel's own address translation to the two servers on the bridge.

use anyhow::{Context as _, Result};

use super::{Running, Servers, Way};
use crate::traffic::lab::Lab;

pub const DNAT: Way = Way {
    name: "dnat",
    title: "iptables DNAT, random choice",
    base: Some("direct"),
    beside: None,
    note: Some(
        "The rules that kube-proxy writes for a service of two, here on Docker's bridge; nobody is there who keeps them.",
    ),
    start: dnat,
};

pub const IPVS: Way =
    Way { name: "ipvs", title: "IPVS, masquerading", base: Some("direct"), beside: None, note: None, start: ipvs };

/// Ports of a service before the translation, and those of the servers.
type Ports = [(u16, u16); 2];

fn dnat(lab: &Lab) -> Result<Running> {
    let ports: Ports = [(8008, 80), (8408, 443)];
    let [a, b] = lab.pair()?.ips;
    for (port, to) in ports {
        let rule = format!("iptables -t nat -A PREROUTING -i client0 -p tcp --dport {port}");
        let half = "-m statistic --mode random --probability 0.5";
        lab.run(&format!("{rule} {half} -j DNAT --to-destination {a}:{to}"))?;
        lab.run(&format!("{rule} -j DNAT --to-destination {b}:{to}"))?;
    }
    running(lab, ports)
}

fn ipvs(lab: &Lab) -> Result<Running> {
    let ports: Ports = [(8009, 80), (8409, 443)];
    let ips = lab.pair()?.ips;
    for (port, to) in ports {
        let addr = lab.addr(port);
        let added = lab.run(&format!("ipvsadm --add-service --tcp-service {addr} --scheduler rr"));
        added.context("this machine's kernel or its programs lack IPVS")?;
        for ip in ips {
            lab.run(&format!("ipvsadm --add-server --tcp-service {addr} --real-server {ip}:{to} --masquerading"))?;
        }
    }
    running(lab, ports)
}

fn running(lab: &Lab, [(http, _), (tls, _)]: Ports) -> Result<Running> {
    Ok(Running::new(lab.addr(http), lab.addr(tls), Servers::Bridge(lab.pair()?)))
}
