//! A port that Docker publishes (`docker run -p`): translated for clients from outside, proxied for those on the host.

use anyhow::{Result, ensure};

use super::{Running, Servers, Way};
use crate::measure::{
    costs,
    traffic::{lab::Lab, servers::Listen},
};

pub const PUBLISHED: Way = Way {
    name: "docker-p",
    title: "docker run -p",
    base: Some("direct-pod"),
    note: Some(
        "One container with two workers: a published port leads to one container only. Its processes are docker-proxy.",
    ),
    start: |lab| {
        let (http, tls) = (8010, 8410);
        let (servers, own) = publish(lab, "published", http, tls)?;
        Ok(Running::new(lab.addr(http), lab.addr(tls), servers).with(own))
    },
};

pub const PROXY: Way = Way {
    name: "docker-proxy",
    title: "docker run -p, client on the host",
    base: Some("direct-local"),
    note: Some("docker-proxy answers clients of 127.0.0.1."),
    start: |lab| {
        let (http, tls) = (8011, 8411);
        let (servers, own) = publish(lab, "published-locally", http, tls)?;
        // Two connections, and a pipe for each direction.
        Ok(Running::new(Lab::local(http), Lab::local(tls), servers).with(own).files(6).local())
    },
};

/// The server, and the processes that Docker has started for its ports.
fn publish(lab: &Lab, name: &str, http: u16, tls: u16) -> Result<(Servers, Vec<u32>)> {
    let listen = Listen { http: 80, tls: 443, reuseport: false };
    let published = [format!("--publish={http}:80"), format!("--publish={tls}:443")];
    let proxies = || Ok::<_, anyhow::Error>(costs::named(&costs::descendants(lab.engine.pid())?, "docker-proxy"));
    let before = proxies()?;
    let spec = lab.site.nginx(name, 2, &listen)?.network("bridge");
    let server = lab.start(&spec.options(&published.each_ref().map(String::as_str)), name)?;
    let mut own = proxies()?;
    own.retain(|pid| !before.contains(pid));
    ensure!(!own.is_empty(), "Docker has started no docker-proxy");
    Ok((Servers::Own(vec![server]), own))
}
