//! Orders, operations and their history, in the form in which they are stored and go over the API.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AtDeadline, CanaryOrder, DrainOrder, Part, PauseOrder, Recreation, Traffic, WakeOrder, Watch, words};
use crate::{ids::BackendId, text::Name, time::Timed};

/// An order of an operator about a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// Move all new connections to a version.
    Deploy(DeployOrder),
    /// Move new connections to a version step by step.
    Canary(CanaryOrder),
    /// Set the shares of the versions.
    Shift(ShiftOrder),
    /// Return to what was before the last deploy, shift or canary. Ends one that is running.
    Rollback,
    /// Drain a part: it gets no new connections.
    Drain(DrainOrder),
    /// End a drain.
    Resume(PartOrder),
    /// Pause: new connections wait.
    Pause(PauseOrder),
    /// End a pause.
    Unpause,
    /// Stop the containers until a client comes.
    Idle,
    /// Start the containers of a service that sleeps.
    Wake(WakeOrder),
    /// End the service's shares, networks and drains, because it has had no backend for a while. Only the daemon gives
    /// this order.
    Forget,
}

impl Order {
    /// Whether it begins with holding the clients of its service.
    pub fn needs_hold(&self) -> bool {
        matches!(self, Self::Pause(_) | Self::Idle | Self::Deploy(DeployOrder { recreate: true, .. }))
    }

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
            Self::Drain(DrainOrder { version, backend, .. }) | Self::Resume(PartOrder { version, backend }) => {
                names.extend(version.iter().map(|version| (Name::Version, version)));
                names.extend(backend.iter().map(|backend| (Name::Backend, backend)));
            }
            Self::Rollback | Self::Pause(_) | Self::Unpause | Self::Idle | Self::Wake(_) | Self::Forget => {}
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
    /// What happens to old connections that are open then.
    #[serde(default)]
    pub at_deadline: AtDeadline,
    /// Close old connections that have been idle for so long, in milliseconds. Without it, none is closed.
    #[serde(default)]
    pub close_idle_ms: Option<u64>,
    /// Close those that have been open for so long, in milliseconds, also if they are idle for a moment only. Without it, age does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// Close at most so many a second. Without it, they are closed evenly until the deadline.
    #[serde(default)]
    pub close_rate: Option<u32>,
    /// Stop the old containers at the end.
    #[serde(default)]
    pub stop_old: bool,
    /// How long to keep them before they are stopped, in milliseconds.
    #[serde(default)]
    pub keep_old_ms: Option<u64>,
    /// Stop the old containers first, and start those of the version when they have ended. Clients are held meanwhile.
    #[serde(default)]
    pub recreate: bool,
    /// Begin also if some clients cannot be held: their SYNs are discarded, and they repeat them.
    #[serde(default)]
    pub allow_drop: bool,
    /// Refuse clients that have been held for so long, in milliseconds. Without it, they are held until a server has them.
    #[serde(default)]
    pub max_hold_ms: Option<u64>,
    /// After the switch, compare the version with what the old one did before, and go back if it is worse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Watch>,
}

/// See [`Order::Shift`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ShiftOrder {
    /// The shares of versions. Versions that are not named get nothing. If this is empty, the shares stay as they are.
    pub weights: BTreeMap<String, u32>,
    /// Return to every backend's own weight; `weights` is then empty.
    pub balance: bool,
    /// Networks whose clients go to a version.
    #[schema(value_type = BTreeMap<String, String>)]
    pub from: BTreeMap<IpNet, String>,
    /// Networks that no longer have a version of their own.
    #[schema(value_type = BTreeSet<String>)]
    pub not_from: BTreeSet<IpNet>,
}

/// See [`Order::Resume`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PartOrder {
    /// A version.
    pub version: Option<String>,
    /// A backend, by its name or id. Without a version and a backend: the whole service.
    pub backend: Option<String>,
}

/// An operation that an operator has ordered, running or ended: a line of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its number, which increases. 0 if the order was already in force, so that nothing was changed or recorded.
    pub id: u64,
    /// The service.
    pub service: String,
    /// Who ordered it, for display.
    pub who: String,
    /// When it began, in milliseconds since 1970; for display.
    pub begun_ms: i64,
    /// What was ordered.
    #[serde(flatten)]
    pub order: Order,
    /// The traffic before it, which a rollback restores.
    pub before: Traffic,
    /// Parts that were drained before it, and whose drains it has ended.
    #[serde(default)]
    pub undrained: BTreeSet<Part>,
    /// What a deploy that stops the old version first has to do, and what a rollback of it has to undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recreation: Option<Recreation>,
    /// Its phase.
    pub phase: Phase,
    /// The completed steps, in order. Outside the name is not `steps`: a canary's order has that.
    #[serde(rename = "steps_done")]
    pub steps: Vec<Step>,
    /// How it ended; null while it runs.
    pub end: Option<End>,
    /// Why it is not on disk, if it is not. It is in force, but lost when the daemon or the machine restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_stored: Option<String>,
}

/// The phase of an operation. Inside the daemon its times count from the machine's boot; in the API and in storage they
/// are by the wall clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Phase {
    /// The version has to become ready.
    Waiting {
        /// Since when, in milliseconds since 1970.
        #[serde(default)]
        since_ms: i64,
        /// Until when, in milliseconds since 1970.
        deadline_ms: i64,
        /// How many backends the version had when the operation began. One that ends meanwhile still has to become ready.
        #[serde(default)]
        backends: u32,
    },
    /// New connections go to the new version; old ones have to end.
    Draining {
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
        /// Until when, in milliseconds since 1970.
        deadline_ms: i64,
        /// Ids of the old backends.
        old: BTreeSet<BackendId>,
        /// The largest number of connections that they had during the drain.
        connections: u64,
        /// The operation has drained its part, which was not drained before.
        #[serde(default)]
        has_drained: bool,
        /// How many were closed because they were idle.
        #[serde(default)]
        closed: u64,
        /// The deadline has passed once, and the connections that were open then are being reset.
        #[serde(default)]
        resetting: bool,
        /// How many were reset.
        #[serde(default)]
        reset: u64,
    },
    /// A share of new connections goes to the new version.
    Stepping {
        /// Which step, from 0.
        step: usize,
        /// Ids and names of the version's backends that were ready then. If one of them no longer is, the canary rolls
        /// back.
        watched: BTreeMap<BackendId, String>,
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
        /// When the next step begins, in milliseconds since 1970.
        next_ms: i64,
        /// How often the versions have been compared in this step.
        #[serde(default)]
        looks: u32,
        /// The size of the sample at the last look.
        #[serde(default)]
        looked_at: u64,
        /// When that was, in milliseconds since 1970.
        #[serde(default)]
        looked_ms: i64,
    },
    /// Backends have been told to stop: the old ones, or the new ones of a version that failed.
    Stopping {
        /// Their ids.
        old: BTreeSet<BackendId>,
        /// Until when they may take to stop, in milliseconds since 1970.
        deadline_ms: i64,
        /// When those are told again that did not run, as their engine may have been restarting them, or whose engine could not be reached.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again_ms: Option<i64>,
    },
    /// No version runs. One is started, while its clients are held: the new one, or the old one again.
    Starting {
        /// Since when, in milliseconds since 1970.
        since_ms: i64,
        /// Until when, in milliseconds since 1970.
        deadline_ms: i64,
        /// The engine has been told to start its containers.
        told: bool,
        /// When the earliest it is told again, if it could not be reached, or one of them has ended only since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        again_ms: Option<i64>,
    },
    /// It has ended.
    Ended,
}

impl Timed for Operation {
    /// The times of its phase. When it began and ended is always by the wall clock.
    fn times(&mut self) -> impl Iterator<Item = &mut i64> {
        let of_phase = match &mut self.phase {
            Phase::Waiting { since_ms, deadline_ms, .. } | Phase::Draining { since_ms, deadline_ms, .. } => {
                [Some(since_ms), Some(deadline_ms), None]
            }
            Phase::Starting { since_ms, deadline_ms, again_ms, .. } => {
                [Some(since_ms), Some(deadline_ms), again_ms.as_mut()]
            }
            Phase::Stepping { since_ms, next_ms, looked_ms, .. } => [Some(since_ms), Some(next_ms), Some(looked_ms)],
            Phase::Stopping { deadline_ms, again_ms, .. } => [Some(deadline_ms), again_ms.as_mut(), None],
            Phase::Ended => [None, None, None],
        };
        let of_recreation = self.recreation.iter_mut().flat_map(Recreation::times);
        of_phase.into_iter().flatten().chain(of_recreation)
    }
}

/// A completed step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// Its name, for display: `ready`, `switched`, `5 %`, `drained`, `stopped`, `held`.
    pub name: String,
    /// How long it took, in microseconds.
    pub took_us: u64,
    /// Details, for display.
    pub detail: String,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// The outcome.
    pub outcome: Outcome,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// A message of one line.
    pub message: String,
}

/// How an operation ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has been completed.
    Done,
    /// New connections have moved, and some old ones were open at the deadline.
    Left,
    /// Nothing has changed.
    Failed,
    /// It had begun and rolled back automatically.
    WentBack,
    /// An operator ended it with a rollback.
    Aborted,
}

impl Outcome {
    /// Its written form.
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
    /// The operation's name in messages.
    pub fn title(&self) -> String {
        match &self.order {
            Order::Deploy(order) => format!("the deploy of {}", order.version),
            Order::Canary(order) => format!("the canary of {}", order.version),
            Order::Shift(_) => "the shift".to_owned(),
            Order::Rollback => "the rollback".to_owned(),
            Order::Drain(_) => "the drain".to_owned(),
            Order::Resume(_) => "the resume".to_owned(),
            Order::Pause(_) => "the pause".to_owned(),
            Order::Unpause => "the unpause".to_owned(),
            Order::Idle => "the idle".to_owned(),
            Order::Wake(_) => "the wake".to_owned(),
            Order::Forget => "the end of its decisions".to_owned(),
        }
    }

    /// What it is waiting for, for messages.
    pub fn waiting_for(&self, ready: u32, wanted: u32, left: u64, now_ms: i64) -> String {
        let within = |deadline_ms: i64| words::time(deadline_ms - now_ms);
        match &self.phase {
            Phase::Waiting { .. } if self.order == Order::Idle => "the last connections to end".to_owned(),
            Phase::Starting { .. } if self.is_of_sleep() => "its containers to serve".to_owned(),
            Phase::Waiting { deadline_ms, .. } => {
                format!("{ready} of {wanted} backends are ready; {} left", within(*deadline_ms))
            }
            Phase::Draining { deadline_ms, .. } => {
                format!("{} to end; {} left", words::count(left, "old connection"), within(*deadline_ms))
            }
            Phase::Stepping { step, next_ms, .. } if self.is_watched() => match step {
                0 => format!("the old version to be observed; switch in {}", within(*next_ms)),
                _ => "the new version to be observed".to_owned(),
            },
            Phase::Stepping { step, next_ms, .. } => {
                let steps = if let Order::Canary(order) = &self.order { order.steps.as_slice() } else { &[] };
                let share = steps.get(*step).map(|share| words::share(*share)).unwrap_or_default();
                format!("step {} of {}, {share}; next in {}", step.saturating_add(1), steps.len(), within(*next_ms))
            }
            Phase::Stopping { old, .. } => {
                let which = if self.goes_back() || self.is_of_sleep() { "backend" } else { "old backend" };
                format!("{} to stop", words::count(old.len() as u64, which))
            }
            Phase::Starting { deadline_ms, .. } if self.goes_back() => {
                format!("the old version to serve again; {} left", within(*deadline_ms))
            }
            Phase::Starting { deadline_ms, .. } => {
                format!("{ready} of {wanted} backends are ready; {} left", within(*deadline_ms))
            }
            Phase::Ended => String::new(),
        }
    }

    /// Whether a version that was to take over has failed, or was given up, and the old one is put back.
    pub fn goes_back(&self) -> bool {
        self.recreation.as_ref().is_some_and(|recreation| recreation.reason.is_some())
    }

    /// Whether a rollback can undo it.
    pub fn moves_traffic(&self) -> bool {
        matches!(self.order, Order::Deploy(_) | Order::Canary(_) | Order::Shift(_))
    }

    /// Whether there is something that a rollback of it would restore. A deploy of the version that has everything already moves nothing.
    pub fn can_be_undone(&self) -> bool {
        match &self.order {
            Order::Deploy(DeployOrder { version, .. }) | Order::Canary(CanaryOrder { version, .. }) => {
                !self.before.is_all_of(version) || !self.undrained.is_empty()
            }
            Order::Shift(_) => true,
            _ => false,
        }
    }
}
