//! Arguments of `up`.

use std::path::PathBuf;

use clap::{Args, builder::NonEmptyStringValueParser};

use super::{SocketArgs, rollout::EndingArgs};

/// `pod-steer up`
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Services of the Compose file [default: those whose containers are steered]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub services: Vec<String>,
    /// Compose file; may be repeated [default: as for `docker compose`]
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Name of the project, as for `docker compose`
    #[arg(short, long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub project_name: Option<String>,
    /// File with variables, as for `docker compose`
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Build the images first
    #[arg(long)]
    pub build: bool,
    /// Number of containers of each service [default: as many as serve now, or as the file says if that is more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub scale: Option<u16>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Time limit for the new containers to become ready
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true)]
    pub timeout: String,
    /// Time limit for the connections of old containers to end
    #[arg(long, value_name = "TIME", default_value = "30s", allow_hyphen_values = true)]
    pub drain_timeout: String,
    /// How they end.
    #[command(flatten)]
    pub ending: EndingArgs,
}
