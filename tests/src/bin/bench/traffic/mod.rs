//! What clients get, and what it costs, by every way to two servers.

use anyhow::Result;
use pod_steer_tests::measures::Section;

use crate::options::Options;

/// What is measured here.
pub const SECTIONS: &[&str] = &["new-connections", "keep-alive", "tls", "large", "idle"];

/// The ways to the servers.
pub const CONTESTANTS: &[&str] = &[
    "direct",
    "reuseport",
    "pod-steer",
    "pod-steer-pod",
    "pod-steer-port",
    "haproxy",
    "nginx-stream",
    "nginx-http",
    "dnat",
    "ipvs",
    "docker-p",
    "direct-local",
    "docker-proxy",
];

/// Measures them.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    let _ = options;
    Ok(Vec::new())
}
