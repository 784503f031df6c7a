//! nginx as an HTTP proxy that keeps its connections to the server.

use std::{ffi::OsString, net::SocketAddr, path::Path};

use anyhow::Result;
use pod_steer_tests::{
    host::Host,
    process::{Process, run},
};

use super::{contestant::PORT, proxy::Program};

/// See the module.
#[derive(Debug)]
pub struct Nginx;

impl Program for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn config(&self, dir: &Path, server: SocketAddr) -> String {
        let dir = dir.display();
        let temporary =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {dir}/{kind};"));
        format!(
            "user root; daemon off; worker_processes auto; pid {dir}/nginx.pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off; {}
    upstream web {{ server {server}; keepalive 16; }}
    server {{
        listen {PORT};
        location / {{ proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
    }}
}}
",
            temporary.concat()
        )
    }

    fn args(&self, config: &Path) -> Vec<OsString> {
        ["-e", "stderr", "-c"].map(OsString::from).into_iter().chain([config.into()]).collect()
    }

    fn reload(&self, program: &Path, host: &Host, _master: &Process, config: &Path) -> Result<()> {
        run(host.command(program)?.args(["-e", "stderr", "-s", "reload", "-c"]).arg(config)).map(drop)
    }
}
