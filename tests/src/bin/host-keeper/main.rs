//! Holds the namespaces of one test host open, and removes the host when its standard input ends.
//!
//! It is a process of its own for two reasons: only a process can enter a cgroup before it makes a cgroup namespace of it, and the end
//! of the pipe tells it of any end of the test, by SIGKILL too. It leaves the host's cgroup, so that all processes in there can be
//! killed.

mod clean;
mod setup;

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(name), Some(dir), None) =
        (args.next().and_then(|name| name.into_string().ok()), args.next(), args.next())
    else {
        eprintln!("usage: host-keeper NAME DIRECTORY (ends, and removes both, when standard input ends)");
        return ExitCode::from(2);
    };
    let dir = PathBuf::from(dir);
    match keep(&name, &dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host-keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn keep(name: &str, dir: &Path) -> Result<()> {
    let host = setup::cgroup(name)?;
    let lived = setup::namespaces(&host).and_then(|()| {
        println!("ready");
        io::stdout().flush()?;
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    });
    lived.and(clean::remove(&host, dir))
}
