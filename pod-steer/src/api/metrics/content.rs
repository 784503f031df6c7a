//! Which metrics there are. A series has a service, a version, the name of a backend, and words from fixed lists, so their number is bounded
//! by that of backends. Counters continue when the daemon is restarted: the kernel keeps them.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::LazyLock,
};

use pod_steer_ebpf::ABI_VERSION;
use serde::Serialize;

use super::{
    measured::{Lost, Measured, Queues},
    page::{Labels, Page},
    process::Usage,
    totals::{EFFECT_S, OPERATION_S, ServiceTotals, Totals, order_name},
};
use crate::{
    api::types::{BackendStatus, ServiceCountersStatus, ServiceStatus, Status},
    condition::Reason,
    listening::TurnedAway,
    world::State,
};

/// The page of a daemon, in OpenMetrics.
pub fn of_daemon(status: &Status, measured: &Measured, usage: Option<Usage>) -> String {
    let mut page = Page::default();
    let mut backends = Backends::default();
    for service in &status.services {
        for backend in &service.backends {
            let drops = measured.drops.get(backend.id.as_str()).copied().unwrap_or(0);
            let queues = measured.queues.get(backend.id.as_str()).copied();
            let is_known = !backend.conditions.iter().any(|own| own.reason == Reason::ConnectionsNotCounted);
            let connections = is_known.then_some(backend.live);
            let counts = with_unseen(counts(backend, drops), backend.kind == "registered");
            let counted = Counted { counts, connections, queues };
            backends.add(&service.name, &backend.version, &backend.name, counted, Some(Known::of(backend)));
        }
    }
    backends.add_to(&mut page);
    add_versions(&mut page, &status.services);
    let outcomes: Vec<(&str, ServiceCountersStatus)> =
        status.services.iter().map(|service| (service.name.as_str(), service.counters)).collect();
    add_outcomes(&mut page, &outcomes);
    let counted: BTreeSet<&str> = measured.services.iter().map(|own| own.service.as_str()).collect();
    let others = status.services.iter().filter(|service| !counted.contains(service.name.as_str()));
    let others = others.map(|service| ServiceTotals::new(&service.name));
    add_services(&mut page, &measured.services.iter().cloned().chain(others).collect::<Vec<_>>());
    let running = status.services.iter().filter_map(|service| {
        let operation = &service.operation.as_ref()?.operation;
        let labels = Labels::new([("service", service.name.as_str()), ("operation", order_name(&operation.order))]);
        Some((labels, operation.begun_ms as f64 / 1000.0))
    });
    page.gauges(
        "pod_steer_service_operation_start_time_seconds",
        "When the operation began that a service has, since 1970.",
        running.collect(),
    );
    let paused = status.services.iter().map(|service| {
        (Labels::new([("service", service.name.as_str())]), f64::from(u8::from(service.decision.paused)))
    });
    let held = status.services.iter().map(|service| {
        let held = service.pause.as_ref().map_or(0, |pause| pause.held);
        (Labels::new([("service", service.name.as_str())]), held as f64)
    });
    page.gauges(
        "pod_steer_service_held",
        "Connections of clients that are held during a pause, until the service's servers get them.",
        held.collect(),
    );
    let asleep = status.services.iter().map(|service| {
        let is_asleep = service.decision.asleep.is_some();
        (Labels::new([("service", service.name.as_str())]), f64::from(u8::from(is_asleep)))
    });
    page.gauges("pod_steer_service_asleep", "Whether a service sleeps until a client comes.", asleep.collect());
    page.gauges("pod_steer_service_paused", "Whether new connections of a service wait.", paused.collect());
    add_namespaces(&mut page, &measured.namespaces);
    let engines = measured
        .engines
        .iter()
        .map(|(engine, is_up)| (Labels::new([("engine", engine.as_str())]), f64::from(u8::from(*is_up))));
    page.gauges("pod_steer_engine_up", "Whether a container engine can be reached.", engines.collect());
    add_conditions(&mut page, status);
    if let Some(usage) = usage {
        usage.add_to(&mut page);
    }
    finished(page, &measured.totals, measured.lost, true)
}

/// What the kernel tells of a backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// In the order of `COUNTERS`; `None` for those that no kernel program counts.
    pub counts: [Option<u64>; COUNTERS.len()],
    /// Connections that it holds, if that is known.
    pub connections: Option<u64>,
    /// Its accept queues, if they could be read.
    pub queues: Option<Queues>,
}

impl Counted {
    fn add(&mut self, other: &Self) {
        // A sum of which a part is not known is not known either.
        let both = |own: Option<u64>, other: Option<u64>| Some(own? + other?);
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum = both(*sum, count);
        }
        self.connections = both(self.connections, other.connections);
        self.queues = either(self.queues, other.queues, Queues::and);
    }
}

/// Both together, or the one that is there.
fn either<T>(own: Option<T>, other: Option<T>, both: impl FnOnce(T, T) -> T) -> Option<T> {
    match (own, other) {
        (Some(own), Some(other)) => Some(both(own, other)),
        (own, other) => own.or(other),
    }
}

/// Names and descriptions of a backend's counters.
const COUNTERS: [(&str, &str); 8] = [
    ("pod_steer_backend_steered", "Lookups and packets for which a backend was chosen."),
    ("pod_steer_backend_connections_opened", "Connections that the listeners of a backend have completed."),
    ("pod_steer_backend_connections_closed", "Connections among those opened that have closed."),
    ("pod_steer_backend_connections_moved_in", "Connections that came from the queue of a listener that closed."),
    ("pod_steer_backend_connections_moved_out", "Connections that went to another backend when a listener closed."),
    ("pod_steer_backend_half_open_moves", "Moves of half-open connections when a listener closed."),
    ("pod_steer_backend_connections_not_moved", "Connections in the queue of a listener that closed which were reset."),
    ("pod_steer_backend_listen_drops", "Packets that listeners have dropped, mostly because a queue was full."),
];

/// These counters. No kernel program counts the connections of a registered process, since it has no cgroup of its own.
pub fn with_unseen(counts: [u64; COUNTERS.len()], is_registered: bool) -> [Option<u64>; COUNTERS.len()] {
    let mut counts = counts.map(Some);
    if is_registered {
        let [_, opened, closed, ..] = &mut counts;
        (*opened, *closed) = (None, None);
    }
    counts
}

fn counts(backend: &BackendStatus, drops: u64) -> [u64; COUNTERS.len()] {
    let BackendStatus { steered, opened, closed, moved_in, moved_out, moved_half_open, not_moved, .. } = *backend;
    [steered, opened, closed, moved_in, moved_out, moved_half_open, not_moved, drops]
}

/// What only a daemon knows of a backend.
#[derive(Clone, Debug, Default)]
pub struct Known {
    share: f64,
    weight: f64,
    sockets: f64,
    states: BTreeSet<&'static str>,
}

impl Known {
    fn of(backend: &BackendStatus) -> Self {
        let BackendStatus { share, weight, sockets, state, .. } = *backend;
        Self { share, weight: weight.into(), sockets: sockets as f64, states: BTreeSet::from([state.word()]) }
    }

    fn and(self, other: Self) -> Self {
        Self {
            share: self.share + other.share,
            weight: self.weight + other.weight,
            sockets: self.sockets + other.sockets,
            states: self.states.into_iter().chain(other.states).collect(),
        }
    }
}

/// The backends by service, version and name. Those of one name are added up, so that each series is there once.
#[derive(Debug, Default)]
pub struct Backends(BTreeMap<Labels, (Counted, Option<Known>)>);

impl Backends {
    /// Adds a backend.
    pub fn add(&mut self, service: &str, version: &str, backend: &str, counted: Counted, known: Option<Known>) {
        let labels = Labels::new([("service", service), ("version", version), ("backend", backend)]);
        match self.0.entry(labels) {
            Entry::Vacant(place) => {
                place.insert((counted, known));
            }
            Entry::Occupied(mut own) => {
                let (sum, all) = own.get_mut();
                sum.add(&counted);
                *all = either(all.take(), known, Known::and);
            }
        }
    }

    /// Adds their metrics.
    pub fn add_to(&self, page: &mut Page) {
        for (number, (name, help)) in COUNTERS.into_iter().enumerate() {
            let count =
                |(labels, (counted, _)): (&Labels, &(Counted, _))| Some((labels.clone(), counted.counts[number]?));
            let samples = self.0.iter().filter_map(count);
            page.counters(name, help, samples.collect());
        }
        let mut gauge = |name, help, value: fn(&Counted) -> Option<f64>| {
            let samples = self.0.iter().filter_map(|(labels, (counted, _))| Some((labels.clone(), value(counted)?)));
            page.gauges(name, help, samples.collect());
        };
        gauge("pod_steer_backend_connections", "Connections that a backend holds.", |own| {
            Some(own.connections? as f64)
        });
        gauge("pod_steer_backend_accept_queue_length", "Connections that wait to be accepted.", |own| {
            Some(own.queues?.length as f64)
        });
        gauge("pod_steer_backend_accept_queue_limit", "Connections that may wait to be accepted.", |own| {
            Some(own.queues?.limit as f64)
        });
        gauge(
            "pod_steer_backend_accept_queue_usage_ratio",
            "How full the fullest accept queue of a backend is; at 1 it turns clients away.",
            |own| Some(own.queues?.usage),
        );
        let known: Vec<(&Labels, &Known)> =
            self.0.iter().filter_map(|(labels, (_, known))| Some((labels, known.as_ref()?))).collect();
        let mut gauge = |name, help, value: fn(&Known) -> f64| {
            page.gauges(name, help, known.iter().map(|(labels, known)| ((*labels).clone(), value(known))).collect());
        };
        gauge("pod_steer_backend_share_ratio", "The share of new connections that a backend gets.", |own| own.share);
        gauge("pod_steer_backend_weight", "The weight of a backend.", |own| own.weight);
        gauge("pod_steer_backend_listening_sockets", "Listening sockets of a backend.", |own| own.sockets);
        let states = known
            .iter()
            .flat_map(|(labels, known)| known.states.iter().map(|state| (labels.with("state", state), 1.0)))
            .collect();
        page.gauges("pod_steer_backend_state", "The state of a backend: 1 for the one that it is in.", states);
    }
}

/// How many backends of a version are in each state. Those of states in which none is are zero, so that an alert can ask for them.
fn add_versions(page: &mut Page, services: &[ServiceStatus]) {
    let mut samples = Vec::new();
    for service in services {
        let mut versions: BTreeMap<&str, BTreeMap<&str, u32>> = BTreeMap::new();
        for backend in &service.backends {
            *versions.entry(&backend.version).or_default().entry(backend.state.word()).or_default() += 1;
        }
        for (version, states) in versions {
            let labels = Labels::new([("service", service.name.as_str()), ("version", version)]);
            let all = State::ALL.map(State::word);
            samples
                .extend(all.map(|state| (labels.with("state", state), states.get(state).copied().unwrap_or(0).into())));
        }
    }
    page.gauges("pod_steer_version_backends", "Backends of a version that are in a state.", samples);
}

/// Adds the counters of services. Each way out of the lookup and the forwarding programs that found no socket at once has one; its name is
/// the outcome.
pub fn add_outcomes(page: &mut Page, services: &[(&str, ServiceCountersStatus)]) {
    let outcomes = services.iter().flat_map(|(name, counters)| {
        let fields = serde_json::to_value(counters).ok().and_then(|value| value.as_object().cloned());
        fields.into_iter().flatten().filter_map(move |(outcome, count)| {
            Some((Labels::new([("service", *name), ("outcome", &outcome)]), count.as_u64()?))
        })
    });
    page.counters(
        "pod_steer_service_outcomes",
        "Lookups and packets of a service that did not find a socket at once, by what became of them.",
        outcomes.collect(),
    );
}

/// Adds what the daemon has counted of services.
pub fn add_services(page: &mut Page, services: &[ServiceTotals]) {
    let (mut listeners, mut decisions, mut operations) = (Vec::new(), Vec::new(), Vec::new());
    for own in services {
        let labels = Labels::new([("service", own.service.as_str())]);
        decisions.push((labels.clone(), own.decisions));
        listeners.extend(own.listeners.iter().map(|(event, count)| (labels.with("event", event), *count)));
        for (order, outcomes) in &own.operations {
            let labels = labels.with("operation", order);
            operations.extend(outcomes.iter().map(|(outcome, count)| (labels.with("outcome", outcome), *count)));
        }
    }
    page.counters(
        "pod_steer_service_listener_events",
        "Reports of the programs of cgroups on the listeners of a service's backends.",
        listeners,
    );
    page.counters("pod_steer_service_decisions", "Decisions about a service that were put in force.", decisions);
    page.counters("pod_steer_service_operations", "Operations on a service that have ended.", operations);
    let woken = || {
        let woken = services.iter().filter_map(|own| Some((own.service.as_str(), own.cold_starts?)));
        woken.map(|(service, cold_starts)| (Labels::new([("service", service)]), cold_starts))
    };
    page.counters(
        "pod_steer_service_cold_starts",
        "How often a service that slept was woken.",
        woken().map(|(labels, own)| (labels, own.count)).collect(),
    );
    page.gauges(
        "pod_steer_service_last_cold_start_seconds",
        "How long it took to wake a service the last time, until its clients were served.",
        woken().map(|(labels, own)| (labels, own.last_ms as f64 / 1_000.0)).collect(),
    );
}

/// Adds what was turned away in network namespaces.
pub fn add_namespaces(page: &mut Page, namespaces: &BTreeMap<String, TurnedAway>) {
    let mut counter = |name, help, of: fn(&TurnedAway) -> u64| {
        let all = namespaces.iter();
        page.counters(name, help, all.map(|(id, own)| (Labels::new([("netns", id.as_str())]), of(own))).collect());
    };
    counter(
        "pod_steer_namespace_listen_overflows",
        "Clients that all full accept queues of a network namespace have turned away.",
        |own| own.overflows,
    );
    counter(
        "pod_steer_namespace_listen_drops",
        "Packets that all listeners of a network namespace have dropped.",
        |own| own.drops,
    );
    counter(
        "pod_steer_namespace_syn_drops",
        "SYNs that a network namespace has dropped because a queue of half-open connections was full.",
        |own| own.syn_drops,
    );
}

fn add_conditions(page: &mut Page, status: &Status) {
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for of in &status.conditions {
        *counts.entry((word(&of.condition.reason), word(&of.condition.severity))).or_default() += 1;
    }
    let samples = counts.iter().map(|((reason, severity), count)| {
        (Labels::new([("reason", reason.as_str()), ("severity", severity.as_str())]), f64::from(*count))
    });
    page.gauges("pod_steer_conditions", "Conditions that are reported, by their reason.", samples.collect());
}

/// The word by which the API names a value.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The build of this program.
static BUILD: LazyLock<Labels> = LazyLock::new(|| {
    let state = ABI_VERSION.to_string();
    let revision = option_env!("POD_STEER_COMMIT").unwrap_or_default();
    Labels::new([("version", env!("CARGO_PKG_VERSION")), ("revision", revision), ("kernel_state", &state)])
});

/// Adds what is of the daemon as a whole, and ends the page in OpenMetrics.
pub fn finished(mut page: Page, totals: &Totals, lost: Lost, is_up: bool) -> String {
    page.counter("pod_steer_tables_published", "Slot tables that were published.", totals.tables_published);
    let effects = [("decision", &totals.decision_effect), ("backends", &totals.backends_effect)];
    page.histograms(
        "pod_steer_time_to_effect_seconds",
        "From a decision, or the plan for other backends, until new connections follow it.",
        effects.map(|(change, took)| (Labels::new([("change", change)]), took.buckets(&EFFECT_S))).into(),
    );
    let operations = totals.operations.iter();
    page.histograms(
        "pod_steer_operation_duration_seconds",
        "How long operations took.",
        operations
            .map(|(order, took)| (Labels::new([("operation", order.as_str())]), took.buckets(&OPERATION_S)))
            .collect(),
    );
    page.counter("pod_steer_kernel_events_lost", "Reports of the kernel programs that were lost.", lost.events);
    page.counter(
        "pod_steer_socket_descriptions_lost",
        "Listening sockets that the kernel programs could not describe.",
        lost.descriptions,
    );
    page.counter("pod_steer_daemon_restarts", "Daemons that have taken over this state.", totals.restarts);
    page.gauge("pod_steer_up", "Whether this page is of a running daemon.", f64::from(u8::from(is_up)));
    page.gauges("pod_steer_build_info", "The build of pod-steer that wrote this page.", vec![(BUILD.clone(), 1.0)]);
    page.text()
}

#[cfg(test)]
mod tests;
