//! The kernel's own address translation to the two servers on the bridge.

use anyhow::{Context as _, Result};

use super::{Running, Servers, Way};
use crate::measure::traffic::lab::Lab;

pub const DNAT: Way = Way {
    name: "dnat",
    title: "iptables DNAT, random choice",
    base: Some("direct-pod"),
    note: Some(
        "What kube-proxy's rules for a service of two amount to, on Docker's bridge; no daemon keeps them in step.",
    ),
    start: dnat,
};

pub const IPVS: Way =
    Way { name: "ipvs", title: "IPVS, masquerading", base: Some("direct-pod"), note: None, start: ipvs };

/// Ports of a service before the translation: for HTTP, and for HTTP over TLS.
type Ports = [u16; 2];

fn dnat(lab: &Lab) -> Result<Running> {
    let (ports, pair): (Ports, _) = ([8008, 8408], lab.bridge_pair()?);
    for (port, [a, b]) in ports.into_iter().zip([pair.http, pair.tls]) {
        let rule = format!("iptables -t nat -A PREROUTING -i client0 -p tcp --dport {port}");
        let half = "-m statistic --mode random --probability 0.5";
        lab.run(&format!("{rule} {half} -j DNAT --to-destination {a}"))?;
        lab.run(&format!("{rule} -j DNAT --to-destination {b}"))?;
    }
    running(lab, ports)
}

fn ipvs(lab: &Lab) -> Result<Running> {
    let (ports, pair): (Ports, _) = ([8009, 8409], lab.bridge_pair()?);
    for (port, servers) in ports.into_iter().zip([pair.http, pair.tls]) {
        let addr = lab.addr(port);
        let added = lab.run(&format!("ipvsadm --add-service --tcp-service {addr} --scheduler rr"));
        added.context("this machine's kernel or its programs lack IPVS")?;
        for server in servers {
            lab.run(&format!("ipvsadm --add-server --tcp-service {addr} --real-server {server} --masquerading"))?;
        }
    }
    running(lab, ports)
}

fn running(lab: &Lab, [http, tls]: Ports) -> Result<Running> {
    Ok(Running::new(lab.addr(http), lab.addr(tls), Servers::Shared(lab.bridge_pair()?)))
}
