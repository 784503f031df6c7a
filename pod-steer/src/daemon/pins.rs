//! The directory of pins, which this daemon has locked.

use std::path::PathBuf;

use crate::{ids::BackendIndex, kernel::Lock};

/// Where the pins are.
pub(super) struct Pins {
    /// The directory, on a bpffs.
    pub dir: PathBuf,
    /// Of the directory.
    pub lock: Option<Lock>,
    /// Index of the last backend whose links were looked at.
    pub checked_last: BackendIndex,
}

impl Pins {
    /// Whether the directory is the one that this daemon has locked.
    pub fn are_ours(&self) -> bool {
        self.lock.as_ref().is_none_or(|lock| lock.is_of(&self.dir))
    }
}
