//! `pod-steer run`

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::{
    Failure, Outcome,
    args::{LogFormat, RunArgs},
    terminal,
};
use crate::{config::RunConfig, daemon, log_sink::LogSink};

pub(super) fn run(args: RunArgs) -> Outcome {
    let config = RunConfig::resolve(args).map_err(|e| Failure::Input(crate::chain(&e)))?;
    let filter = EnvFilter::try_new(&config.log_level).context("the log level")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogSink)
        .with_ansi(terminal::colours(&std::io::stderr()))
        .log_internal_errors(false)
        .with_target(false);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    let runtime = daemon::runtime()?;
    Ok(runtime.block_on(daemon::run(config))?)
}
