//! pod-steer: on the host, in a pod, and from one port to another.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    container::{Container, Spec},
    image::Image,
};

use super::{Running, Servers, Way};
use crate::traffic::{
    lab::Lab,
    servers::{Listen, Server},
};

pub const HOST: Way = Way {
    name: "pod-steer",
    title: "pod-steer",
    base: Some("direct"),
    beside: None,
    note: Some("Its process is the daemon, which serves all rows of pod-steer and is on the path of no packet."),
    start: host,
};

pub const POD: Way = Way {
    name: "pod-steer-pod",
    title: "pod-steer, in a pod",
    base: Some("direct"),
    beside: Some(&PLAIN_POD),
    note: Some("The way to the pod leads over Docker's bridge, which `direct` does not have."),
    start: pod,
};

/// The same pod without pod-steer: what is to be compared with [`POD`], in its note.
const PLAIN_POD: Way = Way {
    name: "direct-pod",
    title: "such a pod with one listener, two workers",
    base: Some("direct"),
    beside: None,
    note: None,
    start: plain_pod,
};

pub const PORT: Way = Way {
    name: "pod-steer-port",
    title: "pod-steer, 80 to 8080",
    base: Some("direct"),
    beside: None,
    note: None,
    start: port,
};

fn host(lab: &Lab) -> Result<Running> {
    let listen = Listen { http: 8004, tls: 8404, reuseport: false };
    steered(lab, "steered", "8004,8404", &listen, (8004, 8404))
}

fn port(lab: &Lab) -> Result<Running> {
    let listen = Listen { http: 8080, tls: 8443, reuseport: false };
    steered(lab, "ported", "80:8080,443:8443", &listen, (80, 443))
}

fn steered(lab: &Lab, service: &str, ports: &str, listen: &Listen, (http, tls): (u16, u16)) -> Result<Running> {
    let servers = Servers::Own(backends(lab, service, ports, listen, "host")?);
    Ok(Running::new(lab.addr(http), lab.addr(tls), servers).with(vec![lab.daemon_pid()]))
}

fn pod(lab: &Lab) -> Result<Running> {
    let pod = Pod::start(lab, "pod")?;
    let servers = backends(lab, "podded", "80,443", &POD_LISTEN, &pod.network)?;
    Ok(pod.running(servers).with(vec![lab.daemon_pid()]))
}

fn plain_pod(lab: &Lab) -> Result<Running> {
    let pod = Pod::start(lab, "plain-pod")?;
    let name = "plain-pod-1";
    let server = lab.start(&lab.site.nginx(name, 2, &POD_LISTEN)?.network(pod.network.as_str()), name)?;
    Ok(pod.running(vec![server]))
}

fn backends(lab: &Lab, service: &str, ports: &str, listen: &Listen, network: &str) -> Result<Vec<Server>> {
    let start = |number: u32| {
        let name = format!("{service}-{number}");
        lab.start(&lab.site.nginx(&name, 1, listen)?.service(service, ports).network(network), &name)
    };
    let servers = vec![start(1)?, start(2)?];
    lab.wait_ready(service, servers.len())?;
    Ok(servers)
}

const POD_LISTEN: Listen = Listen { http: 80, tls: 443, reuseport: false };

/// A container that does nothing but hold the network namespace.
struct Pod {
    pause: Container,
    ip: IpAddr,
    network: String,
}

impl Pod {
    fn start(lab: &Lab, name: &str) -> Result<Self> {
        let pause = Spec::new(Image::Busybox, name).network("bridge").args(&["/bin/busybox", "sleep", "86400"]);
        let pause = lab.engine.start_container(&pause).context("starting the pod")?;
        lab.allow_forwarding()?;
        Ok(Self { ip: pause.ip()?, network: format!("container:{}", pause.id), pause })
    }

    fn running(self, servers: Vec<Server>) -> Running {
        let addr = |port| SocketAddr::new(self.ip, port);
        let running = Running::new(addr(POD_LISTEN.http), addr(POD_LISTEN.tls), Servers::Own(servers));
        running.keep(vec![], vec![self.pause])
    }
}
