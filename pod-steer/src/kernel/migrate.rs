//! Moves the queue of a closing listener.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::{Program, ProgramError, SkReuseport};

use super::{Kernel, KernelError, Result};
use crate::sys;

/// Attaches the migrate program to reuseport groups. It is a handle of its own because finding a socket takes time and
/// happens beside the daemon's loop.
pub struct QueueMigration(OwnedFd);

impl Kernel {
    /// A handle on the migrate program.
    pub fn queue_migration(&self) -> Result<QueueMigration> {
        let failed = |source| KernelError::Program { name: "migrate", source: Box::new(source) };
        let Some(Program::SkReuseport(program)) = self.programs.program("migrate") else {
            return Err(failed(ProgramError::UnexpectedProgramType));
        };
        let fd = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
        fd.map(QueueMigration).map_err(|source| failed(ProgramError::IOError(source)))
    }
}

impl QueueMigration {
    /// Attaches the program for every socket of the group of `socket`, and for those that join it. Needs Linux 5.14.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        sys::attach_reuseport(socket, self.0.as_fd())
    }

    /// Detaches the program from the group of `socket`.
    pub fn detach(socket: impl AsFd) -> std::result::Result<(), ProgramError> {
        SkReuseport::detach(socket)
    }
}
