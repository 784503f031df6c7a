//! Running other programs: from the top of the repository, with the project's tools in `PATH`, and with errors that name the command.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;

/// A command that runs at the top of the repository.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(paths::root()).env("PATH", paths::path_with_tools());
    command
}

/// The cargo that runs this xtask.
pub fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The command as a shell command, for messages.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    command.get_args().fold(program, |line, arg| line + " " + &arg.to_string_lossy())
}

/// Runs it to its end with our own stdout and stderr.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs it to its end and returns its stdout. Its stderr is part of the error.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        // `doctor` says on its standard output what it has found.
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        bail!("`{}` failed: {}\n{}", shown(command), output.status, String::from_utf8_lossy(said).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
