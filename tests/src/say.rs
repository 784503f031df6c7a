//! Output for people: headings, notes, durations, numbers. Colours only on a terminal, and not when `NO_COLOR` is set.

use std::env;
use std::io::{IsTerminal, stdout};
use std::time::Duration;

/// Whether stdout is a terminal that a line may be rewritten on.
pub fn on_terminal() -> bool {
    stdout().is_terminal()
}

/// Whether colours are wanted.
pub fn in_colours() -> bool {
    on_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn paint(text: &str, code: &str) -> String {
    if in_colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Bold on a terminal.
pub fn bold(text: &str) -> String {
    paint(text, "1")
}

/// Green on a terminal.
pub fn green(text: &str) -> String {
    paint(text, "32")
}

/// Red on a terminal.
pub fn red(text: &str) -> String {
    paint(text, "31")
}

/// The start of something that takes a while.
pub fn heading(text: &str) {
    println!("\n{}", bold(&format!("== {text}")));
}

/// One line about progress.
pub fn note(text: &str) {
    println!("   {text}");
}

/// `0.4 s`, `12.3 s`, `3 min 5 s`.
pub fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 request`, `2 requests`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        let shown = [0, 7, 999, 1_000, 12_345, 123_456, 1_234_567].map(thousands);
        assert_eq!(shown, ["0", "7", "999", "1,000", "12,345", "123,456", "1,234,567"]);
        assert_eq!(count(1, "failure"), "1 failure");
        assert_eq!(count(0, "failure"), "0 failures");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(elapsed(Duration::from_millis(420)), "0.4 s");
        assert_eq!(elapsed(Duration::from_secs(185)), "3 min 5 s");
    }
}
