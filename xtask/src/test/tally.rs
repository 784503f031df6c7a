//! Counts of passed, failed and skipped tests and checks.

use std::env;
use std::process::ExitCode;

use crate::say;

/// Counts checks and tests alike.
#[derive(Default)]
pub struct Tally {
    passed: u64,
    failures: Vec<String>,
    /// Tests that failed beside others and passed alone, with the error of the first run.
    unsteady: Vec<String>,
    skips: Vec<String>,
    /// In CI a skip is a failure.
    skips_fail: bool,
}

impl Tally {
    pub fn from_environment() -> Self {
        Self { skips_fail: env::var("CI").is_ok_and(|value| value == "true"), ..Self::default() }
    }

    pub fn pass(&mut self) {
        self.passed += 1;
    }

    pub fn fail(&mut self, name: &str) {
        self.failures.push(name.to_owned());
    }

    /// Tells of a test, which was counted when it passed.
    pub fn unsteady(&mut self, name: &str) {
        self.unsteady.push(name.to_owned());
    }

    pub fn skip(&mut self, reason: &str) {
        self.skips.push(reason.to_owned());
    }

    /// The last line has only the counts, for programs that read it.
    fn last_line(&self) -> String {
        let failed = self.failures.len() + if self.skips_fail { self.skips.len() } else { 0 };
        format!("{} passed, {failed} failed, {} skipped", self.passed, self.skips.len())
    }

    fn is_good(&self) -> bool {
        self.failures.is_empty() && (self.skips.is_empty() || !self.skips_fail)
    }

    /// Prints what failed, at least once, and what was skipped, then the last line.
    pub fn close(&self) -> ExitCode {
        say::heading("result");
        for failure in &self.failures {
            println!("{} {failure}", say::red("failed:"));
        }
        for first in &self.unsteady {
            println!("{} failed beside others, passed alone: {first}", say::red("unsteady:"));
        }
        for reason in &self.skips {
            println!("skipped: {reason}");
        }
        if self.skips_fail && !self.skips.is_empty() {
            println!("{} with CI=true a skip is a failure", say::red("failed:"));
        }
        println!("{}", self.last_line());
        if self.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_a_failure_only_in_ci() {
        let mut tally = Tally::default();
        tally.pass();
        tally.skip("no kernel");
        assert!(tally.is_good());
        assert_eq!(tally.last_line(), "1 passed, 0 failed, 1 skipped");
        tally.skips_fail = true;
        assert!(!tally.is_good());
        assert_eq!(tally.last_line(), "1 passed, 1 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_passes_alone_is_counted_once() {
        let mut tally = Tally::default();
        tally.pass();
        tally.unsteady("a test: its error");
        assert!(tally.is_good());
        assert_eq!(tally.last_line(), "1 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn a_failure_is_a_failure_everywhere() {
        let mut tally = Tally::default();
        tally.fail("format");
        assert!(!tally.is_good());
        assert_eq!(tally.last_line(), "0 passed, 1 failed, 0 skipped");
    }
}
