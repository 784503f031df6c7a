//! Which ports may be claimed: `run --allow-ports`.

use std::ops::RangeInclusive;

/// Which ports services may claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPolicy(pub Vec<RangeInclusive<u16>>);

impl Default for PortPolicy {
    fn default() -> Self {
        Self(vec![1..=u16::MAX])
    }
}

impl PortPolicy {
    /// Whether this port may be claimed.
    pub fn allows(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Reads `80,443,8000-8999`.
    pub fn parse(list: &str) -> Option<Self> {
        let ranges = list.split(',').map(|item| {
            let (first, last) = item.trim().split_once('-').unwrap_or((item.trim(), item.trim()));
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            (first > 0 && first <= last).then_some(first..=last)
        });
        ranges.collect::<Option<Vec<_>>>().map(Self)
    }
}
