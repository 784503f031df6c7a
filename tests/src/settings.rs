//! The daemon's settings, changed while it runs, and smaller limits than usual.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::{
    daemon::{Conditions, Stage},
    wait,
};

/// The daemon's log line when it has reloaded its settings.
const READ: &str = "the settings were read again";

impl Stage {
    /// A daemon without a container engine and with smaller limits, as in `SLOT_TABLES=2,RULES=1`.
    pub fn limited(limits: &str) -> Result<Self> {
        let env = vec![("POD_STEER_TEST_LIMITS", limits.to_owned())];
        Self::under(Conditions { env, ..Conditions::default() })
    }
}

/// Writes the settings of a daemon that was started with some.
pub fn write(stage: &Stage, settings: &str) -> Result<()> {
    let path = stage.host.dir().join("pod-steer.toml");
    ensure!(path.exists(), "the daemon was started without settings");
    // A reader sees the old settings or the new ones.
    let part = path.with_extension("part");
    fs::write(&part, settings)?;
    Ok(fs::rename(part, path)?)
}

/// Writes them and makes the daemon reload them; returns when that is done.
pub fn reload(stage: &Stage, settings: &str) -> Result<()> {
    let times = |log: &str| log.matches(READ).count();
    let before = times(&stage.daemon.log());
    write(stage, settings)?;
    stage.daemon.signal(Signal::HUP)?;
    wait::until("the settings to be read again", || (times(&stage.daemon.log()) > before).then_some(()))
}

/// The same with invalid settings; returns the condition in `status`.
pub fn reload_wrong(stage: &Stage, settings: &str) -> Result<String> {
    write(stage, settings)?;
    stage.daemon.signal(Signal::HUP)?;
    stage.daemon.wait_for("a condition of the settings", |status| {
        status.said_about("the settings").into_iter().find(|said| said.contains("nothing was changed"))
    })
}

/// A connection that was opened before is still served, by the server of this name.
pub fn goes_on(held: &mut TcpStream, name: &str) -> Result<()> {
    held.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    held.read_to_string(&mut answer)?;
    ensure!(answer.contains(name), "{answer}");
    Ok(())
}
