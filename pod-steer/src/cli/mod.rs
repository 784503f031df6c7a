//! The command line: each command sends a request to the daemon and prints the answer. Exit codes: 0 success, 1 failure, 2 invalid input
//! and nothing was changed, 3 traffic has moved and connections were left at the deadline.

pub mod args;
mod config;
mod decisions;
mod exec;
mod explain;
mod follow;
mod given;
mod history;
mod live;
mod metrics;
mod orders;
mod pinned;
mod run;
mod sockets;
mod status;
mod steered;
mod table;
mod terminal;
mod top;
mod trace;
mod unload;
mod up;
mod web;
mod words;

use std::{io, process::ExitCode};

use clap::{
    Parser as _,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    api::{
        client::{self, ClientError},
        openapi,
        types::EventRecord,
    },
    config::{
        RunConfig,
        args::{LogFormat, RunArgs},
    },
    daemon, doctor,
    rollout::{Order, WakeOrder},
    settings::reference,
    text::visible,
    version,
};
use args::{Cli, Command, DoctorArgs, EventsArgs};
use terminal::{print, say};

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The command failed.
    Failed(anyhow::Error),
    /// The input is invalid.
    Input(String),
    /// The message has been printed; the exit code.
    Said(u8),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast_ref::<ClientError>() {
            Some(client) if client.is_bad_input() => Self::Input(client.to_string()),
            _ => Self::Failed(error),
        }
    }
}

type Outcome = Result<(), Failure>;

/// Parses, runs, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let args: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
            match command_place(&error, &args).or_else(|| one_line(&error)) {
                Some(line) => say(&line),
                None => drop(error.print()),
            }
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said(code)) => ExitCode::from(code),
        Err(Failure::Input(text)) => {
            say(&text);
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            say(&crate::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The error of clap in one line, with its suggestions. `None` if help was requested.
fn one_line(error: &clap::Error) -> Option<String> {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let wrong = paragraphs.next()?.strip_prefix("error: ")?;
    let tips = paragraphs.filter_map(|paragraph| paragraph.trim_start().strip_prefix("tip: "));
    let parts = [wrong].into_iter().chain(tips).map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    Some(parts.chain(["see --help".to_owned()]).collect::<Vec<_>>().join("; "))
}

/// The error for a command of `exec` that is missing or not after `--`.
fn command_place(error: &clap::Error, args: &[String]) -> Option<String> {
    let [_, subcommand, rest @ ..] = args else { return None };
    if subcommand != "exec" {
        return None;
    }
    let shown = |args: &[String]| args.iter().map(|arg| words::shell(arg)).collect::<Vec<_>>().join(" ");
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(wrong))) if !wrong.starts_with('-') => {
            let at = rest.iter().position(|arg| arg == wrong)?;
            let (flags, command) = rest.split_at(at);
            let command: Vec<String> = command.iter().filter(|arg| *arg != "--").cloned().collect();
            let flags = if flags.is_empty() { "--service NAME --ports PORTS".to_owned() } else { shown(flags) };
            Some(format!("put `--` before the command: pod-steer exec {flags} -- {}", shown(&command)))
        }
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(missing)))
            if missing.iter().any(|missing| missing.contains("COMMAND")) && missing.len() == 1 =>
        {
            Some(format!("no command is given; put it after `--`: pod-steer exec {} -- COMMAND", shown(rest)))
        }
        _ => None,
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Exec(args) => exec::exec(args),
        Command::Register(args) => exec::register(args),
        Command::Status(args) => status::status(&args),
        Command::Top(args) => top::top(&args),
        Command::Web(args) => web::web(&args),
        Command::Deploy(args) => orders::deploy(&args),
        Command::Canary(args) => orders::canary(&args),
        Command::Shift(args) => orders::shift(&args),
        Command::Rollback(args) => orders::plain(&args, &Order::Rollback),
        Command::Drain(args) => orders::drain(&args),
        Command::Resume(args) => orders::resume(&args),
        Command::Pause(args) => orders::pause(&args),
        Command::Unpause(args) => orders::plain(&args, &Order::Unpause),
        Command::Idle(args) => orders::plain(&args, &Order::Idle),
        Command::Wake(args) => orders::plain(&args, &Order::Wake(WakeOrder::default())),
        Command::History(args) => history::history(&args),
        Command::Events(args) => block_on(events(args)),
        Command::Metrics(args) => metrics::metrics(&args),
        Command::Sockets(args) => sockets::sockets(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::Doctor(args) => examine(args),
        Command::Up(args) => up::up(&args),
        Command::Config(command) => config::config(command),
        Command::Unload(args) => unload::unload(args),
        Command::HoldPause => daemon::hold(),
        Command::HoldClients { keep, join } => daemon::hold_clients(match (keep, join) {
            (true, _) => daemon::HoldSource::Keep,
            (_, true) => daemon::HoldSource::Join,
            _ => daemon::HoldSource::Open,
        }),
        Command::Openapi => print(&format!("{}\n", openapi::document())),
        Command::Reference => print(&reference::page()),
        Command::Version => print(&format!("pod-steer {}\n", *version::LINE)),
    }
}

/// Runs one conversation with the daemon.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

async fn events(args: EventsArgs) -> Outcome {
    let mut printed = Ok(());
    let each = |line: &[u8]| {
        let text = match (args.output, serde_json::from_slice::<EventRecord>(line)) {
            (LogFormat::Text, Ok(event)) => describe(&event),
            _ => format!("{}\n", String::from_utf8_lossy(line)),
        };
        printed = print(&text);
        printed.is_ok()
    };
    client::follow(&args.socket.socket, "/v1/events", each).await?;
    printed
}

fn describe(event: &EventRecord) -> String {
    // Print whole seconds.
    let time = event.time.split('.').next().unwrap_or_default();
    let subject = [&event.service, &event.backend].map(String::as_str).join(" ");
    let line = format!("{time}  {:<28}  {}  {}", subject.trim(), event.event, event.detail);
    visible(line.trim_end()).into_owned() + "\n"
}

fn examine(args: DoctorArgs) -> Outcome {
    let args = RunArgs { config: args.config, engine: args.engine, bpffs: args.bpffs, ..RunArgs::default() };
    let config = RunConfig::resolve(args).map_err(|e| Failure::Input(crate::chain(&e)))?;
    let findings = doctor::examine(&config);
    print(&doctor::render(&findings, terminal::colours(&io::stdout())))?;
    if findings.iter().all(|finding| finding.ok || !finding.required) { Ok(()) } else { Err(Failure::Said(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_arguments_are_one_line() {
        let said = |args: &[&str]| one_line(&Cli::try_parse_from(args).unwrap_err());
        assert_eq!(
            said(&["pod-steer", "deploy", "web"]).unwrap(),
            "the following required arguments were not provided: <VERSION>; see --help"
        );
        let backends = said(&["pod-steer", "deploy", "web", "v2", "--backends", "0"]).unwrap();
        assert!(backends.starts_with("invalid value '0' for '--backends <N>'") && backends.lines().count() == 1);
        assert!(said(&["pod-steer", "statsu"]).unwrap().contains("'status'"));
        assert_eq!(said(&["pod-steer", "--help"]), None);
    }

    #[test]
    fn exec_asks_for_a_separator_before_the_command() {
        let said = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(ToString::to_string).collect();
            command_place(&Cli::try_parse_from(&args).unwrap_err(), &args)
        };
        let flags = ["pod-steer", "exec", "--service", "web", "--ports", "80:8080"];
        assert_eq!(
            said(&[&flags[..], &["python3", "-m", "http.server", "two words"]].concat()).unwrap(),
            "put `--` before the command: pod-steer exec --service web --ports 80:8080 -- python3 -m http.server 'two words'"
        );
        assert_eq!(
            said(&["pod-steer", "exec", "ls"]).unwrap(),
            "put `--` before the command: pod-steer exec --service NAME --ports PORTS -- ls"
        );
        assert!(said(&[&flags[..], &["ls", "--", "-l"]].concat()).unwrap().ends_with("--ports 80:8080 -- ls -l"));
        assert!(said(&flags).unwrap().ends_with("--ports 80:8080 -- COMMAND"));
        // Not for a misspelt flag, nor for other commands.
        assert_eq!(said(&["pod-steer", "exec", "--servce", "web", "--", "ls"]), None);
        assert_eq!(said(&["pod-steer", "status", "web", "ls"]), None);
    }

    #[test]
    fn the_version_is_one_plain_line() {
        for args in [["pod-steer", "-V"], ["pod-steer", "--version"]] {
            let error = Cli::try_parse_from(args).unwrap_err();
            assert!(!error.use_stderr(), "the version was requested");
            assert_eq!(error.render().to_string(), format!("pod-steer {}\n", *version::LINE));
        }
        assert!(version::LINE.starts_with(env!("CARGO_PKG_VERSION")) && version::LINE.contains("kernel state"));
    }
}
