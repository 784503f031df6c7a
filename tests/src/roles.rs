//! Unprivileged users of the API.

use std::process::Command;

use anyhow::Result;

use crate::{daemon::Stage, orders::Ordered, process::run, tools};

/// A user and groups that do not exist on any machine.
const UID: u32 = 64_711;
const PRIMARY_GROUP: u32 = 64_713;
/// The group of operators in these tests.
pub const OPERATORS: u32 = 64_712;
/// The group of viewers.
pub const VIEWERS: u32 = 64_714;

/// A user, a member of some groups.
#[derive(Clone, Debug)]
pub struct User {
    uid: u32,
    groups: Vec<u32>,
}

impl User {
    /// A user with these supplementary groups.
    pub fn with_groups(groups: &[u32]) -> Self {
        Self { uid: UID, groups: groups.to_vec() }
    }

    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// A program as this user, as a process of the host.
    pub fn command(&self, stage: &Stage, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = stage.host.command("setpriv")?;
        command.arg("--reuid").arg(self.uid.to_string()).arg("--regid").arg(PRIMARY_GROUP.to_string());
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        match groups.is_empty() {
            true => command.arg("--clear-groups"),
            false => command.arg("--groups").arg(groups.join(",")),
        };
        command.arg("--").arg(program).env("POD_STEER_SOCKET", stage.daemon.socket()).env("NO_COLOR", "1");
        Ok(command)
    }

    /// Runs `pod-steer ARGS`, separated by spaces, to its end.
    pub fn run(&self, stage: &Stage, args: &str) -> Result<Ordered> {
        Ordered::by(self.command(stage, tools::pod_steer()?)?, args)
    }

    /// Sends `POST PATH` with this body to the API; returns the answer and, on its last line, the HTTP status.
    pub fn post(&self, stage: &Stage, path: &str, body: &str) -> Result<String> {
        let mut curl = self.command(stage, "curl")?;
        curl.args(["--silent", "--show-error", "--write-out", "\n%{http_code}", "--data", body]);
        curl.args(["--header", "Content-Type: application/json", "--unix-socket"]).arg(stage.daemon.socket());
        run(curl.arg(format!("http://pod-steer{path}")))
    }
}
