//! The arguments of `pod-steer sockets`.

use std::path::PathBuf;

use clap::{Args, builder::NonEmptyStringValueParser};

use super::SocketArgs;
use crate::config::DEFAULT_BPFFS;

/// `pod-steer sockets`
#[derive(Clone, Debug, Args)]
pub struct SocketsArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Show only this service
    #[arg(long, value_name = "SERVICE", value_parser = NonEmptyStringValueParser::new())]
    pub service: Option<String>,
    /// Show only this backend: its name, or the beginning of its id
    #[arg(long, value_name = "BACKEND", value_parser = NonEmptyStringValueParser::new())]
    pub backend: Option<String>,
    /// List the established connections of each backend too, those with the latest traffic first
    #[arg(long)]
    pub live: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Directory of pinned programs and maps, which is read if no daemon runs
    #[arg(long, env = "POD_STEER_BPFFS", value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}
