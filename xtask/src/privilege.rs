//! Namespaces, cgroups and BPF need root. Other users get one line that says how to become root.

use std::env;
use std::process::ExitCode;

use anyhow::Result;

/// `None` for root. For any other user this prints the remedy and returns the task's result.
pub fn root_or_remedy() -> Option<Result<ExitCode>> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let task = env::args().skip(1).collect::<Vec<_>>().join(" ");
    eprintln!("`cargo xtask {task}` needs root for namespaces and BPF: sudo -E env PATH=\"$PATH\" cargo xtask {task}");
    Some(Ok(ExitCode::from(2)))
}
