//! The two processes of a hold: if one of them dies, another takes its place, so that the death of the second one loses no client either.

use std::{fs, path::Path, process::Child};

use tracing::{info, warn};

use crate::{
    daemon::{Event, control::Control, hold_process},
    ids::BackendIndex,
};

/// How many processes hold the same listeners.
const PROCESSES: usize = 2;

/// The process that was started beside the last one of a hold; or why there is none.
pub type Kept = Result<Child, String>;

impl Control {
    /// Starts a second process, beside the loop, for each hold that has one only.
    pub(in crate::daemon) fn keep_processes(&mut self) {
        let holds = &mut self.orders.holds;
        for index in self.world.holds.keys() {
            let Some(path) = holds.cgroups.get(index) else { continue };
            // One without a process is reported by its cgroup.
            if !(1..PROCESSES).contains(&processes(path)) || !holds.keeping.insert(*index) {
                continue;
            }
            let (index, path) = (*index, path.clone());
            self.effects.run_then(
                move || hold_process::keep(&path).map_err(|e| e.to_string()),
                move |done| Event::HoldKept {
                    index,
                    kept: done.unwrap_or_else(|| Err("the attempt to start it failed".to_owned())),
                },
            );
        }
    }

    /// A second process was started, or was not: then it is tried again with the next look.
    pub(in crate::daemon) fn hold_kept(&mut self, index: BackendIndex, kept: Kept) {
        self.orders.holds.keeping.remove(&index);
        let service = self.world.holds.get(&index).map(|hold| hold.service.as_str());
        match (kept, service) {
            (Ok(child), Some(service)) => {
                info!(%service, %index, pid = child.id(), "a process that held clients was killed; another has its place");
                self.orders.holds.children.entry(index).or_default().push(child);
            }
            // The hold has ended meanwhile.
            (Ok(child), None) => super::end::reap(vec![child]),
            (Err(error), Some(service)) => {
                warn!(%service, %index, %error, "clients are held by one process only");
            }
            (Err(_), None) => {}
        }
    }
}

fn processes(path: &Path) -> usize {
    fs::read_to_string(path.join("cgroup.procs")).map_or(PROCESSES, |text| text.lines().count())
}
