//! Reads the output of the test runners: tests that passed, failed or skipped themselves. A skipped test prints a line
//! `SKIPPED: reason` and passes.

use std::collections::BTreeMap;

/// One of the two runners' output, line by line.
pub trait Lines: Default {
    /// Reads a line. `false` if it need not be shown.
    fn read(&mut self, line: &str) -> bool;
    fn counts(self) -> Counts;
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failures: Vec<String>,
    pub skips: Vec<String>,
}

impl Counts {
    /// The runners count a test that skipped itself as passed.
    fn close(mut self) -> Self {
        self.passed = self.passed.saturating_sub(self.skips.len() as u64);
        self
    }
}

fn skip_reason(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("SKIPPED: ")
}

/// `cargo test -- --show-output`. A skip bypasses the harness, so it may be at the end of the harness's own line.
#[derive(Default)]
pub struct Libtest {
    counts: Counts,
    ignored: Vec<String>,
    part: Part,
}

/// The parts of a test program's output.
#[derive(Default, PartialEq)]
enum Part {
    #[default]
    Running,
    Successes,
    Failures,
}

impl Lines for Libtest {
    fn read(&mut self, line: &str) -> bool {
        match line {
            "successes:" => self.part = Part::Successes,
            "failures:" => self.part = Part::Failures,
            _ => {}
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.part = Part::Running;
            let words: Vec<_> = result.split_whitespace().collect();
            let passed = words.windows(2).find(|pair| pair[1] == "passed;").and_then(|pair| pair[0].parse().ok());
            self.counts.passed += passed.unwrap_or(0);
            // Most programs have no tests.
            return !result.starts_with("ok. 0 passed");
        }
        match self.part {
            Part::Running => {
                let test = line.strip_prefix("test ").and_then(|test| test.split_once(" ... "));
                let (name, end) = test.unwrap_or(("", line));
                self.counts.skips.extend(skip_reason(end).map(str::to_owned));
                if end.starts_with("ignored") {
                    self.ignored.push(format!("{name}: {end}"));
                }
                !(end == "ok" || line.is_empty() || line.starts_with("running ") || line.starts_with("     Running "))
            }
            Part::Successes => {
                self.counts.skips.extend(skip_reason(line).map(str::to_owned));
                !(line.is_empty() || line == "successes:" || line.starts_with("    "))
            }
            Part::Failures => {
                let name = line.strip_prefix("    ").filter(|name| !name.contains(' '));
                self.counts.failures.extend(name.map(str::to_owned));
                true
            }
        }
    }

    fn counts(self) -> Counts {
        let mut counts = self.counts;
        // Under CI a test that skips itself fails, and counts as failed.
        let failed = |reason: &str| counts.failures.iter().any(|name| reason.starts_with(&format!("{name}: ")));
        counts.skips.retain(|reason| !failed(reason));
        counts = counts.close();
        counts.skips.extend(self.ignored);
        counts
    }
}

/// `cargo nextest run --success-output immediate`. Each test is a process of its own; the lines of its own harness are left out.
#[derive(Default)]
pub struct Nextest {
    counts: Counts,
    last_passed: bool,
    after_summary: bool,
    /// The test whose output is being read, if it has failed, and what it said: its error, and the causes of that.
    failing: String,
    errors: BTreeMap<String, String>,
    is_cause: bool,
}

impl Nextest {
    /// Reads a line that a failed test has written.
    fn read_of_failed(&mut self, text: &str) {
        let said = self.errors.entry(self.failing.clone()).or_default();
        let is_error = said.is_empty() && (text.starts_with("Error: ") || text.contains(" panicked at "));
        if is_error || self.is_cause {
            let separator = if said.is_empty() { "" } else { "; " };
            said.extend([separator, text]);
        }
        self.is_cause = text == "Caused by:";
    }
}

impl Lines for Nextest {
    fn read(&mut self, line: &str) -> bool {
        let text = line.trim();
        if self.after_summary {
            if let Some((_, name)) = text.split_once(") ") {
                let error = self.errors.get(name).filter(|error| !error.is_empty());
                self.counts.failures.push(error.map_or_else(|| name.to_owned(), |error| format!("{name}: {error}")));
            }
        } else if let Some((_, summary)) = text.strip_prefix("Summary [").and_then(|line| line.split_once(": ")) {
            self.after_summary = true;
            let passed = summary.split(' ').next().and_then(|number| number.parse().ok());
            self.counts.passed = passed.unwrap_or(0);
        } else if text.contains("s] (") && !line.starts_with("    ---") {
            self.last_passed = text.starts_with("PASS") || text.starts_with("LEAK");
            self.failing = text.split_once(") ").map_or("", |(_, name)| name).to_owned();
        } else if self.last_passed {
            self.counts.skips.extend(skip_reason(line).map(str::to_owned));
            return !(text.is_empty()
                || text.starts_with("stdout ──")
                || text == "running 1 test"
                || text.starts_with("test result: ")
                || text.starts_with("test ") && text.ends_with(" ... ok"));
        } else {
            self.read_of_failed(text);
        }
        true
    }

    fn counts(self) -> Counts {
        self.counts.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<L: Lines>(text: &str) -> (Counts, Vec<&str>) {
        let mut lines = L::default();
        let shown = text.lines().filter(|line| lines.read(line)).collect();
        (lines.counts(), shown)
    }

    #[test]
    fn nextest_is_understood() {
        let (counts, shown) = read::<Nextest>(
            "    Starting 3 tests across 1 binary (1 test skipped)
        PASS [   0.007s] (1/3) nx ok_one
  stdout ───

    running 1 test
    measured 3 ms
    SKIPPED: no kernel 7
    test ok_one ... ok

    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s


        PASS [   0.007s] (2/3) nx plain
        FAIL [   0.165s] (3/3) nx bad
  stdout ───
    SKIPPED: in a bad one
    Error: last status:
    web

    Caused by:
        waited 30 s for web
────────────
     Summary [   0.166s] 3 tests run: 2 passed, 1 failed, 1 skipped
        FAIL [   0.165s] (3/3) nx bad
error: test run failed",
        );
        let skips = vec!["no kernel 7".to_owned()];
        let failures = vec!["nx bad: Error: last status:; waited 30 s for web".to_owned()];
        assert_eq!(counts, Counts { passed: 1, failures, skips });
        assert!(shown.contains(&"    measured 3 ms"));
        assert!(!shown.iter().any(|line| line.contains("test result") || line.contains("running 1")));
    }

    #[test]
    fn libtest_is_understood() {
        let (counts, shown) = read::<Libtest>(
            "running 5 tests
test ign ... ignored
test ok_one ... ok
test ok_two ... SKIPPED: ok_two: no nginx
ok
test bad ... SKIPPED: bad: no root
FAILED

successes:

---- ok_one stdout ----
SKIPPED: no kernel 7

successes:
    ok_one
    plain

failures:

---- bad stdout ----
thread 'bad' panicked at src/lib.rs:1:1:
   0: rust_begin_unwind


failures:
    bad

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.09s",
        );
        let skips = ["ok_two: no nginx", "no kernel 7", "ign: ignored"].map(str::to_owned).to_vec();
        assert_eq!(counts, Counts { passed: 1, failures: vec!["bad".to_owned()], skips });
        assert!(!shown.contains(&"    plain") && !shown.contains(&"ok"));
    }
}
