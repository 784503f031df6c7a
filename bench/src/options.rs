//! The options of a run.

use std::path::PathBuf;

use clap::Parser;

use crate::measure::{self, PARTS, Part};

/// The command line.
#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    about = "Compare pod-steer with its alternatives: tables, aims, and docs/benchmarks.md (needs root)"
)]
pub struct Options {
    /// Fewer and shorter rounds, whose figures are rough; nothing is written below docs
    #[arg(long)]
    pub quick: bool,
    /// Only sections, or contestants, whose name contains this; nothing is written below docs
    #[arg(long, value_name = "NAME", value_parser = known)]
    pub only: Option<String>,
    /// Write the report to this file
    #[arg(long, visible_alias = "output", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Compare the ratios with those of docs/benchmarks.json, and fail if one is worse beyond its tolerance, or an aim was
    /// met and is missed now; nothing is written below docs
    #[arg(long)]
    pub check: bool,
    /// Measure nothing: take this report, which `--json` wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "only"])]
    pub from: Option<PathBuf>,
    /// Check the options and print what has to be set up, for `cargo xtask bench`
    #[arg(long, hide = true)]
    pub needs: bool,
}

/// Refuses a name that selects nothing.
fn known(only: &str) -> Result<String, String> {
    let names = || PARTS.iter().flat_map(|part| part.sections.iter().chain(part.contestants)).copied();
    match names().any(|name| name.contains(only)) {
        true => Ok(only.to_owned()),
        false => {
            Err(format!("no section and no contestant has it in its name: {}", names().collect::<Vec<_>>().join(", ")))
        }
    }
}

impl Options {
    /// The set-up that xtask has to do first.
    pub fn needs(&self) -> &'static str {
        match (&self.from, self.only.as_deref()) {
            (Some(_), _) => "nothing",
            (None, Some(measure::WITHOUT_OTHERS)) => "program",
            (None, _) => "everything",
        }
    }

    /// Whether a section is wanted.
    pub fn wants_section(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only) || !names_sections(only))
    }

    /// Whether a contestant is wanted. Each part adds the bases of the wanted ones itself.
    pub fn wants_contestant(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only) || names_sections(only))
    }

    /// Whether anything of a part is wanted.
    pub fn wants_part(&self, part: &Part) -> bool {
        match self.only.as_deref() {
            None => true,
            Some(only) if names_sections(only) => part.sections.iter().any(|name| name.contains(only)),
            Some(only) => part.contestants.iter().any(|name| name.contains(only)),
        }
    }

    /// Whether all contestants of the wanted sections are wanted.
    pub fn wants_all_contestants(&self) -> bool {
        self.only.as_deref().is_none_or(names_sections)
    }
}

/// Whether a name selects contestants: not if it is part of a section's name.
fn names_sections(only: &str) -> bool {
    measure::sections().any(|name| name.contains(only))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(["bench"].into_iter().chain(args.split_whitespace()))
    }

    #[test]
    fn sections_come_before_contestants() {
        let all = options("").unwrap();
        assert!(!all.quick && all.wants_section("tls") && all.wants_contestant("haproxy"));
        let one = options("--quick --only tls").unwrap();
        assert!(one.quick && one.wants_section("tls") && !one.wants_section("idle") && one.wants_contestant("haproxy"));
        let haproxy = options("--only haproxy").unwrap();
        assert!(haproxy.wants_section("tls") && haproxy.wants_contestant("haproxy"));
        assert!(!haproxy.wants_contestant("nginx-http") && !haproxy.wants_all_contestants());
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for args in ["--json", "--output", "--fast", "--only nobody", "--from a --quick"] {
            assert!(options(args).is_err(), "{args}");
        }
        let names = options("--only nobody").err().map(|error| error.to_string()).unwrap();
        assert!(names.contains("hot-swap") && names.contains("haproxy"), "{names}");
    }

    #[test]
    fn only_what_is_measured_is_set_up() {
        let needs = ["--from a --check", "--only program", "--only tls", "", "--output a"]
            .map(|args| options(args).unwrap().needs());
        assert_eq!(needs, ["nothing", "program", "everything", "everything", "everything"]);
    }
}
