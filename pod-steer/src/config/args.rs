//! The flags of `run`, and the variables that stand for them.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `pod-steer run`
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// Socket of a container engine (Docker or Podman), as in unix:///run/podman/podman.sock; may be repeated; `none` for no engine
    /// [default: unix:///var/run/docker.sock if it exists]
    #[arg(long, env = "POD_STEER_ENGINE", value_name = "URL", value_delimiter = ',')]
    pub engine: Vec<String>,
    /// Configuration file, reread on SIGHUP [default: /etc/pod-steer.toml if it exists]
    #[arg(long, env = "POD_STEER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory for runtime files [default: /run/pod-steer]
    #[arg(long, env = "POD_STEER_RUNTIME_DIR", value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Directory for decisions and history [default: /var/lib/pod-steer]
    #[arg(long, env = "POD_STEER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory, on a BPF file system, for pinned programs and maps [default: /sys/fs/bpf/pod-steer]
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Path of the API socket [default: api.sock in the runtime directory]
    #[arg(long, env = "POD_STEER_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Also serve metrics for Prometheus at `/metrics` on this TCP port, to everyone who can reach it; a port alone is one of 127.0.0.1
    /// [default: only on the API socket]
    #[arg(long, env = "POD_STEER_METRICS", value_name = "[ADDR:]PORT")]
    pub metrics: Option<String>,
    /// Group of the operators. Its members may do everything through the API that root may, so trust them like members of the docker
    /// group [default: root only]
    #[arg(long, env = "POD_STEER_GROUP", value_name = "GROUP")]
    pub group: Option<String>,
    /// Group whose members may read status, history and events, and nothing else [default: none]
    #[arg(long, env = "POD_STEER_VIEWERS", value_name = "GROUP")]
    pub viewers: Option<String>,
    /// Ports that services may claim, as in 80,443,8000-8999; `allow-ports` in a service's table restricts them further [default: all]
    #[arg(long, env = "POD_STEER_ALLOW_PORTS", value_name = "PORTS")]
    pub allow_ports: Option<String>,
    /// Also accept pod-steer labels that come from an image; authors of images can then add containers to services
    #[arg(long, env = "POD_STEER_TRUST_IMAGE_LABELS")]
    pub trust_image_labels: bool,
    /// Maximum number of backends; to change it, run `pod-steer unload` first [default: 4096]
    #[arg(long, env = "POD_STEER_MAX_BACKENDS", value_name = "N")]
    pub max_backends: Option<u32>,
    /// Log each decision of the kernel program (slow; for debugging)
    #[arg(long, env = "POD_STEER_LOG_DECISIONS")]
    pub log_decisions: bool,
    /// Log level: off, error, warn, info, debug, trace, or a list such as info,pod_steer::engine=debug
    /// [default: info]
    #[arg(long, env = "POD_STEER_LOG", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of the log [default: text]
    #[arg(long, env = "POD_STEER_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
