//! What is shown: services, their versions and backends with their figures, from an answer of the daemon and the samples before. Pure.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{sample::History, waits::Waits};
use crate::{
    api::{
        live::{Live, QueueStatus},
        types::{BackendStatus, OperationStatus, ServiceStatus, SubjectCondition},
    },
    cli::{terminal::bar, words},
    condition::{Condition, Severity},
    rollout::Order,
    world::State,
};

/// What a row is about; it stays the same when rows are sorted otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Key {
    /// A service.
    Service(String),
    /// A version of a service.
    Version(String, String),
    /// A backend of a service, by its id.
    Backend(String, String),
}

impl Key {
    /// The service that it belongs to.
    pub(in crate::cli) fn service(&self) -> &str {
        match self {
            Self::Service(service) | Self::Version(service, _) | Self::Backend(service, _) => service,
        }
    }
}

/// The figures of a backend, or the sums of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::cli) struct Figures {
    /// New connections a second; nothing before the second sample.
    pub rate: Option<f64>,
    /// Connections that are open.
    pub live: u64,
    /// Accept queues; nothing if they could not be looked at.
    pub queue: Option<QueueStatus>,
    /// The share of new connections that it is to get, 0 to 1.
    pub wanted: f64,
    /// New connections in the window.
    pub gained: Option<u64>,
    /// The share of new connections that it got in the window, 0 to 1; nothing if there were none.
    pub got: Option<f64>,
    /// Conditions that an operator has to act on.
    pub conditions: usize,
    /// Connections so far.
    pub opened: u64,
    /// Backends that new connections could go to.
    pub ready: usize,
    /// Backends.
    pub backends: usize,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.rate = sum(self.rate, other.rate, |own, other| own + other);
        self.gained = sum(self.gained, other.gained, |own, other| own + other);
        self.queue = sum(self.queue, other.queue, |own, other| QueueStatus {
            length: own.length + other.length,
            limit: own.limit + other.limit,
            usage: own.usage.max(other.usage),
            drops: own.drops + other.drops,
        });
        self.live += other.live;
        self.wanted += other.wanted;
        self.conditions += other.conditions;
        self.opened += other.opened;
        self.ready += other.ready;
        self.backends += other.backends;
    }
}

fn sum<T>(own: Option<T>, other: Option<T>, both: impl FnOnce(T, T) -> T) -> Option<T> {
    match (own, other) {
        (Some(own), Some(other)) => Some(both(own, other)),
        (own, other) => own.or(other),
    }
}

/// A row.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Row {
    /// What it is about.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// Its figures.
    pub figures: Figures,
    /// Of a backend.
    pub state: Option<State>,
    /// Of a service whose new connections wait.
    pub waits: Option<Waits>,
    /// The operation of a service.
    pub operation: Option<Progress>,
}

impl Row {
    fn new(key: Key, name: &str, figures: Figures) -> Self {
        Self { key, name: name.to_owned(), figures, state: None, waits: None, operation: None }
    }
}

/// An operation that is under way.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct Progress {
    /// What was ordered, as in `deploy v2`.
    pub order: String,
    /// What it waits for.
    pub text: String,
    /// How much is done, 0 to 1, if that can be told.
    pub part: Option<f64>,
}

impl Progress {
    fn of(status: &OperationStatus, now_ms: i64) -> Self {
        let order = match &status.operation.order {
            Order::Canary(canary) => format!("canary {}", canary.version),
            order => words::order(order),
        };
        Self { order, text: words::progress(status, now_ms), part: words::part_done(status, now_ms) }
    }
}

/// Width of the bar.
const BAR_COLUMNS: usize = 12;

impl Progress {
    /// In a line: a bar if it can be told how much is done, the order, and what it waits for.
    pub(in crate::cli) fn in_short(&self) -> String {
        let bar = self.part.map(|part| bar(part, BAR_COLUMNS) + " ").unwrap_or_default();
        format!("{bar}{}: {}", self.order, self.text)
    }
}

/// A service, its versions, and their backends.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Service {
    /// The service.
    pub row: Row,
    /// Each version with its backends.
    pub versions: Vec<(Row, Vec<Row>)>,
}

/// All of it.
#[derive(Debug)]
pub(in crate::cli) struct Board {
    /// By name.
    pub services: Vec<Service>,
    /// Of everything together.
    pub total: Figures,
    /// The conditions that an operator has to act on.
    pub conditions: Vec<SubjectCondition>,
    /// What the daemon answered.
    pub live: Live,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

impl Board {
    /// What an answer shows.
    pub(in crate::cli) fn new(live: Live, history: &History, at_ms: i64) -> Self {
        let services: Vec<Service> =
            live.status.services.iter().map(|own| service(own, &live.queues, history, at_ms)).collect();
        let mut total = Figures::default();
        services.iter().for_each(|service| total.add(&service.row.figures));
        let warnings = live.status.conditions.iter().filter(|of| of.condition.severity == Severity::Warning);
        let conditions = warnings.cloned().collect();
        Self { services, total, conditions, live, at_ms }
    }

    /// A service by its name.
    pub(in crate::cli) fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.row.name == name)
    }

    /// A backend by its id: its service, its row and its status.
    pub(in crate::cli) fn backend(&self, service: &str, id: &str) -> Option<(&ServiceStatus, &Row, &BackendStatus)> {
        let shown = self.service(service)?.versions.iter().flat_map(|(_, backends)| backends);
        let row = shown.into_iter().find(|row| matches!(&row.key, Key::Backend(_, own) if own == id))?;
        let service = self.live.status.services.iter().find(|own| own.name == service)?;
        Some((service, row, service.backends.iter().find(|own| own.id == id)?))
    }
}

type Queues = BTreeMap<crate::ids::BackendId, QueueStatus>;

fn service(status: &ServiceStatus, queues: &Queues, history: &History, now_ms: i64) -> Service {
    let mut by_version: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
    for own in &status.backends {
        by_version.entry(&own.version).or_default().push(backend(&status.name, own, queues, history));
    }
    let mut all = Figures { conditions: warnings(&status.conditions), ..Figures::default() };
    let versions = by_version.into_iter().map(|(version, backends)| {
        let mut figures = Figures::default();
        backends.iter().for_each(|row| figures.add(&row.figures));
        all.add(&figures);
        (Row::new(Key::Version(status.name.clone(), version.to_owned()), version, figures), backends)
    });
    let mut versions: Vec<(Row, Vec<Row>)> = versions.collect();
    let gained = all.gained.filter(|gained| *gained > 0);
    let got = |figures: &mut Figures| {
        figures.got = gained.and_then(|all| Some(figures.gained? as f64 / all as f64));
    };
    for (version, backends) in &mut versions {
        got(&mut version.figures);
        backends.iter_mut().for_each(|row| got(&mut row.figures));
    }
    got(&mut all);
    let mut row = Row::new(Key::Service(status.name.clone()), &status.name, all);
    row.waits = Waits::of(status);
    row.operation = status.operation.as_ref().map(|operation| Progress::of(operation, now_ms));
    Service { row, versions }
}

fn backend(service: &str, own: &BackendStatus, queues: &Queues, history: &History) -> Row {
    let figures = Figures {
        rate: history.rate(&own.id),
        live: own.live,
        queue: queues.get(own.id.as_str()).copied(),
        wanted: own.share,
        gained: history.gained(&own.id),
        got: None,
        conditions: warnings(&own.conditions),
        opened: own.opened,
        ready: usize::from(own.state.is_ready()),
        backends: 1,
    };
    let row = Row::new(Key::Backend(service.to_owned(), own.id.clone()), &own.name, figures);
    Row { state: Some(own.state), ..row }
}

fn warnings(conditions: &[Condition]) -> usize {
    conditions.iter().filter(|condition| condition.severity == Severity::Warning).count()
}

#[cfg(test)]
mod tests {
    use super::super::fixture;

    #[test]
    fn shares_are_of_the_window_and_sums_of_backends() {
        let board = fixture::board();
        let web = board.service("web").unwrap();
        assert_eq!((web.row.figures.rate, web.row.figures.got), (Some(100.0), Some(1.0)));
        let (v1, backends) = &web.versions[0];
        assert_eq!((v1.figures.rate, v1.figures.got, backends.len()), (Some(75.0), Some(0.75), 2));
        assert_eq!((v1.figures.ready, v1.figures.backends), (2, 2));
        assert!((v1.figures.wanted - 0.9).abs() < 1e-9, "{v1:?}");
        assert_eq!(v1.figures.queue.map(|queue| (queue.length, queue.limit)), Some((3, 256)));
        assert_eq!(web.versions[1].0.figures.conditions, 1);
        assert_eq!(web.row.figures.conditions, 1, "those of its backends count");
        let idle = &board.service("idle").unwrap().row.figures;
        assert_eq!((idle.rate, idle.got, idle.queue), (Some(0.0), None, None), "no share of no connections");
        assert_eq!(board.total.rate, Some(100.0));
    }

    #[test]
    fn a_backend_is_found_with_its_service() {
        let board = fixture::board();
        let (service, row, own) = board.backend("web", "id-v2-1").unwrap();
        assert_eq!((service.name.as_str(), row.name.as_str(), own.version.as_str()), ("web", "v2-1", "v2"));
        assert!(board.backend("web", "id-nope").is_none() && board.backend("nope", "id-v2-1").is_none());
    }
}
