//! Unmodified servers behind a bridge: clients reach each of them at a port of the host, over IPv4 and IPv6, and its own log shows the
//! address of its client.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    check,
    container::{Container, Spec},
    daemon::Stage,
    engine::{Engine, Options},
    host::Host,
    image::Image,
    load::{Load, Tally},
    report, require, tools, wait,
};

/// Connections of a load, to each server over each family.
const CONNECTIONS: u64 = 40;

/// A server that answers with its name, and that logs its clients.
struct Server {
    name: &'static str,
    image: Image,
    /// The host's port.
    front: u16,
    /// Its own.
    port: u16,
    command: &'static str,
}

const NGINX: &str = "echo '
    user root; daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log stderr;
    events { }
    http {
        access_log /dev/stdout;
        client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3; uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
        server { listen 80; listen [::]:80; root /www; }
    }' >/nginx.conf; exec nginx -c /nginx.conf";

const NODE: &str = "exec node -e \"require('http').createServer((request, response) => {
        console.log(request.socket.remoteAddress);
        response.end('node\\n');
    }).listen(3000)\"";

const SERVERS: [Server; 5] = [
    Server { name: "nginx", image: Image::Nginx, front: 80, port: 80, command: NGINX },
    Server {
        name: "python",
        image: Image::Python,
        front: 81,
        port: 8080,
        command: "exec python3 -m http.server 8080 --bind :: --directory /www",
    },
    Server {
        name: "busybox",
        image: Image::Busybox,
        front: 82,
        port: 8080,
        command: "exec busybox httpd -f -vv -p 8080 -h /www",
    },
    Server { name: "node", image: Image::Node, front: 83, port: 3000, command: NODE },
    // In Go.
    Server {
        name: "caddy",
        image: Image::Caddy,
        front: 84,
        port: 8080,
        command: "exec caddy file-server --listen :8080 --root /www --access-log",
    },
];

impl Server {
    fn start(&self, stage: &Stage, network: &str) -> Result<Container> {
        let script = format!("echo {0} >/www/index.html; {1}", self.name, self.command);
        let spec =
            Spec::new(self.image, self.name).args(&["/bin/busybox", "sh", "-c", script.as_str()]).network(network);
        let ports = format!("{}:{}", self.front, self.port);
        stage.engine().start_container(&spec.service(self.name, &ports).label("pod-steer.via", "forward"))
    }
}

/// Waits until the log has a line with this address for each of its connections.
fn logged(server: &Container, client: IpAddr) -> Result<()> {
    let client = client.to_string();
    let complete = wait::until_ok("every client to be logged", || {
        let lines = server.logs()?.lines().filter(|line| line.contains(&client)).count();
        Ok((lines as u64 >= CONNECTIONS).then_some(()))
    });
    complete.map_err(|error| error.context(format!("{client} in {}", server.logs().unwrap_or_default())))
}

/// Starts all servers on a network, whose bridge has these addresses, and connects to each over both families.
fn all_log_their_clients(stage: &Stage, network: &str, bridge: [&str; 2]) -> Result<()> {
    let client = stage.host.new_client()?;
    let begun = std::time::Instant::now();
    let started = SERVERS.iter().map(|server| server.start(stage, network)).collect::<Result<Vec<_>>>()?;
    for (server, container) in SERVERS.iter().zip(&started) {
        let ready = stage.daemon.wait_ready(server.name, 1);
        ready.map_err(|error| error.context(container.logs().unwrap_or_default()))?;
    }
    report::figure(&format!("start of five servers on {network}"), format!("{} ms", begun.elapsed().as_millis()));
    for (server, container) in SERVERS.iter().zip(&started) {
        let mut all = Tally::default();
        for target in [client.host_ip4, client.host_ip6].map(|ip| SocketAddr::new(ip, server.front)) {
            all.merge(Load::to(target).threads(2).count(CONNECTIONS).run(&client.ns)?);
        }
        ensure!(all.answered_by(server.name) == 2 * CONNECTIONS, "{}: {all}", server.name);
        check::kernel_agrees(&stage.daemon.wait_idle(server.name)?, &all)?;
        logged(container, client.ip4)?;
        logged(container, client.ip6)?;
        let log = container.logs()?;
        ensure!(!bridge.iter().any(|address| log.contains(address)), "{} saw another client: {log}", server.name);
    }
    Ok(())
}

fn needed() -> Result<(), String> {
    tools::docker().and_then(|()| tools::root_and(&["nginx", "python3", "node", "caddy"]))
}

#[test]
fn servers_on_the_default_bridge_log_their_clients() -> Result<()> {
    require!(needed());
    let host = Arc::new(Host::new()?);
    host.net().sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let with_ipv6 = Options::default().arguments(&["--ipv6", "--fixed-cidr-v6", "fd99::/64"]);
    let engine = Engine::start_with(&host, with_ipv6)?;
    let stage = Stage::with(host, Some(engine))?;
    all_log_their_clients(&stage, "bridge", ["172.17.0.1", "fd99::1"])
}

#[test]
fn servers_on_a_network_of_their_own_log_their_clients() -> Result<()> {
    require!(needed());
    let stage = Stage::with_docker()?;
    stage.host.net().sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let subnets = ["--ipv6", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64"];
    stage.engine().docker().run(&[&["network", "create"], &subnets[..], &["shop"]].concat())?;
    all_log_their_clients(&stage, "shop", ["10.88.0.1", "fd88::1"])
}
