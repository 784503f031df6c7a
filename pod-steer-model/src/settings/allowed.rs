//! Restrictions of a service: the ports that it may claim, the images of its containers, and the users of its listening sockets. Labels
//! cannot set them. Pure.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, ops::RangeInclusive};

use super::names::table_name;
use super::{Image, ImagePattern, ServiceTables};
use crate::condition::{Condition, Reason};
use crate::ports::Port;

/// Which ports services may claim, of any protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPolicy(pub Vec<RangeInclusive<u16>>);

impl Default for PortPolicy {
    fn default() -> Self {
        Self(vec![1..=u16::MAX])
    }
}

impl PortPolicy {
    /// Whether this port may be claimed.
    pub fn allows(&self, port: Port) -> bool {
        self.0.iter().any(|range| range.contains(&port.number))
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

/// The restrictions in a table of the configuration; `None` for no restriction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The ports that the service may claim, among those that the daemon allows.
    pub ports: Option<PortPolicy>,
    /// The images that its containers may have.
    pub images: Option<Vec<ImagePattern>>,
    /// The users that its listening sockets may belong to.
    pub users: Option<BTreeSet<u32>>,
}

impl ServiceTables {
    /// Why a table does not allow a service to claim a port, if so.
    pub fn port_fault(&self, service: &str, port: Port) -> Option<Condition> {
        let (table, ports) = self.allowed(service, |allowed| allowed.ports.as_ref())?;
        (!ports.allows(port)).then(|| {
            let table = table_name(table);
            let message =
                format!("port {port} is not in `allow-ports` of {table}, which applies to the service `{service}`");
            Condition::new(Reason::PortNotAllowed, message, "add it there, or use another port")
        })
    }

    /// Whether the table of a service lets it claim a port.
    pub fn may_claim(&self, service: &str, port: Port) -> bool {
        self.allowed(service, |allowed| allowed.ports.as_ref()).is_none_or(|(_, ports)| ports.allows(port))
    }

    /// Why a table does not allow containers with this image, if so.
    pub fn image_fault(&self, service: &str, image: &Image) -> Option<Condition> {
        let (table, images) = self.allowed(service, |allowed| allowed.images.as_ref())?;
        (!images.iter().any(|pattern| pattern.matches(image))).then(|| {
            let table = table_name(table);
            let message = format!(
                "its image {image} is not in `allow-images` of {table}, which applies to the service `{service}`"
            );
            Condition::new(Reason::ImageNotAllowed, message, "add it there, or use another image")
        })
    }

    /// Why a table does not allow processes, which have no image, if so.
    pub fn process_fault(&self, service: &str) -> Option<Condition> {
        let (table, _) = self.allowed(service, |allowed| allowed.images.as_ref())?;
        let message = format!(
            "a process has no image, and `allow-images` of {} limits the service `{service}` to containers of certain images",
            table_name(table)
        );
        let remedy = "start a container, choose another service, or remove the key";
        Some(Condition::new(Reason::ImageNotAllowed, message, remedy))
    }

    /// Whether any table restricts users.
    pub fn restricts_users(&self) -> bool {
        self.named.values().chain([&self.others]).any(|said| said.allowed.users.is_some())
    }

    /// The users that the listening sockets of a service may belong to, and the table that restricts them, if one does.
    pub fn users<'a>(&'a self, service: &'a str) -> Option<(&'a str, &'a BTreeSet<u32>)> {
        self.allowed(service, |allowed| allowed.users.as_ref())
    }

    /// A restriction of a service, and the name of its table: the service's own, else that of all services.
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
        said(Allowed { ports: PortPolicy::parse(list), ..Allowed::default() })
    }

    #[test]
    fn the_table_of_a_service_comes_before_that_of_all() {
        let named =
            BTreeMap::from([("web".to_owned(), ports("80,8000-8099")), ("bare".to_owned(), Settings::default())]);
        let tables = ServiceTables { named, others: ports("443") };
        for (service, port, may) in
            [("web", 80, true), ("web", 8099, true), ("web", 443, false), ("bare", 443, true), ("other", 80, false)]
        {
            assert_eq!(tables.may_claim(service, Port::tcp(port)), may, "{service} {port}");
            assert_eq!(tables.port_fault(service, Port::tcp(port)).is_none(), may, "{service} {port}");
        }
        let fault = tables.port_fault("other", Port::tcp(80)).unwrap().message;
        assert!(fault.contains("port 80 is not in `allow-ports` of [service.\"*\"]"), "{fault}");
        let fault = tables.port_fault("web", Port::tcp(443)).unwrap().message;
        assert!(fault.contains("`allow-ports` of [service.web]"), "{fault}");
        assert!(ServiceTables::default().may_claim("web", Port::tcp(1)));
    }

    #[test]
    fn allow_images_of_the_own_table_applies() {
        let images = |patterns: &[&str]| {
            let patterns = patterns.iter().map(|pattern| ImagePattern::parse(pattern).unwrap());
            said(Allowed { images: Some(patterns.collect()), ..Allowed::default() })
        };
        let named =
            BTreeMap::from([("web".to_owned(), images(&["nginx", "web:*"])), ("any".to_owned(), images(&["**"]))]);
        let tables = ServiceTables { named, others: images(&["base"]) };
        let fault = |service, name| tables.image_fault(service, &Image::new(name, ""));
        assert_eq!(
            [fault("web", "nginx"), fault("web", "web:2"), fault("any", "a/b"), fault("other", "base")],
            [const { None }; 4]
        );
        let said = fault("web", "base").unwrap().message;
        assert!(said.contains("its image base is not in `allow-images` of [service.web]"), "{said}");
        assert!(fault("other", "nginx").unwrap().message.contains("[service.\"*\"]"));
        assert!(tables.process_fault("any").is_some_and(|said| said.message.contains("a process has no image")));
        assert_eq!(ServiceTables::default().process_fault("web"), None);
    }
}
