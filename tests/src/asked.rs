//! Connections by a process of a backend, as an engine's health check makes them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::{daemon::Stage, exec::Backend, process::output};

/// Connections of one check. Several backends share the port, so a single right answer would prove nothing.
pub const TRIES: usize = 20;

/// The names of the servers that answer a process of `backend`, or curl's exit code (7: refused).
pub fn asked(stage: &Stage, backend: &Backend, options: &[&str], address: &str) -> Result<BTreeSet<String>> {
    let mut curl = backend.command(stage, "curl")?;
    curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20", "--header", "Connection: close"]);
    curl.args(options).arg(format!("http://{address}/[1-{TRIES}]"));
    let answer = output(&mut curl)?;
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    let mut names: BTreeSet<String> =
        said.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    if !answer.status.success() {
        names.insert(answer.status.code().context("curl was killed")?.to_string());
    }
    Ok(names)
}

/// Fails unless all connections get this answer.
pub fn ensure_asked(stage: &Stage, backend: &Backend, options: &[&str], address: &str, wanted: &str) -> Result<()> {
    let got = asked(stage, backend, options, address)?;
    let wanted = BTreeSet::from([wanted.to_owned()]);
    ensure!(got == wanted, "{} asked {address} {options:?}: {got:?}, not {wanted:?}", backend.name);
    Ok(())
}
