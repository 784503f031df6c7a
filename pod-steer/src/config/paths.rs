//! Where everything is: of all settings, those that `unload` needs when there is no daemon.

use std::path::{Path, PathBuf};

use super::{ConfigError, DEFAULT_BPFFS, DEFAULT_FILE, DEFAULT_RUNTIME_DIR, DEFAULT_STATE_DIR, File, read};

/// Where everything is, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Where files are kept.
    pub runtime_dir: PathBuf,
    /// Where decisions and history are kept.
    pub state_dir: PathBuf,
    /// Where everything is pinned.
    pub bpffs: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
}

/// Where everything is, as far as flags say.
#[derive(Clone, Debug, Default)]
pub struct GivenPaths {
    /// Where files are kept.
    pub runtime_dir: Option<PathBuf>,
    /// Where decisions and history are kept.
    pub state_dir: Option<PathBuf>,
    /// Where everything is pinned.
    pub bpffs: Option<PathBuf>,
    /// The API's socket.
    pub socket: Option<PathBuf>,
}

impl Paths {
    /// Puts flags and file together; what else is in the file need not be right.
    pub fn resolve(config: Option<&Path>, given: GivenPaths) -> Result<Self, ConfigError> {
        let file = file(config).as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(Self::complete(given, &file))
    }

    pub(super) fn complete(given: GivenPaths, file: &File) -> Self {
        let or = |given: Option<PathBuf>, file: &Option<PathBuf>, default: &str| {
            given.or_else(|| file.clone()).unwrap_or_else(|| default.into())
        };
        let runtime_dir = or(given.runtime_dir, &file.runtime_dir, DEFAULT_RUNTIME_DIR);
        let socket = given.socket.or_else(|| file.socket.clone()).unwrap_or_else(|| runtime_dir.join("api.sock"));
        Self {
            socket,
            runtime_dir,
            state_dir: or(given.state_dir, &file.state_dir, DEFAULT_STATE_DIR),
            bpffs: or(given.bpffs, &file.bpffs, DEFAULT_BPFFS),
        }
    }
}

/// The file of settings that is read: the named one, or the default one if it is there.
pub(super) fn file(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_owned).or_else(|| Some(DEFAULT_FILE.into()).filter(|path: &PathBuf| path.exists()))
}
