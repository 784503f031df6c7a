//! What a run is asked for.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{PARTS, Part};

/// What to do.
pub struct Options {
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// Where the report goes.
    pub output: PathBuf,
    /// Only sections whose name contains this; if there is none, only contestants whose name does.
    only: Option<String>,
}

impl Options {
    /// Of the command line.
    pub fn read(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let (mut quick, mut only, mut output) = (false, None, None);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => quick = true,
                "--only" => only = Some(args.next().context("--only wants a name")?),
                "--output" => output = Some(PathBuf::from(args.next().context("--output wants a file")?)),
                other => bail!("`{other}` is no option of the benchmark"),
            }
        }
        let options = Self { quick, only, output: output.context("--output FILE is missing")? };
        let names = || PARTS.iter().flat_map(|part| part.sections.iter().chain(part.contestants)).copied();
        ensure!(
            PARTS.iter().any(|part| options.wants_part(part)),
            "`{}` is in the name of no section and of no contestant; there are {}",
            options.only.as_deref().unwrap_or_default(),
            names().collect::<Vec<_>>().join(", ")
        );
        Ok(options)
    }

    /// Whether a section is to be measured. A part asks for each of its sections.
    pub fn wants_section(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only) || !names_sections(only))
    }

    /// Whether a contestant takes part; that others have it as their base is for its part to know.
    pub fn wants_contestant(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only) || names_sections(only))
    }

    /// Whether there is anything to do in a part.
    pub fn wants_part(&self, part: &Part) -> bool {
        match self.only.as_deref() {
            None => true,
            Some(only) if names_sections(only) => part.sections.iter().any(|name| name.contains(only)),
            Some(only) => part.contestants.iter().any(|name| name.contains(only)),
        }
    }
}

fn names_sections(only: &str) -> bool {
    PARTS.iter().flat_map(|part| part.sections).any(|name| name.contains(only))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &str) -> Result<Options> {
        Options::read(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn sections_come_before_contestants() {
        let all = options("--output a").unwrap();
        assert!(!all.quick && all.wants_section("tls") && all.wants_contestant("haproxy"));
        let one = options("--quick --only tls --output a").unwrap();
        assert!(one.quick && one.wants_section("tls") && !one.wants_section("idle") && one.wants_contestant("haproxy"));
        let haproxy = options("--only haproxy --output a").unwrap();
        assert!(haproxy.wants_section("tls") && haproxy.wants_contestant("haproxy"));
        assert!(!haproxy.wants_contestant("nginx-http"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for args in ["", "--only tls", "--output", "--output a --fast", "--output a --only nobody"] {
            assert!(options(args).is_err(), "{args}");
        }
    }
}
