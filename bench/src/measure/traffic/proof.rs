//! Proof that what a row calls steered was steered: the kernel program counts the lookups in which it chose a backend.

use anyhow::{Result, ensure};

use super::{lab::Lab, ways::Running};

/// How often a contestant's service had been chosen for before its turn; nothing for those that are not steered.
pub struct Proof<'a>(Option<(&'a Lab, &'static str, u64)>);

impl<'a> Proof<'a> {
    /// To be called before the turn is timed: it asks the daemon.
    pub fn before(lab: &'a Lab, running: &Running) -> Result<Self> {
        let counted = |service| Ok::<_, anyhow::Error>((lab, service, lab.steered(service)?));
        Ok(Self(running.service.map(counted).transpose()?))
    }

    /// Fails if fewer connections were steered since then than have been opened at least. More may have been: a SYN that
    /// comes again is looked up again.
    pub fn after(self, opened: u64) -> Result<()> {
        let Some((lab, service, before)) = self.0 else { return Ok(()) };
        let steered = lab.steered(service)?.saturating_sub(before);
        ensure!(steered >= opened, "of at least {opened} connections only {steered} were steered");
        Ok(())
    }
}
