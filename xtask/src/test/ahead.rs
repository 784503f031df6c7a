//! Begins early with what later steps need: compilers and package managers leave a processor idle for much of their time. A later step does
//! what is left of it, waits for it by its locks, and tells what has failed. So nothing is said here.

use std::process::{Child, ExitCode, Stdio};

use anyhow::{Context, Result};

use super::checks;
use crate::build;
use crate::cmd::command;

/// The task of the process that does it.
const TASK: &str = "test-ahead";

/// The process. Its end is waited for.
pub struct Ahead(Child);

impl Ahead {
    /// Starts it. The tools that every build needs must be there.
    pub fn start() -> Result<Self> {
        let mut own = command(std::env::current_exe().context("cannot find this program")?);
        own.arg(TASK).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        own.spawn().map(Self).context("cannot start this program again")
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // It has ended already, unless a step before its last one has failed.
        let _ = self.0.wait();
    }
}

/// The work of that process.
pub fn work() -> Result<ExitCode> {
    let installed = checks::ensure_deny();
    build::named_server()?;
    installed.map(|()| ExitCode::SUCCESS)
}
