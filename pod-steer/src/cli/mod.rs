//! The command line: each command asks the daemon and prints its answer. Exit codes: 0 it worked, 1 it failed, 2 the
//! input was wrong and nothing was changed, 3 traffic has moved and connections were left behind at the deadline.

pub mod args;
mod decisions;
mod exec;
mod follow;
mod given;
mod history;
mod orders;
mod run;
mod status;
mod table;
mod unload;
mod words;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser as _;

use crate::{
    api::{
        client::{self, ClientError},
        openapi,
        types::EventRecord,
    },
    daemon, doctor,
    rollout::Order,
};
use args::{Cli, Command, EventsArgs, LogFormat};

/// Why a command ended without success.
#[derive(Debug)]
enum Failure {
    /// It failed while it ran.
    Failed(anyhow::Error),
    /// What was asked is wrong.
    Input(String),
    /// The message is printed already.
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
            match one_line(&error) {
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

/// What is wrong with the arguments, and what is there instead; nothing if help was asked for.
fn one_line(error: &clap::Error) -> Option<String> {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let wrong = paragraphs.next()?.strip_prefix("error: ")?;
    let tips = paragraphs.filter_map(|paragraph| paragraph.trim_start().strip_prefix("tip: "));
    let parts = [wrong].into_iter().chain(tips).map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    Some(parts.chain(["see --help".to_owned()]).collect::<Vec<_>>().join("; "))
}

/// One line per problem on stderr.
fn say(text: &str) {
    let (on, off) = if std::io::stderr().is_terminal() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    for line in text.lines() {
        eprintln!("{on}error:{off} {line}");
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Exec(args) => exec::exec(args),
        Command::Register(args) => exec::register(args),
        Command::Status(args) => status::status(&args),
        Command::Deploy(args) => orders::deploy(&args),
        Command::Canary(args) => orders::canary(&args),
        Command::Shift(args) => orders::shift(&args),
        Command::Rollback(args) => orders::plain(&args, &Order::Rollback),
        Command::Drain(args) => orders::drain(args),
        Command::Resume(args) => orders::resume(args),
        Command::Pause(args) => orders::plain(&args, &Order::Pause),
        Command::Unpause(args) => orders::plain(&args, &Order::Unpause),
        Command::History(args) => history::history(&args),
        Command::Events(args) => block_on(events(args)),
        Command::Doctor => examine(),
        Command::Unload(args) => unload::unload(&args),
        Command::HoldPause => daemon::hold(),
        Command::Openapi => print(&format!("{}\n", openapi::document())),
        Command::Version => print(&format!("pod-steer {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

/// Runs one conversation with the daemon.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Writes to stdout; a reader that has gone (`| head`) ends the command quietly.
fn print(text: &str) -> Outcome {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::Said(0)),
        other => Ok(other?),
    }
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
    // Whole seconds are enough for people.
    let time = event.time.split('.').next().unwrap_or_default();
    let subject = [&event.service, &event.backend].map(String::as_str).join(" ");
    format!("{time}  {:<28}  {}  {}", subject.trim(), event.event, event.detail).trim_end().to_owned() + "\n"
}

fn examine() -> Outcome {
    let findings = doctor::examine();
    let style = std::io::stdout().is_terminal();
    print(&doctor::render(&findings, style))?;
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
}
