//! Files and tests that the documents name must exist, or a code map is useless.

use std::{collections::BTreeSet, path::Path};

/// Ends of names that are files of this repository.
const ENDS: [&str; 5] = [".rs", ".md", ".toml", ".yaml", ".service"];

/// The missing files that the document at `page` names, each with its line. `files` are all files, from the top of the repository.
pub fn missing(page: &str, document: &str, files: &[String]) -> Vec<(usize, String)> {
    let mut missing = Vec::new();
    let mut in_block = false;
    for (number, line) in (1..).zip(document.lines()) {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            let names = quoted(line).filter(|name| is_path(name)).flat_map(spelt_out);
            let named =
                names.filter(|name| !exists(name, files)).chain(links(line).filter(|link| !leads(page, link, files)));
            missing.extend(named.map(|name| (number, name)));
        }
    }
    missing
}

/// Tests that a document names and that do not exist, each with its line. Of all names with five words or more, only those of tests and of
/// metrics stand in documents. `functions` are the names of all functions.
pub fn missing_tests(document: &str, functions: &BTreeSet<String>) -> Vec<(usize, String)> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let is_test = |name: &&str| {
        !name.starts_with("pod_steer_")
            && name.matches('_').count() >= 4
            && name.chars().all(|c| c == '_' || c.is_ascii_digit() || c.is_ascii_lowercase())
    };
    let lines = (1..).zip(document.lines());
    let named =
        lines.flat_map(|(number, line)| line.split(|c| !is_part(c)).filter(is_test).map(move |name| (number, name)));
    named.filter(|(_, name)| !functions.contains(*name)).map(|(number, name)| (number, name.to_owned())).collect()
}

/// The names of the functions of a source file.
pub fn functions(source: &str) -> impl Iterator<Item = String> {
    let names = source.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
    names.map(str::to_owned)
}

/// The texts in back quotes.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Targets of links, except other sites and places within the document.
fn links(line: &str) -> impl Iterator<Item = String> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with('#')).map(str::to_owned)
}

/// Whether it is a path of this repository and not a command, a machine's file or a request.
fn is_path(name: &str) -> bool {
    let letter = |letter: char| letter.is_ascii_alphanumeric() || "-_./{},*".contains(letter);
    let top = ["bench", "pod-steer", "pod-steer-ebpf", "pod-steer-model", "tests", "xtask", "examples", "docs"];
    let below_top = name.split_once('/').is_some_and(|(first, _)| top.contains(&first));
    name.chars().all(letter)
        && !name.starts_with(['/', '.'])
        && (below_top || ENDS.iter().any(|end| name.ends_with(end)))
}

/// `a/{b,c}/*.rs` is `a/b` and `a/c`.
fn spelt_out(name: &str) -> Vec<String> {
    let name = name.split("/*").next().unwrap_or(name);
    match name.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (choices, after))) => choices.split(',').map(|one| format!("{before}{one}{after}")).collect(),
        None => vec![name.to_owned()],
    }
}

/// Whether a file or a folder ends so; a module is named without its file's end too.
fn exists(name: &str, files: &[String]) -> bool {
    let name = name.trim_end_matches('/');
    let module = format!("{name}.rs");
    let ends = |path: &Path| path.ends_with(name) || path.ends_with(&module);
    files.iter().any(|file| Path::new(file).ancestors().any(ends))
}

/// Whether a link of a page leads to a file or a folder.
fn leads(page: &str, link: &str, files: &[String]) -> bool {
    let mut target: Vec<&str> = page.split('/').collect();
    target.pop();
    for part in link.split('#').next().unwrap_or_default().trim_end_matches('/').split('/') {
        match part {
            ".." => drop(target.pop()),
            part => target.push(part),
        }
    }
    let target = target.join("/");
    files.iter().any(|file| Path::new(file).starts_with(&target))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 3] = ["pod-steer/src/world/mod.rs", "pod-steer/src/slots.rs", "examples/compose.yaml"];

    fn found(document: &str) -> Vec<(usize, String)> {
        missing("README.md", document, &FILES.map(str::to_owned))
    }

    #[test]
    fn files_that_exist_are_found() {
        let document = "`world/mod.rs`, `slots.rs`, `pod-steer/src/{world,slots}`, `pod-steer/src/*.rs`,\n\
            [`compose.yaml`](examples/compose.yaml), [there](https://docs.rs/a.rs), [below](#below)\n\
            `/etc/pod-steer.toml`, `cargo xtask`, `pod-steer run`, `GET /v1/status`, `bpf_loop`, `v1/v2`\n\
            ```sh\nvi `gone.rs`\n```\n";
        assert_eq!(found(document), []);
    }

    #[test]
    fn files_that_are_gone_are_told() {
        let document =
            "`slots.rs` and\n`world/plan.rs`, `lots.rs`, `pod-steer/src/{slots,gone}`\n[here](docs/gone.md)\n";
        let names = [(2, "world/plan.rs"), (2, "lots.rs"), (2, "pod-steer/src/gone"), (3, "docs/gone.md")];
        assert_eq!(found(document), names.map(|(line, name)| (line, name.to_owned())));
    }

    #[test]
    fn tests_that_are_gone_are_told() {
        let known =
            functions("#[test]\nfn a_claim_is_kept() {}\n    async fn it_waits_for_all_of_them<T>() {}\n").collect();
        let document = "`a.rs` a_claim_is_kept, it_waits_for_all\n`b.rs` a_claim_was_given_up_early, `POD_STEER_ABORT_AT`, so_mark\n";
        assert_eq!(missing_tests(document, &known), [(2, "a_claim_was_given_up_early".to_owned())]);
    }

    #[test]
    fn links_begin_at_their_page() {
        let document = "[example](../examples/compose.yaml#web), [gone](examples/compose.yaml)\n";
        let found = missing("docs/page.md", document, &FILES.map(str::to_owned));
        assert_eq!(found, [(1, "examples/compose.yaml".to_owned())]);
    }
}
