//! `pod-steer run`

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use super::{
    Failure, Outcome,
    args::{LogFormat, RunArgs},
};
use crate::{config::RunConfig, daemon};

pub(super) fn run(args: RunArgs) -> Outcome {
    let filter = EnvFilter::try_new(&args.log_level).map_err(|e| {
        Failure::Input(format!("--log-level `{}`: {e}; give error, warn, info or debug", args.log_level))
    })?;
    let format = args.log_format;
    let config = RunConfig::resolve(args).map_err(|e| Failure::Input(crate::chain(&e)))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    // One thread: the loop, and the API that feeds it. Waiting for the kernel's grace periods happens elsewhere.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(daemon::run(config))?)
}
