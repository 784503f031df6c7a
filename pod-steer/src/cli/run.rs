//! `pod-steer run`

use anyhow::Context as _;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, reload::Handle};

use super::{Failure, Outcome, terminal};
use crate::{
    config::{
        RunConfig,
        args::{LogFormat, RunArgs},
    },
    daemon::{self, Reload, RunError, SetLogLevel},
    log_sink::LogSink,
};

pub(super) fn run(args: RunArgs) -> Outcome {
    let config = RunConfig::resolve(args.clone()).map_err(|e| Failure::Input(crate::chain(&e)))?;
    let filter = EnvFilter::try_new(&config.log_level).context("the log level")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogSink)
        .with_ansi(terminal::colours(&std::io::stderr()))
        .log_internal_errors(false)
        .with_target(false);
    let set_log_level = match config.log_format {
        LogFormat::Text => {
            let log = log.with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            setting(handle)
        }
        LogFormat::Json => {
            let log = log.json().flatten_event(true).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            setting(handle)
        }
    };
    let runtime = daemon::runtime()?;
    match runtime.block_on(daemon::run(Reload::new(config, args, set_log_level))) {
        Err(RunError::Kernel(error)) if error.is_refusal() => Err(Failure::Input(crate::chain(&error))),
        Err(error @ RunError::Metrics { .. }) => Err(Failure::Input(crate::chain(&error))),
        ended => Ok(ended?),
    }
}

/// Sets the level of the log that a handle belongs to.
fn setting<S: 'static>(handle: Handle<EnvFilter, S>) -> SetLogLevel {
    Box::new(move |level| {
        let filter = EnvFilter::try_new(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())?;
        // Records of the crate `log`, such as those of the kernel programs, are filtered by its own level first.
        log::set_max_level(tracing_log::AsLog::as_log(&LevelFilter::current()));
        Ok(())
    })
}
