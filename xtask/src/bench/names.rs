//! The names that `--only` takes. The program that measures has them too, and refuses others: after minutes of builds.

use anyhow::{Result, ensure};

use super::SECTIONS;

/// Everybody who can be asked for alone, in any section.
const CONTESTANTS: [&str; 13] = [
    "direct",
    "reuseport",
    "pod-steer",
    "pod-steer-pod",
    "pod-steer-port",
    "haproxy",
    "nginx-stream",
    "nginx-http",
    "dnat",
    "ipvs",
    "docker-p",
    "direct-local",
    "docker-proxy",
];

/// Whether it is in the name of a section: then it does not stand for contestants.
pub fn is_of_section(only: &str) -> bool {
    SECTIONS.iter().any(|name| name.contains(only))
}

/// Refuses what is in no name.
pub fn check(only: &str) -> Result<()> {
    let known = is_of_section(only) || CONTESTANTS.iter().any(|name| name.contains(only));
    let all = [SECTIONS.join(", "), CONTESTANTS.join(", ")];
    ensure!(known, "`{only}` is in the name of no section ({}) and of no contestant ({})", all[0], all[1]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::paths;

    #[test]
    fn other_names_are_refused() {
        assert!(check("tls").is_ok() && check("nginx").is_ok() && is_of_section("idle") && !is_of_section("nginx"));
        let why = check("nobody").unwrap_err().to_string();
        assert_eq!((why.lines().count(), why.matches("hot-swap").count(), why.matches("haproxy").count()), (1, 1, 1));
    }

    /// They are constants of a program, which cannot be linked.
    #[test]
    fn the_names_are_those_of_the_program_that_measures() -> Result<()> {
        let dir = paths::root().join("tests/src/bin/bench");
        let mut texts = vec![fs::read_to_string(dir.join("swap/mod.rs"))?];
        for file in fs::read_dir(dir.join("traffic/ways"))? {
            texts.push(fs::read_to_string(file?.path())?);
        }
        let named =
            texts.iter().flat_map(|text| text.split("name: \"").skip(1)).filter_map(|rest| rest.split('"').next());
        let mut named: BTreeSet<&str> = named.collect();
        // It is there for `pod-steer-pod` to be compared with, and has no row.
        named.remove("direct-pod");
        assert_eq!(named, BTreeSet::from(CONTESTANTS));
        Ok(())
    }
}
