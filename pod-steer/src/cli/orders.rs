//! The commands that move traffic. Each sends an order to the daemon and follows the operation.

use std::path::Path;

use clap::Parser as _;

use super::{
    Failure, Outcome as Ended,
    args::{
        Cli, Command,
        rollout::{CanaryArgs, DeployArgs, DrainArgs, OutputFormat, PartArgs, PauseArgs, ServiceArgs, ShiftArgs},
    },
    block_on,
    follow::{Follower, announce},
    given,
    terminal::{self, print_if_read},
    words,
};
use crate::{
    api::client::{self, ClientError},
    rollout::{Operation, Order, Outcome, PartOrder, WakeOrder},
};

pub(super) fn deploy(args: &DeployArgs) -> Ended {
    let order = Order::Deploy(given::deploy(args).map_err(Failure::Input)?);
    carry_out(&args.service, &order, args.output, false)
}

pub(super) fn canary(args: &CanaryArgs) -> Ended {
    let order = Order::Canary(given::canary(args).map_err(Failure::Input)?);
    carry_out(&args.service, &order, args.output, args.detach)
}

pub(super) fn shift(args: &ShiftArgs) -> Ended {
    plain(&args.service, &Order::Shift(given::shift(args).map_err(Failure::Input)?))
}

pub(super) fn drain(args: &DrainArgs) -> Ended {
    let order = Order::Drain(given::drain(args).map_err(Failure::Input)?);
    carry_out(&args.part.service, &order, args.output, false)
}

pub(super) fn resume(args: &PartArgs) -> Ended {
    plain(&args.service, &resume_of(args))
}

fn resume_of(args: &PartArgs) -> Order {
    Order::Resume(PartOrder { version: args.version.clone(), backend: args.backend.clone() })
}

/// The order of a command line, with its service; `args` are without the program's name.
pub(super) fn parsed(args: &[String]) -> Result<(String, Order), String> {
    let words = std::iter::once("pod-steer").chain(args.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words)
        .map_err(|error| super::one_line(&error).unwrap_or_else(|| "this is no order".to_owned()))?;
    let named = |args: &ServiceArgs, order| Ok((args.service.clone(), order));
    match &cli.command {
        Command::Deploy(args) => named(&args.service, Order::Deploy(given::deploy(args)?)),
        Command::Canary(args) => named(&args.service, Order::Canary(given::canary(args)?)),
        Command::Shift(args) => named(&args.service, Order::Shift(given::shift(args)?)),
        Command::Rollback(args) => named(args, Order::Rollback),
        Command::Drain(args) => named(&args.part.service, Order::Drain(given::drain(args)?)),
        Command::Resume(args) => named(&args.service, resume_of(args)),
        Command::Pause(args) => named(&args.service, Order::Pause(given::pause(args)?)),
        Command::Unpause(args) => named(args, Order::Unpause),
        Command::Idle(args) => named(args, Order::Idle),
        Command::Wake(args) => named(args, Order::Wake(WakeOrder::default())),
        _ => Err("this is no order".to_owned()),
    }
}

pub(super) fn pause(args: &PauseArgs) -> Ended {
    plain(&args.service, &Order::Pause(given::pause(args).map_err(Failure::Input)?))
}

/// An order without flags of its own.
pub(super) fn plain(args: &ServiceArgs, order: &Order) -> Ended {
    carry_out(args, order, OutputFormat::Text, false)
}

fn carry_out(args: &ServiceArgs, order: &Order, output: OutputFormat, detach: bool) -> Ended {
    let socket = &args.socket.socket;
    let operation = block_on(async {
        let begun = give(socket, &args.service, order).await?;
        if begun.end.is_some() || detach {
            return Ok(begun);
        }
        Follower::new(socket, begun, output).follow().await
    })?;
    if operation.end.is_none() {
        announce(&operation);
    }
    conclude(&operation, output)
}

/// Sends the order. If the daemon dies or hangs meanwhile, the order may or may not take effect.
pub(super) async fn give(socket: &Path, service: &str, order: &Order) -> Result<Operation, Failure> {
    let path = format!("/v1/services/{}/orders", client::encoded(service));
    client::post(socket, &path, order).await.map_err(|error| match error {
        ClientError::Http(_) => Failure::Failed(anyhow::anyhow!(
            "the daemon exited while it carried out this order; `pod-steer history {service}` shows whether it took effect"
        )),
        ClientError::NoAnswer(silent) => Failure::Failed(anyhow::anyhow!(
            "{silent}; the daemon may still carry out the order: check `pod-steer history {service}`"
        )),
        error => error.into(),
    })
}

/// Prints the end and turns it into an exit code.
pub(super) fn conclude(operation: &Operation, output: OutputFormat) -> Ended {
    if let Some(reason) = &operation.not_stored {
        let what = words::order(&operation.order);
        terminal::warn(&format!("`{what}` for {} is in force but not stored: {reason}", operation.service));
    }
    if output == OutputFormat::Json {
        print_if_read(&format!("{}\n", serde_json::to_string_pretty(operation)?))?;
    }
    let Some(end) = &operation.end else { return Ok(()) };
    let message = match end.message.as_str() {
        "" => format!("{}: {}", words::order(&operation.order), words::outcome(end.outcome)),
        message => message.to_owned(),
    };
    match (end.outcome, output) {
        (Outcome::Done | Outcome::Left, OutputFormat::Text) => print_if_read(&format!("{message}\n"))?,
        (Outcome::Done | Outcome::Left, OutputFormat::Json) => {}
        _ => super::say(&message),
    }
    match end.outcome {
        Outcome::Done => Ok(()),
        Outcome::Left => Err(Failure::Said(3)),
        Outcome::Failed | Outcome::WentBack | Outcome::Aborted => Err(Failure::Said(1)),
    }
}

#[cfg(test)]
mod tests;
