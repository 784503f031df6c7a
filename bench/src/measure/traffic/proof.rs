//! Proof that the connections of a steered row were steered: the kernel program counts the lookups in which it chose a backend.

use anyhow::{Result, ensure};

use super::{lab::Lab, ways::Running};

/// How many times a contestant's service had been chosen before its turn; `None` for those that are not steered.
pub struct Proof<'a>(Option<(&'a Lab, &'static str, u64)>);

impl<'a> Proof<'a> {
    /// Must be called before the timed turn, since it queries the daemon.
    pub fn before(lab: &'a Lab, running: &Running) -> Result<Self> {
        let counted = |service| Ok::<_, anyhow::Error>((lab, service, lab.steered(service)?));
        Ok(Self(running.service.map(counted).transpose()?))
    }

    /// Fails if fewer connections were steered since then than were opened. More may have been, since a retransmitted SYN is looked up
    /// again.
    pub fn after(self, opened: u64) -> Result<()> {
        let Some((lab, service, before)) = self.0 else { return Ok(()) };
        let steered = lab.steered(service)?.saturating_sub(before);
        ensure!(steered >= opened, "of at least {opened} connections only {steered} were steered");
        Ok(())
    }
}
