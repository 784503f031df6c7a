//! Output of commands: colours and rewritten lines only on a terminal that supports them, and neither a panic nor an error message if the
//! reader of a pipe has exited.

use std::{
    io::{self, IsTerminal, Write as _},
    os::fd::AsFd,
};

use super::{Failure, Outcome};
use crate::text::visible;

/// Columns and rows of a terminal that does not know its own, such as a serial console.
const SIZE_DEFAULT: (u16, u16) = (80, 24);

/// Whether to use colours: on a terminal that is not dumb, without `NO_COLOR` (<https://no-color.org>).
pub(super) fn colours(stream: &impl IsTerminal) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    can_rewrite(stream) && !no_color
}

/// Whether lines can be rewritten.
pub(super) fn can_rewrite(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The width of standard output; `None` if it is not a terminal, where nothing is shortened.
pub(super) fn columns() -> Option<usize> {
    let stdout = io::stdout();
    stdout.is_terminal().then(|| size(&stdout).0.into())
}

/// Columns and rows of a terminal.
pub(super) fn size(terminal: impl AsFd) -> (u16, u16) {
    let known = rustix::termios::tcgetwinsize(terminal).map_or((0, 0), |size| (size.ws_col, size.ws_row));
    let or_default = |number, default| if number == 0 { default } else { number };
    (or_default(known.0, SIZE_DEFAULT.0), or_default(known.1, SIZE_DEFAULT.1))
}

/// Writes to standard output. If the reader of a pipe has exited (`| head`), the command ends quietly.
pub(super) fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Said(0)),
        Err(error) => Err(Failure::Failed(anyhow::Error::new(error).context("cannot write to standard output"))),
    }
}

/// As [`print`], for a command that continues without a reader.
pub(super) fn print_if_read(text: &str) -> Outcome {
    match print(text) {
        Err(Failure::Said(0)) => Ok(()),
        printed => printed,
    }
}

/// Writes to standard error, which may have no reader.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// One line per error on standard error.
pub(super) fn say(text: &str) {
    said("error:", "1;31", text);
}

/// Prints a warning on standard error.
pub(super) fn warn(text: &str) {
    said("warning:", "1;33", text);
}

/// A bar of so many columns, of which this part (0 to 1) is done.
pub(super) fn bar(part: f64, columns: usize) -> String {
    // Half a column more would show an end that is not there yet.
    let done = (part.clamp(0.0, 1.0) * columns as f64).floor() as usize;
    format!("{}{}", "█".repeat(done), "░".repeat(columns - done))
}

fn said(label: &str, code: &str, text: &str) {
    let label = if colours(&io::stderr()) { format!("\x1b[{code}m{label}\x1b[0m") } else { label.to_owned() };
    for line in text.lines() {
        note(&format!("{label} {}", visible(line)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_at_the_end_only() {
        let bars = [0.0, 0.5, 0.99, 1.0, 7.0, f64::NAN].map(|part| bar(part, 4));
        assert_eq!(bars, ["░░░░", "██░░", "███░", "████", "████", "░░░░"]);
    }
}
