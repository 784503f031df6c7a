//! `pod-steer run`

use anyhow::Context as _;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer, Registry,
    filter::{ParseError, Targets},
    fmt,
    layer::SubscriberExt as _,
    reload::{self, Handle},
    util::SubscriberInitExt as _,
};

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
    let (filter, handle) = reload::Layer::new(config.log_level.parse::<Targets>().context("the log level")?);
    let log = fmt::layer()
        .with_writer(|| LogSink)
        .with_ansi(terminal::colours(&std::io::stderr()))
        .log_internal_errors(false)
        .with_target(false);
    let log = match config.log_format {
        LogFormat::Text => log.boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(log).init();
    let runtime = daemon::runtime()?;
    match runtime.block_on(daemon::run(Reload::new(config, args, setting(handle)))) {
        Err(RunError::Kernel(error)) if error.is_refusal() => Err(Failure::Input(crate::chain(&error))),
        Err(error @ RunError::Metrics { .. }) => Err(Failure::Input(crate::chain(&error))),
        ended => Ok(ended?),
    }
}

/// Sets the level of the log that a handle belongs to.
fn setting(handle: Handle<Targets, Registry>) -> SetLogLevel {
    Box::new(move |level| {
        let filter: Targets = level.parse().map_err(|error: ParseError| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())?;
        // Records of the crate `log`, such as those of the kernel programs, are filtered by its own level first.
        log::set_max_level(tracing_log::AsLog::as_log(&LevelFilter::current()));
        Ok(())
    })
}
