//! Decisions, operations and their history, as they are stored and as they go over the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::words;
use crate::{text::Name, time::Timed};

/// What a service's operator has decided. The kernel keeps `revision`, so a daemon that starts knows whether the last
/// decision is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Decision {
    /// Grows by one with every change of what follows.
    pub revision: u32,
    /// Which version gets how much.
    pub traffic: Traffic,
    /// What gets no new connections.
    pub drained: BTreeSet<Part>,
    /// New connections wait.
    pub paused: bool,
}

/// Which version gets how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Traffic {
    /// Shares by version, relative to each other. Nothing: every backend counts by its own weight, whatever its version.
    pub weights: Option<BTreeMap<String, u32>>,
    /// Clients of these networks come to this version whatever the weights.
    #[schema(value_type = BTreeMap<String, String>)]
    pub from: BTreeMap<IpNet, String>,
}

/// A part of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(tag = "part", content = "name", rename_all = "kebab-case")]
pub enum Part {
    /// All of it.
    Service,
    /// One version.
    Version(String),
    /// One backend, by its id.
    Backend(String),
}

/// What happens when a new version appears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// All versions share.
    #[default]
    Balance,
    /// A new version takes over as soon as it is ready.
    Latest,
    /// A new version waits for `deploy` or `shift`.
    Manual,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Balance => "balance",
            Self::Latest => "latest",
            Self::Manual => "manual",
        })
    }
}

/// What an operator may order about a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Move everything to a version.
    Deploy(DeployOrder),
    /// Move to a version step by step.
    Canary(CanaryOrder),
    /// Set the shares of the versions.
    Shift(ShiftOrder),
    /// Back to what was before the last deploy, shift or canary; ends one that is going on.
    Rollback,
    /// No new connections for a part.
    Drain(PartOrder),
    /// New connections for it again.
    Resume(PartOrder),
    /// New connections wait.
    Pause,
    /// They come in again.
    Unpause,
    /// Its shares, networks and drains end, because it has had no backend for a while. The daemon alone orders it.
    Forget,
}

impl Order {
    /// The names in it.
    pub fn names(&self) -> impl Iterator<Item = (Name, &str)> {
        let mut names: Vec<(Name, &String)> = Vec::new();
        match self {
            Self::Deploy(DeployOrder { version, .. }) | Self::Canary(CanaryOrder { version, .. }) => {
                names.push((Name::Version, version));
            }
            Self::Shift(shift) => {
                names.extend(shift.weights.keys().chain(shift.from.values()).map(|version| (Name::Version, version)));
            }
            Self::Drain(part) | Self::Resume(part) => {
                names.extend(part.version.iter().map(|version| (Name::Version, version)));
                names.extend(part.backend.iter().map(|backend| (Name::Backend, backend)));
            }
            Self::Rollback | Self::Pause | Self::Unpause | Self::Forget => {}
        }
        names.into_iter().map(|(kind, name)| (kind, name.as_str()))
    }
}

/// See [`Order::Deploy`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeployOrder {
    /// The version.
    pub version: String,
    /// How many of its backends must be ready; all that exist if not given.
    #[serde(default)]
    pub backends: Option<u32>,
    /// How long they may take to be ready, in milliseconds.
    pub timeout_ms: u64,
    /// How long old connections may take to end, in milliseconds.
    pub drain_timeout_ms: u64,
    /// Stop the old containers at the end.
    #[serde(default)]
    pub stop_old: bool,
    /// Keep them for so long before they are stopped, in milliseconds.
    #[serde(default)]
    pub keep_old_ms: Option<u64>,
}

/// See [`Order::Canary`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CanaryOrder {
    /// The version.
    pub version: String,
    /// Shares of the version in hundredths of a percent, ascending; the last is 10,000.
    pub steps: Vec<u32>,
    /// How long each step lasts, in milliseconds.
    pub every_ms: u64,
    /// How long the version may take to be ready, in milliseconds.
    pub timeout_ms: u64,
}

/// See [`Order::Shift`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ShiftOrder {
    /// The shares of versions; those that are not named get nothing. Empty: the shares stay as they are.
    pub weights: BTreeMap<String, u32>,
    /// Back to every backend by its own weight; `weights` is then empty.
    pub balance: bool,
    /// Networks whose clients come to a version.
    #[schema(value_type = BTreeMap<String, String>)]
    pub from: BTreeMap<IpNet, String>,
    /// Networks that are no longer treated apart.
    #[schema(value_type = BTreeSet<String>)]
    pub not_from: BTreeSet<IpNet>,
}

/// See [`Order::Drain`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PartOrder {
    /// A version.
    pub version: Option<String>,
    /// A backend, by its name or id. Neither: the service.
    pub backend: Option<String>,
}

/// Something that an operator ordered, going on or ended: a line of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its number; grows. 0 if the order was in force already, so that nothing was changed or recorded.
    pub id: u64,
    /// The service.
    pub service: String,
    /// Who ordered it, for people.
    pub who: String,
    /// When, in milliseconds since 1970; for people.
    pub begun_ms: i64,
    /// What was ordered.
    #[serde(flatten)]
    pub order: Order,
    /// What was before it: where a rollback goes.
    pub before: Traffic,
    /// Parts that were drained before it, and that it has let in.
    #[serde(default)]
    pub undrained: BTreeSet<Part>,
    /// Where it is.
    pub phase: Phase,
    /// The steps that are done, in order. Not `steps` outside: a canary's order has those.
    #[serde(rename = "steps_done")]
    pub steps: Vec<Step>,
    /// How it ended; nothing while it goes on.
    pub end: Option<End>,
    /// Why it is not on disk, if it is not: it is in force, and lost when the daemon or the machine restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_stored: Option<String>,
}

/// Where an operation is. In the daemon its times are since the machine booted, in the API and where they are stored they
/// are by the wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Phase {
    /// The version is to become ready.
    Waiting {
        /// Since when, in milliseconds since 1970.
        #[serde(default)]
        since_ms: i64,
        /// Until when, in milliseconds since 1970.
        deadline_ms: i64,
    },
    /// New connections go to the new version; old ones are to end.
    Draining {
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
        /// Until when, in milliseconds since 1970.
        deadline_ms: i64,
        /// Ids of the backends that are left.
        old: BTreeSet<String>,
        /// Connections that they had when they were left.
        connections: u64,
    },
    /// A share of new connections goes to the new version.
    Stepping {
        /// Which step, from 0.
        step: usize,
        /// Ids and names of the version's backends that were ready then: if one of them is not any more, it goes back.
        watched: BTreeMap<String, String>,
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
        /// When the next one comes, in milliseconds since 1970.
        next_ms: i64,
    },
    /// The old backends are told to stop.
    Stopping {
        /// Their ids.
        old: BTreeSet<String>,
        /// Until when they may take, in milliseconds since 1970.
        deadline_ms: i64,
    },
    /// It has ended.
    Ended,
}

impl Timed for Operation {
    /// Those of its phase; when it began and ended is by the wall clock always.
    fn times(&mut self) -> impl Iterator<Item = &mut i64> {
        let (first, second) = match &mut self.phase {
            Phase::Waiting { since_ms, deadline_ms } | Phase::Draining { since_ms, deadline_ms, .. } => {
                (Some(since_ms), Some(deadline_ms))
            }
            Phase::Stepping { since_ms, next_ms, .. } => (Some(since_ms), Some(next_ms)),
            Phase::Stopping { deadline_ms, .. } => (Some(deadline_ms), None),
            Phase::Ended => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// A step that is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What it was, for people: `ready`, `switched`, `5 %`, `drained`, `stopped`.
    pub name: String,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// More about it, for people.
    pub detail: String,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// In one word.
    pub outcome: Outcome,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What to know about it, one line for people.
    pub message: String,
}

/// How an operation ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All of it is done.
    Done,
    /// New connections have moved, and old ones were left at the deadline.
    Left,
    /// Nothing has changed.
    Failed,
    /// It had begun and went back by itself.
    WentBack,
    /// Somebody ended it with a rollback.
    Aborted,
}

impl Outcome {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Left => "left",
            Self::Failed => "failed",
            Self::WentBack => "went-back",
            Self::Aborted => "aborted",
        }
    }
}

impl Operation {
    /// What was ordered, for people.
    pub fn title(&self) -> String {
        match &self.order {
            Order::Deploy(order) => format!("the deploy of {}", order.version),
            Order::Canary(order) => format!("the canary of {}", order.version),
            Order::Shift(_) => "the shift".to_owned(),
            Order::Rollback => "the rollback".to_owned(),
            Order::Drain(_) => "the drain".to_owned(),
            Order::Resume(_) => "the resume".to_owned(),
            Order::Pause => "the pause".to_owned(),
            Order::Unpause => "the unpause".to_owned(),
            Order::Forget => "the end of what was decided".to_owned(),
        }
    }

    /// What it is waiting for, for people.
    pub fn waiting_for(&self, ready: u32, wanted: u32, left: u64, now_ms: i64) -> String {
        let within = |deadline_ms: i64| words::time(deadline_ms - now_ms);
        match &self.phase {
            Phase::Waiting { deadline_ms, .. } => {
                format!("{ready} of {wanted} backends are ready; {} left", within(*deadline_ms))
            }
            Phase::Draining { deadline_ms, .. } => {
                format!("{} to end; {} left", words::count(left, "old connection"), within(*deadline_ms))
            }
            Phase::Stepping { step, next_ms, .. } => {
                let steps = if let Order::Canary(order) = &self.order { order.steps.as_slice() } else { &[] };
                let share = steps.get(*step).map(|share| words::share(*share)).unwrap_or_default();
                format!("step {} of {}, {share}; next in {}", step.saturating_add(1), steps.len(), within(*next_ms))
            }
            Phase::Stopping { old, .. } => format!("{} to stop", words::count(old.len() as u64, "old backend")),
            Phase::Ended => String::new(),
        }
    }

    /// Whether a rollback can go back behind it.
    pub fn moves_traffic(&self) -> bool {
        matches!(self.order, Order::Deploy(_) | Order::Canary(_) | Order::Shift(_))
    }
}
