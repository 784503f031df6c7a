//! One target under libFuzzer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cmd::{command, output, shown};
use crate::{paths, say};

/// Longest time that one input may take.
const INPUT_SECONDS_MAX: u64 = 20;
/// Most memory that a target may take.
const MEMORY_MB_MAX: u64 = 1024;
/// Longest input that libFuzzer makes.
const INPUT_BYTES_MAX: u64 = 4096;
/// Most inputs of one target that libFuzzer made and the repository keeps.
const KEPT_MAX: usize = 40;
/// Lines of libFuzzer's output that an error shows: the panic and its backtrace.
const LINES_SHOWN: usize = 60;

/// See the module.
pub struct Run {
    /// The target's name.
    pub target: String,
    /// The program with all targets.
    pub program: PathBuf,
    /// The directory for its files.
    pub scratch: PathBuf,
}

impl Run {
    /// Runs the target for so many seconds.
    pub fn fuzz(&self, seconds: u64) -> Result<()> {
        let (new, found, log) = (self.below("new"), self.below("found"), self.below("log"));
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new)?;
        fs::create_dir_all(&found)?;
        let mut fuzz = self.program();
        // New inputs go to the first directory.
        fuzz.arg(&new).args(self.kept()).arg(format!("-max_total_time={seconds}"));
        fuzz.arg(format!("-artifact_prefix={}/", found.display()));
        fuzz.args([format!("-max_len={INPUT_BYTES_MAX}"), "-print_final_stats=1".to_owned()]);
        fuzz.arg(format!("-dict={}", paths::root().join("tests/fuzz/words.dict").display()));
        fs::create_dir_all(log.parent().context("the log is in a directory")?)?;
        fuzz.stdout(Stdio::null()).stderr(File::create(&log)?);
        let status = fuzz.status().with_context(|| format!("cannot start `{}`", shown(&fuzz)))?;
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if !status.success() {
            bail!("{}", self.failure(&said));
        }
        let (Some(edges), Some(runs)) = (edges(&said), stat(&said, "number_of_executed_units")) else {
            bail!("libFuzzer's output for {} lacks its figures: see {}", self.target, log.display());
        };
        ensure!(edges > 0, "{} has no coverage counters: see {}", self.target, log.display());
        let (runs, edges) = (say::count(runs, "run"), say::count(edges, "edge"));
        say::note(&format!("{:8} {runs}, {edges} reached", self.target));
        Ok(())
    }

    /// Runs one input.
    pub fn repeat(&self, input: &Path) -> Result<()> {
        let mut fuzz = self.program();
        fuzz.arg(input);
        let status = fuzz.status().with_context(|| format!("cannot start `{}`", shown(&fuzz)))?;
        ensure!(status.success(), "{} fails with {}", self.target, input.display());
        Ok(())
    }

    /// Puts a minimal set of the shortest inputs that reach the same code into the repository, beside those that people have written.
    pub fn keep(&self) -> Result<()> {
        let (least, corpus) = (self.below("least"), self.corpus());
        let _ = fs::remove_dir_all(&least);
        fs::create_dir_all(&least)?;
        let mut merge = self.program();
        // Only whether code was reached counts here, not how often.
        merge.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&least).args(self.kept()).arg(self.below("new"));
        output(&mut merge)?;
        for old in files(&corpus)?.into_iter().filter(|file| is_made(file)) {
            fs::remove_file(old)?;
        }
        let mut made = files(&least)?;
        made.sort_by_cached_key(|file| fs::metadata(file).map_or(u64::MAX, |metadata| metadata.len()));
        for file in made.iter().take(KEPT_MAX) {
            fs::copy(file, corpus.join(file.file_name().unwrap_or_default()))?;
        }
        say::note(&format!("{:8} {} inputs kept", self.target, files(&corpus)?.len()));
        Ok(())
    }

    fn program(&self) -> Command {
        let mut program = command(&self.program);
        program.env("POD_STEER_FUZZ_TARGET", &self.target).env("TMPDIR", &self.scratch).env("RUST_BACKTRACE", "1");
        program.args([format!("-timeout={INPUT_SECONDS_MAX}"), format!("-rss_limit_mb={MEMORY_MB_MAX}")]);
        program
    }

    fn below(&self, what: &str) -> PathBuf {
        paths::target().join("fuzz").join(what).join(&self.target)
    }

    fn corpus(&self) -> PathBuf {
        paths::root().join("tests/fuzz/corpus").join(&self.target)
    }

    /// The directories of inputs in the repository.
    fn kept(&self) -> Vec<PathBuf> {
        let regressions = paths::root().join("tests/fuzz/regressions").join(&self.target);
        [self.corpus(), regressions].into_iter().filter(|directory| directory.is_dir()).collect()
    }

    fn failure(&self, said: &str) -> String {
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
        let shown = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        match input(said) {
            Some(input) => format!(
                "{shown}\n{0} fails with the input {input}\nrepeat it: cargo xtask fuzz --target {0} --input {input}\n\
                 when it is mended, keep the input: tests/fuzz/regressions/{0}",
                self.target
            ),
            None => format!("{shown}\n{} fails without an input", self.target),
        }
    }
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    Ok(entries.collect::<Result<Vec<_>, _>>()?.into_iter().map(|entry| entry.path()).collect())
}

/// Whether libFuzzer made an input: its name is a hash.
fn is_made(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().as_encoded_bytes();
    name.len() == 40 && name.iter().all(u8::is_ascii_hexdigit)
}

/// The input that libFuzzer has written, relative to the repository.
fn input(said: &str) -> Option<String> {
    let path = said.lines().rev().find_map(|line| line.split_once("Test unit written to "))?.1;
    let root = paths::root();
    Some(Path::new(path).strip_prefix(&root).map_or(path.to_owned(), |path| path.to_string_lossy().into_owned()))
}

/// How many edges of the code were reached, from the last line with that number.
fn edges(said: &str) -> Option<u64> {
    said.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split_whitespace().next()?.parse().ok())
}

/// One of the figures at the end.
fn stat(said: &str, name: &str) -> Option<u64> {
    let of_name =
        |line: &str| line.strip_prefix("stat::")?.strip_prefix(name)?.trim_start_matches(':').trim().parse().ok();
    said.lines().find_map(of_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "INFO: Loaded 1 modules   (350 inline 8-bit counters)
#2\tINITED cov: 1234 ft: 2000 corp: 40/1200b exec/s: 0 rss: 50Mb
#4096\tpulse  cov: 1301 ft: 2100 corp: 41/1200b lim: 80 exec/s: 2048 rss: 50Mb
artifact_prefix='/x/'; Test unit written to /x/found/api/crash-0a
stat::number_of_executed_units: 4711
stat::peak_rss_mb:              60";

    #[test]
    fn what_libfuzzer_says_is_understood() {
        assert_eq!((edges(SAID), stat(SAID, "number_of_executed_units")), (Some(1301), Some(4711)));
        assert_eq!(input(SAID).as_deref(), Some("/x/found/api/crash-0a"));
        assert_eq!((edges(""), stat("", "peak_rss_mb"), input("")), (None, None, None));
    }
}
