//! Counts how much of a map each service has, and decides whether it may have more, by the rule
//! [`pod_steer_ebpf::may_take`].

use std::collections::HashMap;

use super::{KernelError, NO_SERVICE, Result, limits::limit, quota::Usage};
use crate::ids::ServiceIndex;

/// The numbers of one map's entries that the services have.
pub(super) struct Tally {
    /// Name of the entries in messages.
    what: &'static str,
    limit: u32,
    used: u32,
    by_owner: HashMap<ServiceIndex, u32>,
}

impl Tally {
    /// Counts the map with this name and usual size.
    pub fn new(map: &str, usual: u32, what: &'static str) -> Self {
        Self { what, limit: limit(map, usual), used: 0, by_owner: HashMap::new() }
    }

    /// A service has so many more entries.
    pub fn add(&mut self, owner: ServiceIndex, number: u32) {
        self.used += number;
        *self.by_owner.entry(owner).or_default() += number;
    }

    /// A service has so many fewer entries.
    pub fn take_away(&mut self, owner: ServiceIndex, number: u32) {
        self.used = self.used.saturating_sub(number);
        if let Some(own) = self.by_owner.get_mut(&owner) {
            *own = own.saturating_sub(number);
            if *own == 0 {
                self.by_owner.remove(&owner);
            }
        }
    }

    fn usage(&self, owner: ServiceIndex) -> Usage {
        let own = self.by_owner.get(&owner).copied().unwrap_or(0);
        Usage { own, used: self.used, limit: self.limit }
    }

    /// Checks whether a service may have one more. Entries of no service are not limited.
    pub fn admit(&self, owner: ServiceIndex) -> Result<()> {
        let usage = self.usage(owner);
        if owner == NO_SERVICE || usage.may_take() {
            Ok(())
        } else {
            Err(KernelError::Quota { what: self.what, usage })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_quota_can_be_taken_again() {
        let mut tally = Tally::new("NO_SUCH_MAP", 8, "things");
        for _ in 0..6 {
            tally.admit(ServiceIndex(1)).unwrap();
            tally.add(ServiceIndex(1), 1);
        }
        let refused = tally.admit(ServiceIndex(1)).unwrap_err().to_string();
        assert!(refused.contains("things") && refused.contains("6 of 8"), "{refused}");
        tally.admit(ServiceIndex(2)).unwrap();
        tally.add(ServiceIndex(2), 1);
        assert!(tally.admit(ServiceIndex(2)).is_err() && tally.admit(NO_SERVICE).is_ok());
        tally.take_away(ServiceIndex(1), 2);
        assert!(tally.admit(ServiceIndex(1)).is_ok() && tally.admit(ServiceIndex(2)).is_ok());
        tally.take_away(ServiceIndex(1), 4);
        tally.take_away(ServiceIndex(2), 1);
        assert_eq!((tally.used, tally.by_owner.len()), (0, 0));
    }
}
