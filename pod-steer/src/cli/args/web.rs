//! Arguments of `pod-steer web`.

use std::net::SocketAddr;

use clap::Args;

use super::SocketArgs;

/// `pod-steer web`
#[derive(Clone, Debug, Args)]
pub struct WebArgs {
    /// The daemon.
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Loopback address of the page; port 0 is any free port
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Let the page give orders: deploy, canary, shift, rollback, drain, resume, pause, unpause
    #[arg(long)]
    pub allow_orders: bool,
}
