//! Servers on the host's network with nothing in front of them.

use anyhow::Result;

use super::{Running, Servers, Way};
use crate::measure::traffic::{
    lab::Lab,
    servers::{Listen, Server},
};

pub const DIRECT: Way =
    Way { name: "direct", title: "one listener, two workers", base: None, note: None, start: direct };

pub const LOCAL: Way = Way {
    name: "direct-local",
    title: "one listener, two workers; client on the host",
    base: None,
    note: Some("The base of `docker-proxy`: its clients come by the loopback interface."),
    start: local,
};

pub const REUSEPORT: Way = Way {
    name: "reuseport",
    title: "the kernel's own SO_REUSEPORT",
    base: Some("direct"),
    note: Some(
        "Two servers that were told to share (`listen ... reuseport`). As with pod-steer each has a queue of its own: two \
         queues can beat the one that `direct`'s workers share, so this row says what of that is pod-steer's.",
    ),
    start: reuseport,
};

fn direct(lab: &Lab) -> Result<Running> {
    let listen = Listen { http: 8001, tls: 8401, reuseport: false };
    let servers = Servers::Own(vec![alone(lab, "direct", &listen)?]);
    Ok(Running::new(lab.addr(listen.http), lab.addr(listen.tls), servers))
}

fn local(lab: &Lab) -> Result<Running> {
    let listen = Listen { http: 8002, tls: 8402, reuseport: false };
    let servers = Servers::Own(vec![alone(lab, "direct-local", &listen)?]);
    Ok(Running::new(Lab::local(listen.http), Lab::local(listen.tls), servers).local())
}

fn alone(lab: &Lab, name: &str, listen: &Listen) -> Result<Server> {
    lab.start(&lab.site.nginx(name, 2, listen)?, name)
}

fn reuseport(lab: &Lab) -> Result<Running> {
    let listen = Listen { http: 8003, tls: 8403, reuseport: true };
    let start = |name| lab.start(&lab.site.nginx(name, 1, &listen)?, name);
    let servers = Servers::Own(vec![start("reuseport-1")?, start("reuseport-2")?]);
    Ok(Running::new(lab.addr(listen.http), lab.addr(listen.tls), servers))
}
