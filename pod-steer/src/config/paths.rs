//! Paths: the settings that `unload` needs when no daemon is running.

use std::path::{Path, PathBuf};

use super::{
    ConfigError, DEFAULT_BPFFS, DEFAULT_FILE, DEFAULT_RUNTIME_DIR, DEFAULT_STATE_DIR,
    file::{self, File},
};

/// All paths, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Directory of runtime files.
    pub runtime_dir: PathBuf,
    /// Directory of decisions and history.
    pub state_dir: PathBuf,
    /// Directory of pins.
    pub bpffs: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
}

/// The paths that flags give.
#[derive(Clone, Debug, Default)]
pub struct GivenPaths {
    /// Directory of runtime files.
    pub runtime_dir: Option<PathBuf>,
    /// Directory of decisions and history.
    pub state_dir: Option<PathBuf>,
    /// Directory of pins.
    pub bpffs: Option<PathBuf>,
    /// The API's socket.
    pub socket: Option<PathBuf>,
}

impl Paths {
    /// Merges flags and file. Other settings in the file may be invalid.
    pub fn resolve(config: Option<&Path>, given: GivenPaths) -> Result<Self, ConfigError> {
        let (file, _) = file(config).as_deref().map(file::read).transpose()?.unwrap_or_default();
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

/// The configuration file: the named one, else the default one if it exists.
pub(super) fn file(named: Option<&Path>) -> Option<PathBuf> {
    named.map(Path::to_owned).or_else(|| Some(DEFAULT_FILE.into()).filter(|path: &PathBuf| path.exists()))
}
