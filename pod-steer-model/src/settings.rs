//! The settings of services from labels and the configuration. Pure. [`ServiceTables::options`] decides which value is in effect.
#![forbid(unsafe_code)]

mod allowed;
pub mod commented;
mod declare;
mod images;
pub mod names;
pub mod options;
pub mod reference;
mod spec;
mod via;

use std::collections::{BTreeMap, BTreeSet};

pub use allowed::{Allowed, PortPolicy};
pub use images::{Image, ImagePattern};
pub use options::{Fallback, GivenOptions, Observe, ServiceOptions};
pub use spec::Spec;
pub use via::Via;

use crate::{
    check::{CheckKind, CheckSpec},
    ports::{Port, PortMap},
};

/// A table of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The options that it gives.
    pub options: GivenOptions,
    /// The health check.
    pub check: Option<CheckSpec>,
    /// The restrictions of the service. No label can set them.
    pub allowed: Allowed,
}

/// The services of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTables {
    /// `[service.NAME]`, by name.
    pub named: BTreeMap<String, Settings>,
    /// `[service."*"]`: for options that a service's own table does not set.
    pub others: Settings,
}

impl ServiceTables {
    /// The options of a service in effect. The labels of its newest backend (`given`) come first, then the service's table, then the table of
    /// all services, then the defaults.
    pub fn options(&self, service: &str, of_newest: &GivenOptions) -> ServiceOptions {
        self.tables(service).fold(*of_newest, |given, table| given.or(&table.options)).or_defaults()
    }

    /// The health check of a backend, if there is one.
    pub fn check<'a>(&'a self, spec: &'a Spec) -> Option<&'a CheckSpec> {
        let said = spec.check.as_ref().or_else(|| self.tables(&spec.service).find_map(|said| said.check.as_ref()));
        said.filter(|check| check.kind != CheckKind::None)
    }

    /// The tables that apply to a service, in order of precedence.
    fn tables(&self, service: &str) -> impl Iterator<Item = &Settings> {
        self.named.get(service).into_iter().chain([&self.others])
    }

    /// The ports that a backend is expected to listen on: its declared container ports, and the port of its check.
    pub fn listening_ports(&self, spec: &Spec) -> BTreeSet<Port> {
        let check = self.check(spec).and_then(|check| check.port(&spec.ports));
        spec.ports.iter().map(PortMap::target_port).chain(check).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{labels, rollout::Policy};

    fn check(kind: CheckKind) -> Option<CheckSpec> {
        Some(CheckSpec::new(kind))
    }

    fn spec(name: &str) -> Spec {
        labels::spec_from_flags(name, "80:8080,443:8443", "v1", 1, GivenOptions::default()).unwrap()
    }

    #[test]
    fn labels_come_before_the_table_and_that_before_the_one_for_all() {
        let options = |rollout, slow_start_ms, panic_percent| GivenOptions {
            rollout,
            slow_start_ms,
            panic_percent,
            ..GivenOptions::default()
        };
        let table = |options| Settings { options, ..Settings::default() };
        let tables = ServiceTables {
            named: BTreeMap::from([("web".to_owned(), table(options(Some(Policy::Latest), Some(2), None)))]),
            others: table(GivenOptions {
                fallback: Some(Fallback::Pass),
                ..options(Some(Policy::Manual), Some(3), Some(50))
            }),
        };
        let expected = |rollout, slow_start_ms| ServiceOptions {
            fallback: Fallback::Pass,
            rollout,
            slow_start_ms,
            panic_percent: 50,
            ..ServiceOptions::default()
        };
        let none = GivenOptions::default();
        assert_eq!(tables.options("web", &options(None, Some(1), None)), expected(Policy::Latest, 1));
        assert_eq!(tables.options("web", &none), expected(Policy::Latest, 2));
        assert_eq!(tables.options("other", &none), expected(Policy::Manual, 3));
        assert_eq!(ServiceTables::default().options("web", &none), ServiceOptions::default());
    }

    #[test]
    fn the_check_of_a_label_comes_before_that_of_a_table() {
        let others = Settings { check: check(CheckKind::Tcp), ..Settings::default() };
        let tables = ServiceTables { others, ..ServiceTables::default() };
        assert_eq!(tables.check(&spec("web")), check(CheckKind::Tcp).as_ref());
        let unchecked = Spec { check: check(CheckKind::None), ..spec("web") };
        assert_eq!(tables.check(&unchecked), None, "a label takes the configured check away");
    }

    #[test]
    fn the_port_of_the_check_is_listened_on_too() {
        let mut spec = spec("web");
        let tables = ServiceTables::default();
        assert_eq!(tables.listening_ports(&spec), BTreeSet::from([8080, 8443].map(Port::tcp)));
        spec.check = Some(CheckSpec { port: Some(9000), ..CheckSpec::new(CheckKind::Tcp) });
        assert_eq!(tables.listening_ports(&spec), BTreeSet::from([8080, 8443, 9000].map(Port::tcp)));
        spec.check = check(CheckKind::Tcp);
        assert_eq!(tables.listening_ports(&spec), BTreeSet::from([8080, 8443].map(Port::tcp)));
    }
}
