//! Schemathesis, which generates requests from the API's description, in a Python virtual environment in `target/tools`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::{command, run};
use crate::{paths, say};

/// Debian's Python, not that of a version manager: the virtual environment must work in the tests' hosts.
const PYTHON: &str = "/usr/bin/python3";

/// Installs the versions in `tests/openapi/requirements.txt`. Without them the test is skipped.
pub fn ensure() {
    if let Err(error) = try_ensure() {
        say::note(&format!("schemathesis cannot be installed: {error:#}"));
    }
}

fn try_ensure() -> Result<()> {
    let wanted = paths::root().join("tests/openapi/requirements.txt");
    let venv = paths::tools().join("schemathesis");
    let installed = venv.join("requirements.txt");
    let list = fs::read(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    if fs::read(&installed).is_ok_and(|installed| installed == list) {
        return Ok(());
    }
    say::note("installing schemathesis into target/tools: it tests the API by its description; takes a minute, once");
    let python = if Path::new(PYTHON).is_file() { PYTHON } else { "python3" };
    run(command(python).args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(command(venv.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement"])
        .arg(&wanted))?;
    // Written last, so that an interrupted installation is repeated.
    fs::copy(&wanted, &installed).with_context(|| format!("cannot write {}", installed.display()))?;
    Ok(())
}
