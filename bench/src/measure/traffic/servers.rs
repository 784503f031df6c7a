//! The servers: unmodified nginx from one image, each in a container, the same everywhere.

use std::{
    cell::OnceCell,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    rc::Rc,
};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    container::{Container, Spec},
    host::Host,
    image::Image,
    process::run,
};

use super::lab::Lab;
use crate::measure::costs;

/// The path of most workloads, answered with the server's name.
pub const SMALL: &str = "/";
/// The path of a large answer.
pub const LARGE: &str = "/large";
/// Its size.
pub const LARGE_BYTES: usize = 1 << 20;

/// A directory with the files of all servers, their certificate, and a configuration for each.
pub struct Site {
    dir: PathBuf,
}

/// How a server listens.
pub struct Listen {
    /// For HTTP.
    pub http: u16,
    /// For HTTP over TLS.
    pub tls: u16,
    /// With a listening socket for each worker, which the server itself makes shareable.
    pub reuseport: bool,
}

/// A running server.
pub struct Server {
    /// Its container.
    pub container: Container,
    /// Its answer.
    pub name: String,
    /// All of its processes.
    pub pids: Vec<u32>,
}

/// Two servers with a worker each.
pub struct Pair {
    /// The servers.
    pub servers: [Server; 2],
    /// Their addresses for HTTP.
    pub http: [SocketAddr; 2],
    /// Their addresses for HTTP over TLS.
    pub tls: [SocketAddr; 2],
}

/// A pair that several contestants share, started when first needed.
pub type SharedPair = OnceCell<Result<Rc<Pair>, String>>;

impl Site {
    /// Makes the directory with a new certificate (ECDSA, P-256).
    pub fn new(host: &Host) -> Result<Self> {
        let dir = host.dir().join("site");
        fs::create_dir(&dir)?;
        fs::write(dir.join("large"), vec![b'x'; LARGE_BYTES])?;
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-subj", "/CN=bench", "-keyout", "key.pem", "-out", "cert.pem"]);
        run(openssl.current_dir(&dir)).context("making a certificate")?;
        Ok(Self { dir })
    }

    /// A container with nginx; not started.
    pub fn nginx(&self, name: &str, workers: u32, listen: &Listen) -> Result<Spec> {
        let file = format!("{name}.conf");
        fs::write(self.dir.join(&file), config(name, workers, listen))?;
        let spec = Spec::new(Image::Nginx, name).mount(&self.dir, "/site");
        Ok(spec.args(&["/usr/sbin/nginx", "-c", &format!("/site/{file}")]))
    }
}

impl Lab {
    /// Starts a server.
    pub fn start(&self, spec: &Spec, name: &str) -> Result<Server> {
        let container = self.engine.start_container(spec)?;
        let first = container.pid()?;
        // The container's start returns before nginx has started its workers.
        let pids = pod_steer_tests::wait::until_ok("nginx's workers", || {
            Ok(Some(costs::descendants(first)?).filter(|pids| pids.len() > 1))
        });
        let pids = pids.with_context(|| container.logs().unwrap_or_default())?;
        Ok(Server { container, name: name.to_owned(), pids })
    }

    /// The two servers on Docker's bridge, for address translation. Started when first needed.
    pub fn bridge_pair(&self) -> Result<Rc<Pair>> {
        shared(&self.bridge_pair, || {
            let listen = Listen { http: 80, tls: 443, reuseport: false };
            let start = |name: &str| self.start(&self.site.nginx(name, 1, &listen)?.network("bridge"), name);
            let servers = [start("bridge-1")?, start("bridge-2")?];
            let ips = [servers[0].container.ip()?, servers[1].container.ip()?];
            self.allow_forwarding()?;
            let on = |port| ips.map(|ip| SocketAddr::new(ip, port));
            Ok(Pair { servers, http: on(listen.http), tls: on(listen.tls) })
        })
    }

    /// The two servers on the host's network, for the proxies. Started when first needed.
    pub fn host_pair(&self) -> Result<Rc<Pair>> {
        let (http, tls) = ([9001, 9002], [9401, 9402]);
        shared(&self.host_pair, || {
            let start = |name: &str, http, tls| {
                self.start(&self.site.nginx(name, 1, &Listen { http, tls, reuseport: false })?, name)
            };
            let servers = [start("behind-1", http[0], tls[0])?, start("behind-2", http[1], tls[1])?];
            let on = |ports: [u16; 2]| ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            Ok(Pair { servers, http: on(http), tls: on(tls) })
        })
    }
}

fn shared(pair: &SharedPair, start: impl FnOnce() -> Result<Pair>) -> Result<Rc<Pair>> {
    let pair = pair.get_or_init(|| start().map(Rc::new).map_err(|error| format!("{error:#}")));
    pair.clone().map_err(anyhow::Error::msg)
}

fn config(name: &str, workers: u32, listen: &Listen) -> String {
    let Listen { http, tls, reuseport } = listen;
    let reuseport = if *reuseport { " reuseport" } else { "" };
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path /tmp/{kind};"));
    format!(
        r#"user root; daemon off; worker_processes {workers}; pid /tmp/nginx.pid; error_log stderr crit;
events {{ worker_connections 32768; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_timeout 600s; keepalive_requests 1000000000;
    {}
    ssl_certificate cert.pem; ssl_certificate_key key.pem; ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache off; ssl_session_tickets off;
    server {{
        listen {http} backlog=4096{reuseport}; listen {tls} ssl backlog=4096{reuseport};
        root /site; location = {SMALL} {{ return 200 "{name}\n"; }}
    }}
}}
"#,
        temporary.concat()
    )
}
