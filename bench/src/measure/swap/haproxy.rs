//! HAProxy in TCP mode, with a master process that passes its listening sockets from worker to worker.

use std::{ffi::OsString, net::SocketAddr, path::Path};

use anyhow::Result;
use pod_steer_tests::{
    host::Host,
    process::{Process, run},
};
use rustix::process::Signal;

use super::{contestant::PORT, proxy::Program};

/// See the module.
#[derive(Debug)]
pub struct HaProxy;

impl Program for HaProxy {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn config(&self, dir: &Path, server: SocketAddr) -> String {
        let socket = dir.join("haproxy.sock");
        format!(
            "global
    stats socket {} mode 600 level admin expose-fd listeners
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen web
    bind 0.0.0.0:{PORT}
    server web {server}
",
            socket.display()
        )
    }

    fn args(&self, config: &Path) -> Vec<OsString> {
        vec!["-W".into(), "-f".into(), config.into()]
    }

    fn reload(&self, program: &Path, host: &Host, master: &Process, config: &Path) -> Result<()> {
        run(host.command(program)?.args(["-W", "-c", "-q", "-f"]).arg(config))?;
        master.signal(Signal::USR2)
    }
}
