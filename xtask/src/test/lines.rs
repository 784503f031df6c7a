//! Reads the output of tests: which passed, failed or skipped themselves. A skipped test prints a line `SKIPPED: reason` and passes.

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

impl Libtest {
    /// Reads a line. `false` if it need not be shown.
    pub fn read(&mut self, line: &str) -> bool {
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

    pub fn counts(self) -> Counts {
        let mut counts = self.counts;
        // Under CI a test that skips itself fails, and counts as failed.
        let failed = |reason: &str| counts.failures.iter().any(|name| reason.starts_with(&format!("{name}: ")));
        counts.skips.retain(|reason| !failed(reason));
        counts = counts.close();
        counts.skips.extend(self.ignored);
        counts
    }
}

/// Whether the harness says that the one test has passed, or the test that it has skipped itself.
pub fn has_passed(output: &str) -> bool {
    output.lines().any(|line| line.starts_with("test result: ok. 1 passed; 0 failed")) || skips(output).next().is_some()
}

/// The reasons for which a test that passed has skipped itself, by the output of its own process.
pub fn skips(output: &str) -> impl Iterator<Item = String> {
    output.lines().filter_map(skip_reason).map(str::to_owned)
}

/// The same output without the lines of its harness.
pub fn without_harness(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter(|line| {
        !(line.is_empty()
            || *line == "running 1 test"
            || line.starts_with("test result: ")
            || line.starts_with("test ") && line.ends_with(" ... ok"))
    })
}

/// What a failed test says: its error, and the causes of that.
pub fn error(output: &str) -> Option<String> {
    let mut lines = output.lines().map(str::trim);
    let first = lines.find(|line| line.starts_with("Error: ") || line.contains(" panicked at "))?;
    let mut said = first.to_owned();
    while lines.any(|line| line == "Caused by:") {
        said.extend(lines.next().into_iter().flat_map(|cause| ["; ", cause]));
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_one_test_is_understood() {
        let passed = "
running 1 test
measured 3 ms
SKIPPED: no kernel 7
test ok_one ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s
";
        assert_eq!(without_harness(passed).collect::<Vec<_>>(), ["measured 3 ms", "SKIPPED: no kernel 7"]);
        assert_eq!(skips(passed).collect::<Vec<_>>(), ["no kernel 7"]);
        assert!(has_passed(passed) && has_passed("SKIPPED: no kernel 7"));
        assert!(!has_passed("running 1 test\ntest a ... ignored\n\ntest result: ok. 0 passed; 0 failed; 1 ignored"));
        assert_eq!(error(passed), None);
        let failed = "Error: last status:\nweb\n\nCaused by:\n    waited 30 s for web\n\nStack backtrace:\n   0: main";
        assert_eq!(error(failed).as_deref(), Some("Error: last status:; waited 30 s for web"));
        let panicked = "thread 'a' panicked at src/lib.rs:1:1:\nnote: run with";
        assert_eq!(error(panicked).as_deref(), Some("thread 'a' panicked at src/lib.rs:1:1:"));
    }

    #[test]
    fn libtest_is_understood() {
        let mut lines = Libtest::default();
        let text = "running 5 tests
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

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.09s";
        let shown: Vec<&str> = text.lines().filter(|line| lines.read(line)).collect();
        let counts = lines.counts();
        let skips = ["ok_two: no nginx", "no kernel 7", "ign: ignored"].map(str::to_owned).to_vec();
        assert_eq!(counts, Counts { passed: 1, failures: vec!["bad".to_owned()], skips });
        assert!(!shown.contains(&"    plain") && !shown.contains(&"ok"));
    }
}
