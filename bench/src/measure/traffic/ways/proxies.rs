//! Reverse proxies in front of two servers, all on the host's network, with two workers and tuned settings. Unlike the servers they run
//! without a container's system call filter.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result};
use pod_steer_tests::wait;

use super::{Running, Servers, Way};
use crate::measure::{costs, traffic::lab::Lab};

/// Each for HTTP and for HTTP over TLS.
const PORTS_HAPROXY: [u16; 2] = [8005, 8405];
const PORTS_STREAM: [u16; 2] = [8006, 8406];
const PORT_HTTP: u16 = 8007;

const ARRANGEMENT: &str =
    "Two workers as plain processes, before two servers of one worker each; all on the host's network.";

pub const HAPROXY: Way =
    Way { name: "haproxy", title: "HAProxy, TCP mode", base: Some("direct"), note: Some(ARRANGEMENT), start: haproxy };

pub const NGINX_STREAM: Way = Way {
    name: "nginx-stream",
    title: "nginx, stream",
    base: Some("direct"),
    note: Some(ARRANGEMENT),
    start: nginx_stream,
};

pub const NGINX_HTTP: Way = Way {
    name: "nginx-http",
    title: "nginx, HTTP proxy",
    base: Some("direct"),
    note: Some("As the others; its own connections to the servers are kept alive, whatever clients do."),
    start: nginx_http,
};

fn haproxy(lab: &Lab) -> Result<Running> {
    let [http, tls] = PORTS_HAPROXY;
    let pair = lab.host_pair()?;
    let proxy = |port: u16, [a, b]: [SocketAddr; 2]| {
        format!("listen p{port}\n  bind :{port} backlog 4096\n  balance roundrobin\n  server a {a}\n  server b {b}\n")
    };
    // HAProxy refuses to start if two descriptors for each connection, and two for each splice pipe, exceed its limit.
    let connections_max = (lab.files_max / 2).saturating_sub(400).min(30_000);
    let config = format!(
        "global\n  nbthread 2\n  maxconn {connections_max}\n  maxpipes 128\ndefaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 10m\n  \
         timeout server 10m\n{}{}",
        proxy(http, pair.http),
        proxy(tls, pair.tls)
    );
    start(lab, "haproxy", &config, &["-db", "-f"], PORTS_HAPROXY)
}

fn nginx_stream(lab: &Lab) -> Result<Running> {
    let [http, tls] = PORTS_STREAM;
    let proxy = |port: u16, servers: [SocketAddr; 2]| {
        let upstream = upstream(servers, "");
        format!("upstream u{port} {{ {upstream} }} server {{ listen {port} backlog=4096; proxy_pass u{port}; }}")
    };
    let pair = lab.host_pair()?;
    let stream = format!("stream {{ proxy_timeout 10m; {} {} }}", proxy(http, pair.http), proxy(tls, pair.tls));
    // A module in Debian's nginx, built in elsewhere.
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = if fs::exists(module)? { format!("load_module {module};") } else { String::new() };
    let config = format!("{load}{}{stream}", nginx_head(lab, "stream"));
    start(lab, "nginx-stream", &config, &["-c"], PORTS_STREAM)
}

fn nginx_http(lab: &Lab) -> Result<Running> {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind}-temp;", lab.host.dir().display()));
    let config = format!(
        r#"{} http {{
    access_log off; keepalive_timeout 600s; keepalive_requests 1000000000; {}
    upstream servers {{ {} }}
    server {{
        listen {PORT_HTTP} backlog=4096;
        location / {{
            proxy_pass http://servers; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_max_temp_file_size 0;
        }}
    }}
}}"#,
        nginx_head(lab, "http"),
        temporary.concat(),
        upstream(lab.host_pair()?.http, "keepalive 128; keepalive_requests 1000000000;")
    );
    let running = start(lab, "nginx-http", &config, &["-c"], [PORT_HTTP, PORT_HTTP])?;
    Ok(Running { tls: Err("it cannot pass TLS through; its users terminate TLS in the proxy"), ..running })
}

fn nginx_head(lab: &Lab, name: &str) -> String {
    let pid = lab.host.dir().join(format!("nginx-{name}.pid"));
    format!(
        "user root; daemon off; worker_processes 2; error_log stderr crit; pid {}; events {{ worker_connections 32768; }}\n",
        pid.display()
    )
}

fn upstream(servers: [SocketAddr; 2], more: &str) -> String {
    servers.map(|server| format!("server {server};")).concat() + more
}

/// Writes the configuration and starts the program with it as the last argument.
fn start(lab: &Lab, name: &str, config: &str, args: &[&str], ports: [u16; 2]) -> Result<Running> {
    let file = lab.host.dir().join(format!("{name}.conf"));
    fs::write(&file, config)?;
    let program = if name == "haproxy" { "haproxy" } else { "nginx" };
    let mut process = lab.host.start(name, lab.host.command(program)?.args(args).arg(&file))?;
    wait::until_ok("the proxy to listen", || {
        if process.has_ended()? {
            anyhow::bail!("{program} has ended");
        }
        Ok(lab.host.net().listening_ports()?.contains(&ports[1]).then_some(()))
    })
    .with_context(|| process.stderr())?;
    let own = costs::descendants(process.pid())?;
    let servers = Servers::Shared(lab.host_pair()?);
    let running = Running::new(lab.addr(ports[0]), lab.addr(ports[1]), servers);
    Ok(running.with(own).files(2).keep(vec![process], vec![]))
}
