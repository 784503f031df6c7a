//! `pod-steer exec` and `register`

use std::{io, os::unix::process::CommandExt as _, process::Command};

use super::{
    Failure, Outcome,
    args::{BackendArgs, ExecArgs, RegisterArgs},
    block_on, print,
};
use crate::api::{
    client,
    types::{BackendRequest, ExecRequest, RegisterRequest, Registered},
};

impl From<BackendArgs> for BackendRequest {
    fn from(args: BackendArgs) -> Self {
        Self {
            service: args.service,
            ports: args.ports,
            version: args.version,
            weight: args.weight,
            options: args.options.0,
            name: args.name,
        }
    }
}

/// Replaces this process by the command, in the cgroup to which the daemon moves it. So the pid, signals and exit code are the command's
/// own.
pub(super) fn exec(args: ExecArgs) -> Outcome {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::Input("no command; give one after `--`".to_owned()));
    };
    let request = ExecRequest { backend: args.backend.into() };
    block_on(async { Ok(client::post::<Registered>(&args.socket.socket, "/v1/exec", &request).await?) })?;
    let error = Command::new(program).args(arguments).exec();
    // The exit codes of shells for a command that cannot be run.
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    super::say(&format!("{}: {error}", program.display()));
    Err(Failure::Said(code))
}

pub(super) fn register(args: RegisterArgs) -> Outcome {
    let request = RegisterRequest { pid: args.pid, backend: args.backend.into() };
    let made: Registered = block_on(async { Ok(client::post(&args.socket.socket, "/v1/register", &request).await?) })?;
    print(&format!("{}\n", made.id))
}
