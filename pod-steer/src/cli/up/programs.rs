//! Runs `docker` and `docker compose`. An interrupt of the terminal does not reach them: what they have begun is completed, and put back.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow};

/// Longest part of a program's message that is repeated, in bytes.
const MESSAGE_MAX: usize = 600;

/// Runs a program and returns its standard output. The error has its message in one line, and `what` was done.
pub(super) async fn run(words: Vec<String>, what: &'static str) -> Result<String> {
    tokio::task::spawn_blocking(move || run_now(&words, what)).await.context("the thread of a program failed")?
}

fn run_now(words: &[String], what: &str) -> Result<String> {
    let [program, arguments @ ..] = words else { return Err(anyhow!("no program is given")) };
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).process_group(0).output();
    let done = done.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("`{program}` is not installed"),
        _ => anyhow!("cannot run `{program}`: {error}"),
    })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    match message(&String::from_utf8_lossy(&done.stderr)) {
        Some(message) => Err(anyhow!("`{program} {what}` fails: {message}")),
        None => Err(anyhow!("`{program} {what}` fails: {}", done.status)),
    }
}

/// A program's message in one line, without the progress that Compose prints before it.
fn message(stderr: &str) -> Option<String> {
    let is_progress = |line: &&str| {
        let line = line.trim();
        let created = [" Container ", " Network ", " Volume "].iter().any(|kind| format!(" {line} ").contains(kind));
        line.is_empty()
            || line.ends_with("... ")
            || line.ends_with("...")
            || line.ends_with("... done")
            || (created && !line.to_ascii_lowercase().contains("error"))
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
        assert_eq!(message("\n"), None);
        assert!(message(&"ä".repeat(MESSAGE_MAX)).unwrap().len() < MESSAGE_MAX + 10);
    }

    #[test]
    fn the_error_says_which_program_failed_and_why() {
        let said =
            |script: &str| run_now(&["sh", "-c", script].map(String::from), "this").map_err(|error| error.to_string());
        assert_eq!(said("echo 1").unwrap(), "1\n");
        assert_eq!(said("echo broken >&2; exit 1").unwrap_err(), "`sh this` fails: broken");
        assert!(said("exit 3").unwrap_err().contains("exit status: 3"));
        let missing = run_now(&["pod-steer-no-such-program".to_owned()], "").unwrap_err();
        assert_eq!(missing.to_string(), "`pod-steer-no-such-program` is not installed");
    }
}
