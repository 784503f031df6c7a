//! Throughput, latency and cost of every way to two servers.

mod answer;
mod contest;
mod idle;
mod kernel;
mod lab;
mod load;
mod lost;
mod proof;
mod servers;
mod shuffle;
mod tally;
mod turn;
mod ways;
mod workloads;
mod wrk;

use crate::report::Section;
use anyhow::Result;

use crate::options::Options;

/// What is measured here.
pub const SECTIONS: &[&str] = &[
    "new-connections-pair",
    "keep-alive-pair",
    "new-connections-bridge-pair",
    "new-connections-peer-pair",
    "new-connections-judged-pair",
    "keep-alive-judged-pair",
    "new-connections",
    "keep-alive",
    "tls",
    "large",
    "idle",
];

/// The ways to the servers.
pub const CONTESTANTS: &[&str] = ways::NAMES;

/// Measures them.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    let mut sections = load::measure(options)?;
    sections.extend(idle::measure(options)?);
    Ok(sections)
}
