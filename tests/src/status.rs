//! The output of `pod-steer status -o json`. Declared here again on purpose: it is a promise to users, and changing it should fail a
//! test.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use serde::Deserialize;

use crate::orders::Operation;

/// The complete status.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Pid of the daemon.
    pub pid: u32,
    /// Services by name.
    pub services: Vec<Service>,
    /// Every condition.
    pub conditions: Vec<OfSubject>,
}

/// A condition.
#[derive(Clone, Debug, Deserialize)]
pub struct Condition {
    /// Its kind.
    pub reason: String,
    /// `warning` or `info`.
    pub severity: String,
    /// What is the case.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
}

/// A condition, and what it concerns.
#[derive(Clone, Debug, Deserialize)]
pub struct OfSubject {
    /// What it concerns.
    pub subject: String,
    /// The condition.
    #[serde(flatten)]
    pub condition: Condition,
}

/// One service.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its ports with the container ports behind them.
    pub ports: Vec<String>,
    /// The namespaces in which it is steered.
    pub namespaces: Vec<Namespace>,
    /// `refuse` or `pass`.
    pub fallback: String,
    /// What chooses the backend of a connection.
    pub affinity: String,
    /// The operation that is under way.
    pub operation: Option<Operation>,
    /// Its conditions, without those of its backends.
    pub conditions: Vec<Condition>,
    /// Counters of lookups that chose no socket, or not the first one.
    pub counters: BTreeMap<String, u64>,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// An ingress namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Namespace {
    /// `DEVICE:INODE`.
    pub id: String,
    /// Its cookie.
    pub cookie: u64,
}

/// One backend.
#[derive(Clone, Debug, Deserialize)]
pub struct Backend {
    /// A container's full id, or what `exec` and `register` were given.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `container`, `exec` or `registered`.
    pub kind: String,
    /// Its engine's address.
    pub engine: Option<String>,
    /// Its version.
    pub version: String,
    /// The bridge behind which it is.
    pub bridge: Option<Bridge>,
    /// Its weight.
    pub weight: u64,
    /// Its state.
    pub state: String,
    /// Its known listening sockets.
    pub sockets: u64,
    /// Lookups that chose it.
    pub steered: u64,
    /// Connections opened at its listeners.
    pub opened: u64,
    /// Those that have closed.
    pub closed: u64,
    /// Connections that it holds.
    pub live: u64,
    /// Connections that came from a closing listener.
    pub moved_in: u64,
    /// Connections that left a closing listener.
    pub moved_out: u64,
    /// Its part of new connections now.
    pub share: f64,
    /// Its part of the connections that were opened so far.
    pub served: f64,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// A bridge that leads to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The backend's addresses there.
    pub addresses: Vec<String>,
}

impl Status {
    /// A service by its name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// A backend of a service by both names. Panics with the complete status if it does not exist.
    pub fn backend(&self, service: &str, name: &str) -> &Backend {
        let backends = self.service(service).map_or(&[][..], |service| &service.backends);
        let found = backends.iter().find(|backend| backend.name == name);
        found.unwrap_or_else(|| panic!("no backend {name} of service {service} in {self:#?}"))
    }

    /// Every condition that needs an operator, with its subject, in a line each.
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.conditions.iter().filter(|of| of.condition.is_warning());
        warnings.map(|OfSubject { subject, condition }| format!("{subject}: {condition}")).collect()
    }

    /// Every such condition of a subject whose description contains `part`; a backend may also be named by its id.
    pub fn said_about(&self, part: &str) -> Vec<String> {
        let backends = self.services.iter().flat_map(|service| &service.backends);
        let of_backends = backends.filter(|backend| backend.id.contains(part)).flat_map(Backend::warnings);
        let conditions = self.conditions.iter().filter(|of| of.subject.contains(part) && of.condition.is_warning());
        conditions.map(|of| of.condition.to_string()).chain(of_backends).collect()
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for service in &self.services {
            let counters: Vec<_> = service.counters.iter().filter(|(_, count)| **count > 0).collect();
            writeln!(f, "service {} {:?} {:?} {counters:?}", service.name, service.ports, service.namespaces)?;
            for backend in &service.backends {
                let Backend { name, state, sockets, steered, opened, closed, live, moved_in, moved_out, .. } = backend;
                write!(
                    f,
                    "  {name} {state}: {sockets} sockets, {steered} steered, {opened} opened, {closed} closed, "
                )?;
                writeln!(f, "{live} live, {moved_in} moved in, {moved_out} moved out, {:?}", backend.warnings())?;
            }
        }
        self.warnings().iter().try_for_each(|warning| writeln!(f, "{warning}"))
    }
}

impl Condition {
    fn is_warning(&self) -> bool {
        self.severity == "warning"
    }
}

impl Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl Backend {
    /// Its conditions of one severity.
    fn texts(&self, severity: &str) -> Vec<String> {
        let own = self.conditions.iter().filter(|condition| condition.severity == severity);
        own.map(ToString::to_string).collect()
    }

    /// Its conditions that need an operator.
    pub fn warnings(&self) -> Vec<String> {
        self.texts("warning")
    }

    /// What it does without.
    pub fn infos(&self) -> Vec<String> {
        self.texts("info")
    }

    /// The reasons of all of its conditions.
    pub fn reasons(&self) -> Vec<&str> {
        self.conditions.iter().map(|condition| condition.reason.as_str()).collect()
    }
}

impl Service {
    /// A counter by its name. Panics if there is none of that name.
    pub fn counter(&self, name: &str) -> u64 {
        *self.counters.get(name).unwrap_or_else(|| panic!("no counter {name} in {:?}", self.counters))
    }

    /// Backends that are steered to.
    pub fn ready(&self) -> usize {
        self.backends.iter().filter(|backend| backend.state == "ready" && backend.sockets > 0).count()
    }

    /// Connections opened at all backends.
    pub fn opened(&self) -> u64 {
        self.backends.iter().map(|backend| backend.opened).sum()
    }

    /// One of the backends' counters by backend.
    pub fn by_name(&self, counter: impl Fn(&Backend) -> u64) -> BTreeMap<String, u64> {
        self.backends.iter().map(|backend| (backend.name.clone(), counter(backend))).collect()
    }
}
