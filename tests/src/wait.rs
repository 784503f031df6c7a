//! Waiting for a state instead of for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a state may take before a test fails. Far above the usual times, since no test asserts a time.
pub const STUCK: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(5);

/// Asks until the answer is `Some`. Fails after [`STUCK`] and names the awaited state.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    until_ok(what, || Ok(ask()))
}

/// As [`until`]; an error ends the wait at once.
pub fn until_ok<T>(what: &str, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(STUCK, what, ask)
}

/// The same for a state that takes many commands, each of which takes seconds on a busy machine.
pub fn until_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {limit:?} for {what}");
        }
        thread::sleep(STEP);
    }
}
