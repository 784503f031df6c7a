//! Work that waits for the next reconcile, since it relies on the kernel having the plan that follows from all events so far.

use std::path::PathBuf;

use tokio::sync::oneshot;
use tracing::{debug, info};

use super::{control::Control, processes::AddedExec, register::AddedProcess};
use crate::{
    api::{Answer, types::Status},
    engine::Container,
    ids::BackendId,
};

/// What is done after the next reconcile, in the order in which it was deferred.
pub(super) enum Deferred {
    /// Look at every link, after an earlier daemon's state has been adopted.
    Adopted,
    /// Attach the programs to a container's cgroup: they look for the ports of its backend.
    Attach {
        /// The container.
        id: BackendId,
        /// Its cgroup.
        path: PathBuf,
    },
    /// Find the namespace and the sockets of a container that runs. Listeners that it opens after it was attached are reported, so
    /// those that it had are looked for after that.
    Locate(Box<Container>),
    /// An engine has described all its containers, which have been located: steering that no backend has may be removed.
    Described(String),
    /// The engines have had their time to answer: start without those that have not.
    EnginesLate,
    /// Every engine has been heard: the API may answer.
    Synced,
    /// Start a command, if the claims of its backend hold.
    Exec(Box<AddedExec>, Answer),
    /// Follow a process that was registered, if the claims of its backend hold.
    Register(AddedProcess, Answer),
    /// Answer with the status: connections have been counted.
    Statuses {
        /// The traffic that the count is of.
        generation: u64,
        /// Those that asked.
        asked: Vec<oneshot::Sender<Status>>,
    },
}

impl Control {
    pub(super) fn resume(&mut self, deferred: Deferred) {
        match deferred {
            Deferred::Adopted => {
                if self.check_links(true) {
                    self.check_cgroups(true);
                }
                info!(backends = self.world.backends.len(), sockets = self.world.sockets.len(), "adopted");
            }
            // The cgroup of one that has ended meanwhile is gone, and an event that says so is under way.
            Deferred::Attach { path, .. } if !path.exists() => debug!(path = %path.display(), "this cgroup is gone"),
            Deferred::Attach { id, path } => self.attach_container(&id, &path),
            Deferred::Locate(container) => self.locate(&container),
            Deferred::Described(engine) => self.described_all(&engine),
            Deferred::EnginesLate => self.start_without_engines(),
            Deferred::Synced => {
                if let Some(ready) = self.ready.take() {
                    let _ = ready.send(());
                }
            }
            Deferred::Exec(added, answer) => {
                let made = self.start_exec(*added);
                self.answer(made, answer);
            }
            Deferred::Register(added, answer) => {
                let made = self.follow_registered(added);
                self.answer(made, answer);
            }
            Deferred::Statuses { generation, asked } => self.answer_statuses(generation, asked),
        }
    }
}
