//! The network namespace whose decisions a command is about.

use std::{fs::File, io, path::Path};

use super::Failure;
use crate::{
    kernel::{check_readable, dry_run},
    netns::{self, Netns},
};

/// A network namespace in which something is steered.
pub(super) struct Steered<'a> {
    path: &'a Path,
    pub ns: File,
    pub netns: Netns,
}

impl<'a> Steered<'a> {
    /// Opens that of the command itself, or the one that it was given.
    pub fn open(dir: &Path, namespace: Option<&'a Path>) -> Result<Self, Failure> {
        let path = namespace.unwrap_or(Path::new("/proc/self/ns/net"));
        let ns = File::open(path).map_err(failed(path))?;
        let netns = netns::identify(&ns).map_err(failed(path))?;
        if !dry_run::is_steered(dir, netns.cookie) {
            return Err(Failure::Input(format!(
                "nothing is steered in the network namespace `{}` ({netns}); choose another one with --namespace",
                path.display()
            )));
        }
        Ok(Self { path, ns, netns })
    }

    /// Runs a function on a thread in this namespace: the kernel's answers are about the namespace of the thread that asks.
    pub fn run<T: Send>(&self, function: impl FnOnce() -> io::Result<T> + Send) -> Result<T, Failure> {
        netns::run_in(&self.ns, self.netns.cookie, function).map_err(failed(self.path))
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Input(format!("cannot enter the network namespace `{}`: {error}", path.display()))
}

/// There must be kernel state that can be read.
pub(super) fn check_state(dir: &Path) -> Result<(), Failure> {
    if check_readable(dir).map_err(|error| Failure::Input(crate::chain(&error)))? {
        return Ok(());
    }
    Err(Failure::Input(format!("nothing is steered: there is no kernel state below `{}`", dir.display())))
}
