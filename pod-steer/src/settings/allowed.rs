//! What restricts a service: the ports that it may claim. Labels cannot say any of it. Pure.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use super::ServiceTables;
use crate::labels::table_name;

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

/// What a table of the configuration allows; nothing where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The ports that the service may claim, of those that any service may.
    pub ports: Option<PortPolicy>,
}

impl ServiceTables {
    /// Why a service may not claim a port, if its table says so.
    pub fn port_fault(&self, service: &str, port: u16) -> Option<String> {
        let (table, ports) = self.allowed(service, |allowed| allowed.ports.as_ref())?;
        (!ports.allows(port)).then(|| {
            format!(
                "port {port} is not allowed for the service `{service}` by `allow-ports` in {}; add it there, or choose another",
                table_name(table)
            )
        })
    }

    /// Whether the table of a service lets it claim a port.
    pub fn may_claim(&self, service: &str, port: u16) -> bool {
        self.allowed(service, |allowed| allowed.ports.as_ref()).is_none_or(|(_, ports)| ports.allows(port))
    }

    /// What restricts a service, and the name of the table that says so: its own, else that of all services.
    fn allowed<'a, T>(
        &'a self,
        service: &'a str,
        of: impl Fn(&'a Allowed) -> Option<&'a T>,
    ) -> Option<(&'a str, &'a T)> {
        let own = self.named.get(service).and_then(|said| of(&said.allowed));
        own.map(|said| (service, said)).or_else(|| of(&self.others.allowed).map(|said| ("*", said)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::settings::Settings;

    fn said(allowed: Allowed) -> Settings {
        Settings { allowed, ..Settings::default() }
    }

    fn ports(list: &str) -> Settings {
        said(Allowed { ports: PortPolicy::parse(list) })
    }

    #[test]
    fn the_table_of_a_service_comes_before_that_of_all() {
        let named =
            BTreeMap::from([("web".to_owned(), ports("80,8000-8099")), ("bare".to_owned(), Settings::default())]);
        let tables = ServiceTables { named, others: ports("443") };
        for (service, port, may) in
            [("web", 80, true), ("web", 8099, true), ("web", 443, false), ("bare", 443, true), ("other", 80, false)]
        {
            assert_eq!(tables.may_claim(service, port), may, "{service} {port}");
            assert_eq!(tables.port_fault(service, port).is_none(), may, "{service} {port}");
        }
        let fault = tables.port_fault("other", 80).unwrap();
        assert!(
            fault.contains("port 80 is not allowed") && fault.contains("`allow-ports` in [service.\"*\"]"),
            "{fault}"
        );
        assert!(tables.port_fault("web", 443).unwrap().contains("in [service.web];"));
        assert!(ServiceTables::default().may_claim("web", 1));
    }
}
