//! Runs `docker` and `docker compose`. An interrupt of the terminal does not reach them: what they have begun is completed, and put back.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow};

/// Longest part of a program's message that is repeated, in bytes.
const MESSAGE_MAX: usize = 600;

/// Settings of Compose that its messages, and containers of other services, depend on.
const ENVIRONMENT: [(&str, &str); 3] =
    [("COMPOSE_ANSI", "never"), ("COMPOSE_PROGRESS", "plain"), ("COMPOSE_REMOVE_ORPHANS", "false")];

/// What a program has printed.
#[derive(Debug)]
pub(super) struct Printed {
    /// On standard output.
    pub output: String,
    /// On standard error.
    pub messages: String,
}

/// Runs a program and returns its standard output. The error has its message in one line, and `what` was done.
pub(super) async fn run(words: Vec<String>, what: &'static str) -> Result<String> {
    Ok(run_for_all(words, what).await?.output)
}

/// The same, and returns its standard error too.
pub(super) async fn run_for_all(words: Vec<String>, what: &'static str) -> Result<Printed> {
    tokio::task::spawn_blocking(move || run_now(&words, what)).await.context("the thread of a program failed")?
}

fn run_now(words: &[String], what: &str) -> Result<Printed> {
    let [program, arguments @ ..] = words else { return Err(anyhow!("no program is given")) };
    let named = match arguments {
        [plugin, ..] if plugin == "compose" => format!("{program} {plugin}"),
        _ => program.clone(),
    };
    let mut command = Command::new(program);
    let done = command.args(arguments).envs(ENVIRONMENT).stdin(Stdio::null()).process_group(0).output();
    let done = done.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("`{program}` is not installed"),
        _ => anyhow!("cannot run `{program}`: {error}"),
    })?;
    if done.status.success() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return Ok(Printed { output: text(&done.stdout), messages: text(&done.stderr) });
    }
    match message(&String::from_utf8_lossy(&done.stderr)) {
        Some(message) => Err(anyhow!("`{named} {what}` fails: {message}")),
        None => Err(anyhow!("`{named} {what}` fails: {}", done.status)),
    }
}

/// A program's message in one line, without the progress that Compose prints before it.
fn message(stderr: &str) -> Option<String> {
    let is_progress = |line: &&str| {
        let line = line.trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        let created = matches!(words[..], ["Container" | "Network" | "Volume", _, state] if state != "Error");
        line.is_empty()
            || (line.starts_with("time=\"") && line.contains(" level=warning "))
            || line.ends_with("... ")
            || line.ends_with("...")
            || line.ends_with("... done")
            || created
    };
    let lines: Vec<&str> = stderr.lines().filter(|line| !is_progress(line)).map(str::trim).collect();
    let mut text = lines.join(" ");
    if text.len() > MESSAGE_MAX {
        let start = text.ceil_char_boundary(text.len() - MESSAGE_MAX);
        text = format!("... {}", &text[start..]);
    }
    let text = text.trim_start_matches("ERROR: ").trim_start_matches("Error response from daemon: ").to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_without_progress() {
        let of_compose = "Creating p_web_2 ... \nCreating p_web_2 ... done\nERROR: for web  no such image\nadd it\n";
        assert_eq!(message(of_compose).unwrap(), "for web  no such image add it");
        assert_eq!(message(" Container p-web-2  Creating\nError response from daemon: no\n").unwrap(), "no");
        let warned = "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"Found orphan containers\"\nno such image\n";
        assert_eq!(message(warned).unwrap(), "no such image");
        let changed = "Network \"shop_front\" needs to be recreated - option \"mtu\" has changed";
        assert_eq!(message(&format!(" Network shop_front  Created\n{changed}\n")).unwrap(), changed);
        assert_eq!(message("\n"), None);
        assert!(message(&"ä".repeat(MESSAGE_MAX)).unwrap().len() < MESSAGE_MAX + 10);
    }

    #[test]
    fn the_error_says_which_program_failed_and_why() {
        let said = |script: &str| {
            run_now(&["sh", "-c", script].map(String::from), "this")
                .map(|done| done.output)
                .map_err(|error| error.to_string())
        };
        assert_eq!(said("echo 1").unwrap(), "1\n");
        assert_eq!(said("echo broken >&2; exit 1").unwrap_err(), "`sh this` fails: broken");
        assert!(said("exit 3").unwrap_err().contains("exit status: 3"));
        let missing = run_now(&["pod-steer-no-such-program".to_owned()], "").unwrap_err();
        assert_eq!(missing.to_string(), "`pod-steer-no-such-program` is not installed");
    }
}
