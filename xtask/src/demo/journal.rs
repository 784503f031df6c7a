//! A server's record of the connections that it accepted. It survives a `kill -9`, and tells which requests were inside the server when
//! it died. Those are lost with it; another server must answer all others.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

#[derive(Debug, PartialEq, Eq)]
pub struct Journal {
    pub accepted: u64,
    /// It died between `accept` and its record: there may be one more connection.
    pub maybe_one_more: bool,
}

pub fn read(path: &Path) -> Result<Journal> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse(&text))
}

/// Each record is `?`, written before `accept`, and then the client's address or `-`, and a line feed.
fn parse(text: &str) -> Journal {
    let accepted = text.lines().filter(|line| !matches!(line.trim_start_matches('?'), "" | "-")).count();
    Journal { accepted: accepted as u64, maybe_one_more: text.ends_with('?') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_understood() {
        let died_between = parse("?127.0.0.1:4000\n?-\n?127.0.0.1:4001\n?");
        assert_eq!(died_between, Journal { accepted: 2, maybe_one_more: true });
        assert_eq!(parse(""), Journal { accepted: 0, maybe_one_more: false });
    }
}
