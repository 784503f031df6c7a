//! What can be said of a service by a label and by the configuration alike. Pure: [`ServiceTables::effective`] decides
//! which of the two holds.
#![forbid(unsafe_code)]

mod allowed;
mod images;

use std::collections::{BTreeMap, BTreeSet};

pub use allowed::{Allowed, PortPolicy};
pub use images::{Image, ImagePattern};

use crate::{
    health::{CheckKind, CheckSpec},
    labels::Spec,
    rollout::Policy,
};

/// Percent of a service's backends below which failing ones stay, if nothing is said: when all fail, the last that did
/// not.
pub const PANIC_PERCENT_DEFAULT: u8 = 1;

/// What was said; nothing where nothing was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What happens when a new version appears.
    pub rollout: Option<Policy>,
    /// How long a new backend's weight grows, in milliseconds.
    pub slow_start_ms: Option<u64>,
    /// If fewer than so many percent of the backends pass their checks, those that last did stay.
    pub panic_percent: Option<u8>,
    /// The health check.
    pub check: Option<CheckSpec>,
    /// What restricts the service; no label says that.
    pub allowed: Allowed,
}

/// What holds for one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// What happens when a new version appears.
    pub policy: Policy,
    /// How long a new backend's weight grows, in milliseconds; 0 for not at all.
    pub slow_start_ms: u64,
    /// If fewer than so many percent of the backends pass their checks, those that last did stay; 0 for never.
    pub panic_percent: u8,
    /// The health check, if there is one.
    pub check: Option<CheckSpec>,
}

/// The services of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTables {
    /// `[service.NAME]`, by name.
    pub named: BTreeMap<String, Settings>,
    /// `[service."*"]`: every service, where its own table says nothing.
    pub others: Settings,
}

impl ServiceTables {
    /// What holds for a backend: its labels come first, then its service's table, then that of all services.
    pub fn effective(&self, spec: &Spec) -> Effective {
        let tables = || self.tables(&spec.service);
        let slow_start_ms = spec.slow_start_ms.or_else(|| tables().find_map(|said| said.slow_start_ms));
        let panic_percent = spec.panic_percent.or_else(|| tables().find_map(|said| said.panic_percent));
        Effective {
            policy: spec.rollout.or_else(|| tables().find_map(|said| said.rollout)).unwrap_or_default(),
            slow_start_ms: slow_start_ms.unwrap_or_default(),
            panic_percent: panic_percent.unwrap_or(PANIC_PERCENT_DEFAULT),
            check: self.check(spec).cloned(),
        }
    }

    /// The health check of a backend, if there is one.
    pub fn check<'a>(&'a self, spec: &'a Spec) -> Option<&'a CheckSpec> {
        let said = spec.check.as_ref().or_else(|| self.tables(&spec.service).find_map(|said| said.check.as_ref()));
        said.filter(|check| check.kind != CheckKind::None)
    }

    /// What the configuration says of a service, what comes first before the rest.
    fn tables(&self, service: &str) -> impl Iterator<Item = &Settings> {
        self.named.get(service).into_iter().chain([&self.others])
    }

    /// The ports that a backend is expected to listen on: those that it serves by, and the one that its check is for.
    pub fn listening_ports(&self, spec: &Spec) -> BTreeSet<u16> {
        let check = self.check(spec).and_then(|check| check.port(&spec.ports));
        spec.ports.iter().map(|map| map.target).chain(check).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::{self, Fallback};

    fn check(kind: CheckKind) -> Option<CheckSpec> {
        Some(CheckSpec::new(kind))
    }

    #[test]
    fn labels_come_before_the_table_and_that_before_the_one_for_all() {
        let tables = ServiceTables {
            named: BTreeMap::from([(
                "web".to_owned(),
                Settings { rollout: Some(Policy::Latest), slow_start_ms: Some(2), ..Settings::default() },
            )]),
            others: Settings {
                rollout: Some(Policy::Manual),
                slow_start_ms: Some(3),
                panic_percent: Some(50),
                check: check(CheckKind::Tcp),
                allowed: Allowed::default(),
            },
        };
        let spec = |name| labels::spec_from_flags(name, "80:8080", "v1", 1, Fallback::Refuse).unwrap();
        let web = Spec { slow_start_ms: Some(1), ..spec("web") };
        let effective = |policy, slow_start_ms| Effective {
            policy,
            slow_start_ms,
            panic_percent: 50,
            check: check(CheckKind::Tcp),
        };
        assert_eq!(tables.effective(&web), effective(Policy::Latest, 1));
        assert_eq!(tables.effective(&spec("web")), effective(Policy::Latest, 2));
        assert_eq!(tables.effective(&spec("other")), effective(Policy::Manual, 3));
        let none =
            Effective { policy: Policy::Balance, slow_start_ms: 0, panic_percent: PANIC_PERCENT_DEFAULT, check: None };
        assert_eq!(ServiceTables::default().effective(&spec("web")), none);
        let unchecked = Spec { check: check(CheckKind::None), ..spec("web") };
        assert_eq!(tables.effective(&unchecked).check, None, "a label takes the configured check away");
    }

    #[test]
    fn the_port_of_the_check_is_listened_on_too() {
        let mut spec = labels::spec_from_flags("web", "80:8080,443:8443", "v1", 1, Fallback::Refuse).unwrap();
        let tables = ServiceTables::default();
        assert_eq!(tables.listening_ports(&spec), BTreeSet::from([8080, 8443]));
        spec.check = Some(CheckSpec { port: Some(9000), ..CheckSpec::new(CheckKind::Tcp) });
        assert_eq!(tables.listening_ports(&spec), BTreeSet::from([8080, 8443, 9000]));
        spec.check = check(CheckKind::Tcp);
        assert_eq!(tables.listening_ports(&spec), BTreeSet::from([8080, 8443]));
    }
}
