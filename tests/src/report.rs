//! Output of tests for their runner: skips, which are counted, and figures.
//!
//! Both go to standard output directly, past the test harness, which shows the output of failed tests only.

use std::{
    fmt::Display,
    io::{self, Write as _},
    thread,
};

/// Prints one measured figure: `FIGURE: label: value`.
pub fn figure(label: &str, value: impl Display) {
    let _ = writeln!(io::stdout().lock(), "FIGURE: {label}: {value}");
}

/// Records that the calling test cannot run: `SKIPPED: test: reason`. With `CI=true` that is a failure.
pub fn skipped(reason: &str) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("?");
    let _ = writeln!(io::stdout().lock(), "SKIPPED: {name}: {reason}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "a test was skipped under CI: {name}: {reason}");
}

/// Ends the calling test as skipped unless its requirement, a `Result<_, String>`, is met.
#[macro_export]
macro_rules! require {
    ($requirement:expr) => {
        if let Err(reason) = $requirement {
            $crate::report::skipped(&reason);
            return Ok(());
        }
    };
}
