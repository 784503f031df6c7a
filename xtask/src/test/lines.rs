//! Reads what the test runners print: what passed, which failed, which said that it could not run. A test says so with
//! a line `SKIPPED: reason`, and passes.

/// One of the two runners' output, line by line.
pub trait Lines: Default {
    /// Takes in a line. `false` when a person need not see it.
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

/// `cargo test -- --show-output`.
#[derive(Default)]
pub struct Libtest {
    counts: Counts,
    ignored: Vec<String>,
    in_successes: bool,
}

impl Lines for Libtest {
    fn read(&mut self, line: &str) -> bool {
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => self.in_successes = false,
            _ => {}
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.in_successes = false;
            let words: Vec<_> = result.split_whitespace().collect();
            let passed = words.windows(2).find(|pair| pair[1] == "passed;").and_then(|pair| pair[0].parse().ok());
            self.counts.passed += passed.unwrap_or(0);
        } else if let Some((name, end)) = line.strip_prefix("test ").and_then(|test| test.rsplit_once(" ... ")) {
            match end {
                "ok" => return false,
                "FAILED" => self.counts.failures.push(name.to_owned()),
                ignored if ignored.starts_with("ignored") => self.ignored.push(format!("{name}: {ignored}")),
                _ => {}
            }
        } else if self.in_successes {
            self.counts.skips.extend(skip_reason(line).map(str::to_owned));
            return !(line.is_empty() || line == "successes:" || line.starts_with("    "));
        }
        true
    }

    fn counts(self) -> Counts {
        let mut counts = self.counts.close();
        counts.skips.extend(self.ignored);
        counts
    }
}

/// `cargo nextest run --success-output immediate`. Each test is a process of its own, whose own harness's lines are
/// left out.
#[derive(Default)]
pub struct Nextest {
    counts: Counts,
    last_passed: bool,
    after_summary: bool,
}

impl Lines for Nextest {
    fn read(&mut self, line: &str) -> bool {
        let text = line.trim();
        if self.after_summary {
            if let Some((_, name)) = text.split_once(") ") {
                self.counts.failures.push(name.to_owned());
            }
        } else if let Some((_, summary)) = text.strip_prefix("Summary [").and_then(|line| line.split_once(": ")) {
            self.after_summary = true;
            let passed = summary.split(' ').next().and_then(|number| number.parse().ok());
            self.counts.passed = passed.unwrap_or(0);
        } else if text.contains("s] (") && !line.starts_with("    ---") {
            self.last_passed = text.starts_with("PASS") || text.starts_with("LEAK");
        } else if self.last_passed {
            self.counts.skips.extend(skip_reason(line).map(str::to_owned));
            return !(text.is_empty()
                || text.starts_with("stdout ──")
                || text == "running 1 test"
                || text.starts_with("test result: ")
                || text.starts_with("test ") && text.ends_with(" ... ok"));
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
────────────
     Summary [   0.166s] 3 tests run: 2 passed, 1 failed, 1 skipped
        FAIL [   0.165s] (3/3) nx bad
error: test run failed",
        );
        let skips = vec!["no kernel 7".to_owned()];
        assert_eq!(counts, Counts { passed: 1, failures: vec!["nx bad".to_owned()], skips });
        assert!(shown.contains(&"    measured 3 ms"));
        assert!(!shown.iter().any(|line| line.contains("test result") || line.contains("running 1")));
    }

    #[test]
    fn libtest_is_understood() {
        let (counts, shown) = read::<Libtest>(
            "running 4 tests
test ign ... ignored
test ok_one ... ok
test bad ... FAILED

successes:

---- ok_one stdout ----
SKIPPED: no kernel 7

successes:
    ok_one
    plain

failures:

---- bad stdout ----
SKIPPED: in a bad one

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.09s",
        );
        let skips = vec!["no kernel 7".to_owned(), "ign: ignored".to_owned()];
        assert_eq!(counts, Counts { passed: 1, failures: vec!["bad".to_owned()], skips });
        assert!(!shown.contains(&"    plain"));
    }
}
