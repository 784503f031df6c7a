//! `pod-steer metrics`

use super::{Failure, Outcome, args::MetricsArgs, block_on, pinned, print};
use crate::api::{
    client::{self, ClientError},
    metrics::Format,
};

/// Prints the metrics of the daemon, or of what is pinned if no daemon runs.
pub(super) fn metrics(args: &MetricsArgs) -> Outcome {
    let MetricsArgs { socket, bpffs } = args;
    let no_daemon = match block_on(async { Ok(client::text(&socket.socket, "/v1/metrics").await) })? {
        Ok(page) => return print(&page),
        Err(error @ ClientError::NoDaemon { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    match pinned::page(bpffs) {
        Ok(Some(page)) => print(&Format::Prometheus.of(page)),
        Ok(None) => {
            Err(Failure::Input(format!("{no_daemon} There are no metrics to read below `{}` either.", bpffs.display())))
        }
        Err(error) => Err(Failure::Input(format!("no daemon runs, and {}", crate::chain(&error)))),
    }
}
