//! What the daemon counts beside the kernel programs. It keeps these numbers in the kernel (`daemon/totals.rs`), so they continue in the
//! next daemon and can be read without one.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::rollout::{Order, Outcome, Quiet};

/// Upper limits of the time to effect, in seconds.
pub const EFFECT_S: [f64; 14] =
    [0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
/// Upper limits of the duration of an operation, in seconds.
pub const OPERATION_S: [f64; 12] = [0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];

/// What the programs of a backend's cgroup report of its listeners.
pub const LISTENER_EVENTS: [&str; 6] =
    ["listening", "closed", "not_registered", "left_out", "not_shared", "mptcp_refused"];
/// How operations end.
pub const OUTCOMES: [Outcome; 5] = [Outcome::Done, Outcome::Left, Outcome::Failed, Outcome::WentBack, Outcome::Aborted];

/// How many durations were at most as long as each limit, and not as long as the one before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// One more than there are limits: the last is of those that were longer than all.
    counts: Vec<u64>,
    /// Their sum, in seconds.
    sum_s: f64,
}

impl Durations {
    /// Adds one.
    pub fn add(&mut self, took: Duration, limits_s: &[f64]) {
        // Those that an earlier release has counted by other limits cannot be sorted into these.
        if self.counts.len() != limits_s.len() + 1 {
            *self = Self { counts: vec![0; limits_s.len() + 1], sum_s: 0.0 };
        }
        let took_s = took.as_secs_f64();
        let place = limits_s.iter().position(|limit| took_s <= *limit).unwrap_or(limits_s.len());
        self.counts[place] += 1;
        self.sum_s += took_s;
    }

    /// The sum in seconds, and the number of those up to each limit; the last limit is [`f64::MAX`].
    pub fn buckets(&self, limits_s: &[f64]) -> (f64, Vec<(f64, u64)>) {
        let limits = || limits_s.iter().copied().chain([f64::MAX]);
        if self.counts.len() != limits_s.len() + 1 {
            return (0.0, limits().map(|limit| (limit, 0)).collect());
        }
        (self.sum_s, limits().zip(self.counts.iter().copied()).collect())
    }
}

/// Counted for the daemon as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Daemons that have adopted this state.
    pub restarts: u64,
    /// Slot tables that were published.
    pub tables_published: u64,
    /// From a decision until it was in force.
    pub decision_effect: Durations,
    /// From the beginning of a plan until the tables of its backends were in force.
    pub backends_effect: Durations,
    /// By the name of their order: how long operations took.
    pub operations: BTreeMap<String, Durations>,
    /// Operations that have not ended: when each began, in milliseconds since the machine booted.
    pub begun_ms: BTreeMap<u64, i64>,
}

/// Counted for a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceTotals {
    /// Its name.
    pub service: String,
    /// Decisions that were put in force.
    pub decisions: u64,
    /// Operations that have ended, by the name of their order and their outcome.
    pub operations: BTreeMap<String, BTreeMap<String, u64>>,
    /// What the programs of its backends' cgroups have reported, by kind.
    pub listeners: BTreeMap<String, u64>,
    /// Since when it has had no connection, if it has the option `idle`.
    pub quiet: Option<Quiet>,
    /// How often it was woken, if it was.
    pub cold_starts: Option<ColdStarts>,
}

/// How often a service that slept was woken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ColdStarts {
    /// How often.
    pub count: u64,
    /// How long the last one took until its clients were served, in milliseconds.
    pub last_ms: u64,
}

impl ServiceTotals {
    /// Those of a service for which nothing was counted. What an alert asks for is there from the beginning, as zero: Prometheus does not
    /// see that a counter has grown if it appears with a number.
    pub fn new(service: &str) -> Self {
        let outcomes: BTreeMap<String, u64> = OUTCOMES.map(|outcome| (outcome.word().to_owned(), 0)).into();
        Self {
            service: service.to_owned(),
            decisions: 0,
            operations: ["deploy", "canary"].map(|order| (order.to_owned(), outcomes.clone())).into(),
            listeners: LISTENER_EVENTS.map(|event| (event.to_owned(), 0)).into(),
            quiet: None,
            cold_starts: None,
        }
    }

    /// Counts what the programs of cgroups have reported.
    pub fn count_listener(&mut self, event: &str) {
        count(&mut self.listeners, event);
    }

    /// Counts a wake, which took so long.
    pub fn count_cold_start(&mut self, took: Duration) {
        let cold_starts = self.cold_starts.get_or_insert_default();
        cold_starts.count += 1;
        cold_starts.last_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    }

    /// Counts an operation that has ended.
    pub fn count_operation(&mut self, order: &str, outcome: &str) {
        count(self.operations.entry(order.to_owned()).or_default(), outcome);
    }
}

fn count(counts: &mut BTreeMap<String, u64>, what: &str) {
    match counts.get_mut(what) {
        Some(count) => *count += 1,
        None => drop(counts.insert(what.to_owned(), 1)),
    }
}

/// Counted for a backend whose listeners have dropped something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendTotals {
    /// Its id.
    pub id: String,
    /// Packets that listeners had dropped which have closed since.
    pub closed: u64,
    /// By the cookie of each listener that is open: the number at the last look.
    pub open: BTreeMap<u64, u32>,
}

impl BackendTotals {
    /// All together.
    pub fn drops(&self) -> u64 {
        self.closed + self.open.values().map(|drops| u64::from(*drops)).sum::<u64>()
    }

    /// Takes the number of a listener that is open. True if it has changed.
    pub fn see(&mut self, cookie: u64, drops: u32) -> bool {
        drops != 0 && self.open.insert(cookie, drops) != Some(drops)
    }

    /// Adds those of listeners that are no longer open. True if there were any.
    pub fn close(&mut self, is_open: impl Fn(u64) -> bool) -> bool {
        let before = self.open.len();
        let closed = self.open.extract_if(.., |cookie, _| !is_open(*cookie)).map(|(_, drops)| u64::from(drops));
        self.closed += closed.sum::<u64>();
        self.open.len() != before
    }
}

/// The name of an order in metrics, which is that of its command.
pub fn order_name(order: &Order) -> &'static str {
    match order {
        Order::Deploy(_) => "deploy",
        Order::Canary(_) => "canary",
        Order::Shift(_) => "shift",
        Order::Rollback => "rollback",
        Order::Drain(_) => "drain",
        Order::Resume(_) => "resume",
        Order::Pause(_) => "pause",
        Order::Unpause => "unpause",
        Order::Idle => "idle",
        Order::Wake(_) => "wake",
        Order::Forget => "forget",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_at_the_first_limit_that_it_does_not_exceed() {
        let limits = [0.1, 1.0];
        let mut durations = Durations::default();
        assert_eq!(durations.buckets(&limits), (0.0, vec![(0.1, 0), (1.0, 0), (f64::MAX, 0)]));
        for ms in [100, 101, 5_000, 7_000] {
            durations.add(Duration::from_millis(ms), &limits);
        }
        let (sum_s, buckets) = durations.buckets(&limits);
        assert!((sum_s - 12.201).abs() < 1e-9, "{sum_s}");
        assert_eq!(buckets, [(0.1, 1), (1.0, 1), (f64::MAX, 2)]);
        // A release with other limits begins anew.
        durations.add(Duration::from_millis(1), &[0.5]);
        assert_eq!(durations.buckets(&[0.5]).1, [(0.5, 1), (f64::MAX, 0)]);
    }

    #[test]
    fn drops_of_closed_listeners_stay() {
        let mut totals = BackendTotals::default();
        assert!(!totals.see(7, 0), "most listeners drop nothing");
        assert!(totals.see(7, 3) && totals.see(8, 2) && !totals.see(8, 2));
        assert_eq!(totals.drops(), 5);
        assert!(totals.close(|cookie| cookie == 8) && !totals.close(|cookie| cookie == 8));
        assert!(totals.see(8, 4));
        assert_eq!(totals.drops(), 7);
    }

    #[test]
    fn totals_of_another_release_are_read_as_far_as_possible() {
        let totals: Totals = serde_json::from_str(r#"{"restarts": 3, "later": {}}"#).unwrap();
        assert_eq!(totals, Totals { restarts: 3, ..Totals::default() });
    }
}
