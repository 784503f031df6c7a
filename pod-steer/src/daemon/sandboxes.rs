//! Containers in the network namespace of another one, a pod's sandbox. The namespace of a sandbox that was started again,
//! has stopped or was removed remains as long as such a container runs, but no client arrives there.

use std::{fs::File, os::unix::fs::MetadataExt as _};

use super::control::Control;
use crate::{
    condition::{Condition, Reason},
    engine::{Container, Sandbox, SandboxState},
    procs::Process,
};

/// Device and inode of an `ns/net` file that is held open meanwhile.
fn identity(ns: &File) -> Option<(u64, u64)> {
    ns.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// The condition of a container that joined this sandbox, if no client arrives in its namespace.
fn fault(own: &File, sandbox: &Sandbox) -> Option<Condition> {
    // The host's own namespace needs no sandbox.
    let of_host = ["/proc/self/ns/net", "/proc/1/ns/net"].into_iter().filter_map(|path| File::open(path).ok());
    if of_host.into_iter().any(|host| identity(&host) == identity(own)) {
        return None;
    }
    let name = &sandbox.name;
    match sandbox.state {
        SandboxState::Running(pid) => {
            let now = Process::open(pid).ok()?.netns().ok()?;
            let message =
                format!("its network namespace is that of an earlier start of {name}, where no client arrives");
            let gone = Condition::new(Reason::SandboxGone, message, "restart it");
            (identity(&now)? != identity(own)?).then_some(gone)
        }
        SandboxState::Stopped => Some(Condition::new(
            Reason::SandboxGone,
            format!("its network namespace is that of {name}, which has stopped, so no client arrives there"),
            format!("start {name}, then restart it"),
        )),
        SandboxState::Removed => Some(Condition::new(
            Reason::SandboxGone,
            format!(
                "its network namespace is that of the container {name}, which was removed, so no client arrives there"
            ),
            "create it again in the namespace of a container that runs",
        )),
    }
}

impl Control {
    /// Notes whether clients can arrive in the namespace of a container that joined a sandbox.
    pub(super) fn note_sandbox(&mut self, container: &Container) {
        if container.joined.is_some() && container.sandbox.is_none() {
            // The engine did not say, so what is known remains.
            return;
        }
        let ns = container.pid.and_then(|pid| Process::open(pid).ok()?.netns().ok());
        let fault = ns.zip(container.sandbox.as_ref()).and_then(|(ns, sandbox)| fault(&ns, sandbox));
        let id = container.id.as_str();
        let changed = match fault {
            Some(condition) => {
                let before = self.world.abandoned.insert(id.into(), condition.clone());
                before.as_ref() != Some(&condition)
            }
            None => self.world.abandoned.remove(id).is_some(),
        };
        if changed {
            self.touch();
        }
    }
}
