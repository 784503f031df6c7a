//! Namespaces, cgroups and BPF need root; whoever is not root is told how to become it, in one line.

use std::env;
use std::process::ExitCode;

use anyhow::Result;

/// `None` for root. For everybody else the remedy has been printed, and the task is over.
pub fn root_or_remedy() -> Option<Result<ExitCode>> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let task = env::args().skip(1).collect::<Vec<_>>().join(" ");
    eprintln!("`cargo xtask {task}` needs root for namespaces and BPF: sudo -E env PATH=\"$PATH\" cargo xtask {task}");
    Some(Ok(ExitCode::from(2)))
}
