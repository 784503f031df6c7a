//! A pod behind Docker's bridge: with one server, and with two that pod-steer steers to.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    container::{Container, Spec},
    image::Image,
};

use super::{Running, Servers, Way, steered::backends};
use crate::measure::traffic::{
    lab::Lab,
    servers::{Listen, Server},
};

pub const DIRECT: Way = Way {
    name: "direct-pod",
    title: "one listener, two workers, behind Docker's bridge",
    base: Some("direct"),
    note: Some(
        "The base of those whose servers are behind Docker's bridge too: the way over it has a price of its own.",
    ),
    start: direct,
};

pub const STEERED: Way =
    Way { name: "pod-steer-pod", title: "pod-steer, in a pod", base: Some(DIRECT.name), note: None, start: steered };

const LISTEN: Listen = Listen { http: 80, tls: 443, reuseport: false };

fn direct(lab: &Lab) -> Result<Running> {
    let pod = Pod::start(lab, "plain-pod")?;
    let name = "plain-pod-1";
    let server = lab.start(&lab.site.nginx(name, 2, &LISTEN)?.network(pod.network.as_str()), name)?;
    Ok(pod.running(vec![server]))
}

fn steered(lab: &Lab) -> Result<Running> {
    let (pod, service) = (Pod::start(lab, "pod")?, "podded");
    let servers = backends(lab, service, "80,443", &LISTEN, &pod.network)?;
    Ok(pod.running(servers).steered(lab, service))
}

/// A container that only holds the network namespace.
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
        let running = Running::new(addr(LISTEN.http), addr(LISTEN.tls), Servers::Own(servers));
        running.keep(vec![], vec![self.pause])
    }
}
