//! Which service has which index of counters in the kernel.

use crate::ids::ServiceIndex;
use std::collections::{BTreeMap, BTreeSet};

/// The index of each service.
#[derive(Debug, Default)]
pub struct Services {
    by_name: BTreeMap<String, ServiceIndex>,
}

impl Services {
    /// As an earlier daemon has left them.
    pub fn new(by_name: BTreeMap<String, ServiceIndex>) -> Self {
        Self { by_name }
    }

    /// The index of a service.
    pub fn index(&self, name: &str) -> Option<ServiceIndex> {
        self.by_name.get(name).copied()
    }

    /// Every service that has an index.
    pub fn all(&self) -> &BTreeMap<String, ServiceIndex> {
        &self.by_name
    }

    /// Exactly these services are there, and each gets an index below `limit` as long as there is a free one. Returns those that are new,
    /// or `None` if nothing has changed.
    pub fn follow(&mut self, named: &BTreeSet<&String>, limit: u32) -> Option<Vec<(String, ServiceIndex)>> {
        let before = self.by_name.len();
        self.by_name.retain(|name, _| named.contains(name));
        let has_left = self.by_name.len() != before;
        let used: BTreeSet<ServiceIndex> = self.by_name.values().copied().collect();
        let free = (0..limit).map(ServiceIndex).filter(|index| !used.contains(index));
        let unnamed = named.iter().filter(|name| !self.by_name.contains_key(**name));
        let new: Vec<(String, ServiceIndex)> = unnamed.map(|name| (*name).clone()).zip(free).collect();
        self.by_name.extend(new.iter().cloned());
        (has_left || !new.is_empty()).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_index_and_a_free_one_is_used_again() {
        let [a, b, c] = ["a", "b", "c"].map(str::to_owned);
        let mut services = Services::new(BTreeMap::from([(b.clone(), ServiceIndex(0))]));
        assert_eq!(services.follow(&BTreeSet::from([&a, &b]), 2), Some(vec![(a.clone(), ServiceIndex(1))]));
        assert_eq!(services.follow(&BTreeSet::from([&a, &b]), 2), None);
        // Without a free index a service has none, and gets one when another service has gone.
        assert_eq!(services.follow(&BTreeSet::from([&a, &b, &c]), 2), None);
        assert_eq!(services.index(&c), None);
        assert_eq!(services.follow(&BTreeSet::from([&a, &c]), 2), Some(vec![(c.clone(), ServiceIndex(0))]));
        assert_eq!(
            (services.index(&a), services.index(&b), services.index(&c)),
            (Some(ServiceIndex(1)), None, Some(ServiceIndex(0)))
        );
        assert_eq!(services.follow(&BTreeSet::from([&a]), 2), Some(vec![]));
    }
}
