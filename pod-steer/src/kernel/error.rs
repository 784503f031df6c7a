//! Errors between the daemon and the kernel.

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
    #[error("cannot load the kernel programs and maps; `pod-steer doctor` shows what is missing")]
    Load(#[source] Box<EbpfError>),
    /// The verifier refused a program.
    #[error("the kernel refuses the program `{name}` (the verifier's log ends with: {log})")]
    Refused {
        /// Its name.
        name: &'static str,
        /// The end of the verifier's log.
        log: String,
        /// The error of bpf(2).
        #[source]
        source: io::Error,
    },
    /// A program could not be loaded.
    #[error("cannot load the kernel program `{name}`; `pod-steer doctor` shows what is missing")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach `{name}` to {target}")]
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
    #[error("cannot open the link `{}`", path.display())]
    Link {
        /// Its pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// A map could not be read or written.
    #[error("cannot {what} the map `{map}`")]
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
    #[error("cannot pin `{}`", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<PinError>,
    },
    /// A file or directory of bpffs or cgroupfs could not be used.
    #[error("cannot {what} `{}`", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state is of a later version.
    #[error(
        "`{}` holds kernel state {found}, written by a newer pod-steer; this release reads kernel states {OLDEST} to {ABI_VERSION}. Start the \
         newer release again, or end all steering with `pod-steer unload` and then start this one",
        dir.display()
    )]
    NewerVersion {
        /// The directory of bpffs.
        dir: PathBuf,
        /// The version of the layout found there.
        found: u32,
    },
    /// The state is of a version that is too old.
    #[error(
        "`{}` holds kernel state {found}, written by an older pod-steer; this release reads kernel states {OLDEST} to {ABI_VERSION}. Start a \
         release in between first, or end all steering with `pod-steer unload` and then start this one",
        dir.display()
    )]
    OlderVersion {
        /// The directory of bpffs.
        dir: PathBuf,
        /// The version of the layout found there.
        found: u32,
    },
    /// The attached programs are of another build than this process.
    #[error(
        "the attached programs are of another build ({}); use the pod-steer that attached them, or start the daemon of this one",
        attached.as_deref().unwrap_or("unknown")
    )]
    OtherBuild {
        /// Their build, if it is known.
        attached: Option<String>,
    },
    /// A map does not match any release.
    #[error(
        "the map `{}` does not match any release with kernel state {found}. End all steering with `pod-steer unload`, then start pod-steer again",
        pin.display()
    )]
    Unreadable {
        /// Where it is pinned.
        pin: PathBuf,
        /// The version of its state.
        found: u32,
    },
    /// No index is free.
    #[error("no free entry in {what}: all {limit} are in use; stop services or backends that are not needed")]
    Full {
        /// In which map or list.
        what: &'static str,
        /// How many entries it has.
        limit: u32,
    },
    /// A service has reached its quota; others may have more.
    #[error(
        "the service has reached its quota of {what}: {usage}; use fewer ports, addresses or networks, or stop services that are not \
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
    /// Whether the error concerns only the service that asked for more.
    pub fn is_quota(&self) -> bool {
        matches!(self, Self::Quota { .. })
    }

    /// Whether this version cannot read the state. Nothing has been changed then.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NewerVersion { .. } | Self::OlderVersion { .. } | Self::Unreadable { .. })
    }

    /// For `map_err` on loading a program.
    pub(super) fn load(name: &'static str) -> impl FnOnce(ProgramError) -> Self {
        move |source| match source {
            ProgramError::LoadError { io_error, verifier_log } => {
                Self::Refused { name, log: end_of(&verifier_log.to_string()), source: io_error }
            }
            source => Self::Program { name, source: Box::new(source) },
        }
    }

    /// For `map_err` on an operation on a map.
    pub(super) fn map(what: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { what, map, source: Box::new(source) }
    }

    /// For `map_err` on adding to a map: if the map is full, the error names its limit.
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

/// Maximum number of lines and of bytes that are kept of the verifier's log. All of it may be megabytes.
const LOG_LINES_MAX: usize = 12;
const LOG_BYTES_MAX: usize = 1_200;

/// The last lines of the verifier's log, as one line. The reason stands at the end.
fn end_of(log: &str) -> String {
    let mut lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut bytes = 0;
    let kept = lines.iter().rev().take(LOG_LINES_MAX).take_while(|line| {
        bytes += line.len();
        bytes <= LOG_BYTES_MAX
    });
    let kept = kept.count();
    lines.drain(..lines.len() - kept);
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_verifier_s_log_is_kept() {
        let log = (0..10_000).map(|n| format!("{n}: (bf) r6 = r1\n")).collect::<String>();
        let log = log + "combined stack size of 5 calls is 544. Too large\nprocessed 1000 insns\n\n";
        let end = end_of(&log);
        assert!(
            end.ends_with("9999: (bf) r6 = r1; combined stack size of 5 calls is 544. Too large; processed 1000 insns"),
            "{end}"
        );
        assert_eq!(end.split("; ").count(), LOG_LINES_MAX);
        assert!(end_of(&"x".repeat(5_000)).is_empty() && end_of("").is_empty());
        assert!(end_of(&format!("{}\nreason", "x".repeat(5_000))) == "reason");
    }
}
