//! The project's own rules about its files, beyond rustfmt and clippy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{house, modules, named};
use crate::paths;

/// A longer file should be split.
const LINES_MAX: usize = 400;

/// Places where `unsafe` is allowed: the kernel programs, the modules that make system calls, and the tests' fixtures, which create
/// namespaces and fork.
const UNSAFE_IN: [&str; 4] = ["pod-steer-ebpf/src/", "pod-steer/src/kernel/", "pod-steer/src/sys.rs", "tests/src/"];

/// The crate that decides. It must do no I/O.
const PURE_IN: &str = "pod-steer-model/src/";
/// Ways to do I/O.
const IMPURE: [&str; 8] =
    ["std::fs", "std::io", "std::env", "std::process", "std::thread", "SystemTime", "Instant", "Timestamp::now"];

/// Directories of one machine. Written in two halves, so that this file follows its own rule.
const MACHINE_PATHS: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

/// Checks every file; the error lists what is not in order.
pub fn tidy() -> Result<()> {
    let (mut complaints, mut sources, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    let root = paths::root();
    let names = |file: PathBuf| Ok(file.strip_prefix(&root)?.to_string_lossy().into_owned());
    let files: Vec<String> = files(&root)?.into_iter().map(names).collect::<Result<_>>()?;
    for name in &files {
        // The rules apply to text files only.
        let Ok(text) = fs::read_to_string(root.join(name)) else { continue };
        complaints.extend(complaints_about(name, &text).into_iter().map(|what| format!("{name}{what}")));
        if name.ends_with(".md") {
            let missing = named::missing(name, &text, &files).into_iter();
            complaints.extend(missing.map(|(line, what)| format!("{name}:{line}: there is no {what}")));
            documents.push((name.clone(), text));
        } else if name.ends_with(".rs") {
            sources.push((name.clone(), text));
        }
    }
    let functions = sources.iter().flat_map(|(_, text)| named::functions(text)).collect();
    for (name, text) in &documents {
        let missing = named::missing_tests(text, &functions).into_iter();
        complaints.extend(missing.map(|(line, what)| format!("{name}:{line}: there is no test {what}")));
    }
    complaints.extend(modules::circles(&sources));
    complaints.extend(house::faults(&sources));
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{}", complaints.join("\n"))
}

/// Inputs of the fuzz targets, which may be any bytes.
const INPUTS: [&str; 2] = ["tests/fuzz/corpus", "tests/fuzz/regressions"];

/// All files but built ones, hidden ones and inputs; of the hidden directories, only those with the project's settings. A second
/// worktree has a file `.git`.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        let ours = !name.starts_with('.') || [".cargo", ".ci", ".config"].contains(&name.as_str());
        let is_input = INPUTS.iter().any(|inputs| entry.path().ends_with(inputs));
        if kind.is_dir() && ours && name != "target" && !is_input {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() && ![".git", "Cargo.lock"].contains(&name.as_str()) && !name.starts_with("LICENSE") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn complaints_about(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let is_rust = name.ends_with(".rs");
    for (number, line) in (1..).zip(text.lines()) {
        let mut complain = |what: &str| complaints.push(format!(":{number}: {what}"));
        if line.ends_with([' ', '\t']) {
            complain("space at the end of the line");
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| names_directory(line, path)) {
            complain(&format!("{path} is a path of one machine"));
        }
        if is_rust && line.trim_start().starts_with(concat!("#[", "ignore")) {
            complain("a test that cannot run prints `SKIPPED: reason`, so that it is counted");
        }
        if is_rust && !UNSAFE_IN.iter().any(|dir| name.starts_with(dir)) && says_unsafe(line) {
            complain(&format!("`unsafe` stands only below {}", UNSAFE_IN.join(", ")));
        }
        if name.starts_with(PURE_IN) && IMPURE.iter().any(|way| line.contains(way)) {
            complain("the model asks the machine nothing: bring the value in");
        }
    }
    let lines = text.lines().count();
    if is_rust && lines > LINES_MAX {
        complaints.push(format!(": {lines} lines, more than {LINES_MAX}: make it two files"));
    }
    if !text.is_empty() && !text.ends_with('\n') {
        complaints.push(": no line feed at the end".to_owned());
    }
    if name.ends_with("/mod.rs") && !text.starts_with("//!") {
        complaints.push(": does not start by saying (`//!`) what lives in this folder, and what may not".to_owned());
    }
    complaints
}

/// Whether the line has this absolute path, not merely a relative one that ends alike.
fn names_directory(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|letter| letter.is_alphanumeric() || "-_.}~/".contains(letter))
    })
}

/// Whether `unsafe` is a word of the code in this line: not of a comment, a string, or a longer name.
fn says_unsafe(line: &str) -> bool {
    let code = line.replace("\\\"", "");
    let outside_strings = code.split("//").next().unwrap_or_default().split('"').step_by(2);
    let word = |letter: char| letter.is_alphanumeric() || letter == '_';
    outside_strings.flat_map(|code| code.split(|letter| !word(letter))).any(|name| name == concat!("uns", "afe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_is_found_in_code_only() {
        assert!(says_unsafe("    unsafe { call() }"));
        assert!(says_unsafe("unsafe extern \"C\" fn f() {}"));
        assert!(!says_unsafe("#![forbid(unsafe_code)]"));
        assert!(!says_unsafe("let x = 1; // unsafe otherwise"));
        assert!(!says_unsafe("say(\"unsafe\")"));
        assert!(complaints_about("pod-steer/src/kernel/sys.rs", "unsafe { call() }\n").is_empty());
        assert_eq!(complaints_about("pod-steer/src/cli.rs", "unsafe { call() }\n").len(), 1);
    }

    #[test]
    fn this_repository_is_tidy() -> Result<()> {
        tidy()
    }

    #[test]
    fn the_model_asks_nothing() {
        let of = |path, line| complaints_about(path, line).len();
        assert_eq!(of("pod-steer-model/src/world/plan.rs", concat!("use std::", "fs;\n")), 1);
        assert_eq!(of("pod-steer/src/netns.rs", concat!("use std::", "fs;\n")), 0);
    }

    #[test]
    fn machine_paths_are_found() {
        let found = |text: String| !complaints_about("README.md", &text).is_empty();
        assert!(found(concat!("see /wo", "rk/main\n").to_owned()));
        assert!(!found(concat!("see frame/wo", "rk/main\n").to_owned()));
    }

    #[test]
    fn long_files_are_found() {
        let text = "// line\n".repeat(LINES_MAX + 1);
        assert_eq!(complaints_about("tests/src/lib.rs", &text).len(), 1);
        assert!(complaints_about("docs/long.md", &text).is_empty());
    }

    #[test]
    fn folders_say_what_they_hold() {
        assert_eq!(complaints_about("xtask/src/demo/mod.rs", "mod load;\n").len(), 1);
        assert!(complaints_about("xtask/src/demo/mod.rs", "//! The demo.\nmod load;\n").is_empty());
    }
}
