//! What can go wrong between the daemon and the kernel.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use pod_steer_ebpf::ABI_VERSION;

use super::{Usage, layouts::OLDEST, limits::limit};

/// An error of the steering state.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The object could not be loaded.
    #[error("load the kernel programs and maps (`pod-steer doctor` names what is missing)")]
    Load(#[source] Box<EbpfError>),
    /// A program was refused.
    #[error("load the kernel program `{name}` (`pod-steer doctor` names what is missing)")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("attach `{name}` to {target}")]
    Attach {
        /// The program.
        name: &'static str,
        /// The cgroup or namespace.
        target: String,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A link could not be opened or converted.
    #[error("open the link `{}`", path.display())]
    Link {
        /// Its pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// A map could not be read or written.
    #[error("{what} the map `{map}`")]
    Map {
        /// What was tried.
        what: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        #[source]
        source: Box<MapError>,
    },
    /// Something could not be pinned.
    #[error("pin `{}`", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<PinError>,
    },
    /// A file or directory of bpffs or cgroupfs.
    #[error("{what} `{}`", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// State of a later version.
    #[error(
        "`{}` holds the kernel state {found} of a newer pod-steer, and this one reads the states {OLDEST} to {ABI_VERSION}: start the \
         newer one again, or end all steering with `pod-steer unload` and then start this one",
        dir.display()
    )]
    NewerVersion {
        /// The directory of bpffs.
        dir: PathBuf,
        /// The version of the layout found there.
        found: u32,
    },
    /// State of a version that is too old.
    #[error(
        "`{}` holds the kernel state {found} of an older pod-steer, and this one reads the states {OLDEST} to {ABI_VERSION}: start a \
         release between them first, or end all steering with `pod-steer unload` and then start this one",
        dir.display()
    )]
    OlderVersion {
        /// The directory of bpffs.
        dir: PathBuf,
        /// The version of the layout found there.
        found: u32,
    },
    /// A map that is of no release.
    #[error(
        "the map `{}` is not as any release has it in the kernel state {found}: end all steering with `pod-steer unload`, and start again",
        pin.display()
    )]
    Unreadable {
        /// Where it is pinned.
        pin: PathBuf,
        /// The version that its state is said to be of.
        found: u32,
    },
    /// No index is free.
    #[error("no place in {what} is free: all {limit} are in use; end services or backends that are not needed")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there are.
        limit: u32,
    },
    /// A service has what it may have, and others may have more.
    #[error(
        "the service has reached its quota of {what}: {usage}; use fewer ports, addresses or networks, or end services that are not \
         needed"
    )]
    Quota {
        /// Of what.
        what: &'static str,
        /// How much it has.
        usage: Usage,
    },
}

impl KernelError {
    /// Whether it concerns nothing but the service that asked for more.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::Quota { .. })
    }

    /// Whether the state is one that this version cannot read. Nothing has been changed.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NewerVersion { .. } | Self::OlderVersion { .. } | Self::Unreadable { .. })
    }

    /// For `map_err` on an operation on a map.
    pub(super) fn map(what: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { what, map, source: Box::new(source) }
    }

    /// For `map_err` on adding to a map that has room for so many: a full one is named with its limit.
    pub(super) fn add(what: &'static str, map: &'static str, usual: u32) -> impl FnOnce(MapError) -> Self {
        move |source| match &source {
            MapError::SyscallError(error)
                if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
            {
                Self::Full { what: map, limit: limit(map, usual) }
            }
            _ => Self::Map { what, map, source: Box::new(source) },
        }
    }

    /// For `map_err` on an operation on a file.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
