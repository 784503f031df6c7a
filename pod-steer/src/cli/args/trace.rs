//! The arguments of `pod-steer trace`.

use std::path::PathBuf;

use clap::Args;
use pod_steer_ebpf::TRACE_REASONS;

use crate::config::DEFAULT_BPFFS;

/// `pod-steer trace`
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Show decisions for this service only
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Show decisions for this backend only: its name
    #[arg(long, value_name = "NAME")]
    pub backend: Option<String>,
    /// Show decisions with this reason only; may be repeated
    #[arg(long, value_name = "REASON", value_parser = TRACE_REASONS, hide_possible_values = true)]
    pub reason: Vec<String>,
    /// End after so many decisions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Network namespace of the listening sockets, such as /run/netns/NAME or /proc/PID/ns/net [default: that of this command]
    #[arg(long, value_name = "PATH")]
    pub namespace: Option<PathBuf>,
    /// Print JSON, one object a decision and line
    #[arg(long)]
    pub json: bool,
    /// Directory of pinned programs and maps
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}
