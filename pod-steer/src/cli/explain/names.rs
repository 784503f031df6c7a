//! The names of services and backends, from the notes in the kernel; and the states of backends, if a daemon answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use pod_steer_ebpf::{NOTE_BACKEND, NOTE_SERVICE};
use serde::Serialize;

use super::super::{
    block_on,
    pinned::{Noted, parsed},
};
use crate::{
    api::{client, types::Status},
    kernel::{KernelError, Notes},
    world::State,
};

/// The states are waited for so long: a daemon that hangs must not keep the answer back.
const STATES_MAX: Duration = Duration::from_secs(1);

/// A backend, by the names that operators use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its service.
    #[serde(skip)]
    pub service: String,
    /// Its state, if a daemon has told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}

/// The names, by the indices of the kernel's tables.
#[derive(Default)]
pub struct Names {
    /// The backends.
    pub backends: BTreeMap<u32, Backend>,
    /// The services.
    pub services: BTreeMap<u32, String>,
    /// The services that sleep, if a daemon has told it.
    pub asleep: BTreeSet<String>,
}

impl Names {
    /// Reads the notes that are pinned below `dir`, and asks the daemon at `socket`.
    pub fn read(dir: &Path, socket: &Path) -> Result<Self, KernelError> {
        Self::with(dir, || status(socket))
    }

    /// Reads the notes alone.
    pub fn noted(dir: &Path) -> Result<Self, KernelError> {
        Self::with(dir, || None)
    }

    fn with(dir: &Path, status: impl FnOnce() -> Option<Status>) -> Result<Self, KernelError> {
        let notes = Notes::open(dir)?;
        let told = status().map(|status| status.services).unwrap_or_default();
        let asleep = told.iter().filter(|of| of.decision.asleep.is_some()).map(|of| of.name.clone()).collect();
        let backends = told.iter().flat_map(|service| &service.backends);
        let states: BTreeMap<&str, State> = backends.map(|backend| (backend.id.as_str(), backend.state)).collect();
        let noted = parsed::<Noted>(&notes, NOTE_BACKEND).into_iter();
        let backends = noted.map(|(index, Noted { id, name, spec, .. })| {
            let state = states.get(id.as_str()).copied();
            (index, Backend { name, version: spec.version, service: spec.service, state })
        });
        let services = notes.read(NOTE_SERVICE).into_iter();
        let services = services.filter_map(|(index, name)| Some((index, String::from_utf8(name).ok()?)));
        Ok(Self { backends: backends.collect(), services: services.collect(), asleep })
    }

    /// The backend with this index, or a name for one that is not noted.
    pub fn backend(&self, index: u32) -> Backend {
        self.backends.get(&index).cloned().unwrap_or_else(|| Backend {
            name: format!("backend {index}"),
            version: "unknown".to_owned(),
            service: String::new(),
            state: None,
        })
    }

    /// The name of a service.
    pub fn service(&self, index: u32) -> String {
        self.services.get(&index).cloned().unwrap_or_else(|| format!("service {index}"))
    }
}

/// What the daemon says; nothing without a daemon, or if it does not tell this user.
fn status(socket: &Path) -> Option<Status> {
    let asked = async { Ok(tokio::time::timeout(STATES_MAX, client::get::<Status>(socket, "/v1/status")).await) };
    block_on(asked).ok()?.ok()?.ok()
}
