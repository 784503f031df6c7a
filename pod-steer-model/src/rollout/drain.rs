//! A drain that waits for the connections of its part to end, and what drains of all kinds have in common: their connections, and what
//! happens to those that are left at the deadline.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Operation, Order, Outcome, Part, PartOrder, Phase, View,
    check::check_part,
    step::{Progress, done, end, live},
    words,
};
use crate::{ids::BackendId, time::Now};

/// How long connections that are reset may take to be gone. A socket that its server still holds counts until the kernel has aborted it.
const RESET_MS: i64 = 5_000;

/// What happens to connections that are open at the deadline of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AtDeadline {
    /// They stay open, and the operation ends with the outcome `left`.
    #[default]
    Leave,
    /// They are reset: the server gets an error, and the client a reset.
    Reset,
}

/// See [`Order::Drain`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DrainOrder {
    /// A version.
    pub version: Option<String>,
    /// A backend, by its name or id. Without a version and a backend: the whole service.
    pub backend: Option<String>,
    /// How long to wait for its connections to end, in milliseconds. Without it, the drain ends at once and they end in their own time.
    pub drain_timeout_ms: Option<u64>,
    /// What happens to connections that are open then.
    pub at_deadline: AtDeadline,
    /// Close connections that have been idle for so long, in milliseconds. Without it, none is closed.
    pub close_idle_ms: Option<u64>,
    /// Close connections that have been open for so long, in milliseconds, also if they are idle for a moment only. Without it, age does not
    /// matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// Close at most so many a second. Without it, they are closed evenly until the deadline.
    pub close_rate: Option<u32>,
}

impl DrainOrder {
    /// The part that is drained.
    pub fn part(&self) -> PartOrder {
        PartOrder { version: self.version.clone(), backend: self.backend.clone() }
    }
}

/// Options of a service that its orders may leave out, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct OfService {
    /// How long connections are idle that a drain closes; 0 if it closes none.
    pub close_idle_ms: u64,
    /// How long connections may have been open that a drain leaves alone; 0 if their age does not matter.
    pub max_age_ms: u64,
    /// How long clients are held at most while a service wakes.
    pub wake_max_hold_ms: u64,
}

impl Order {
    /// Puts in what it leaves to the options of its service. An order that waits for no connection closes none.
    pub fn complete(&mut self, options: OfService) {
        let [close_idle_ms, max_age_ms] =
            [options.close_idle_ms, options.max_age_ms].map(|ms| Some(ms).filter(|ms| *ms > 0));
        match self {
            Self::Wake(wake) => {
                wake.max_hold_ms.get_or_insert(options.wake_max_hold_ms);
            }
            Self::Deploy(deploy) if deploy.drain_timeout_ms > 0 => {
                deploy.close_idle_ms = deploy.close_idle_ms.or(close_idle_ms);
                deploy.max_age_ms = deploy.max_age_ms.or(max_age_ms);
            }
            Self::Drain(drain) if drain.drain_timeout_ms.is_some_and(|ms| ms > 0) => {
                drain.close_idle_ms = drain.close_idle_ms.or(close_idle_ms);
                drain.max_age_ms = drain.max_age_ms.or(max_age_ms);
            }
            _ => {}
        }
    }

    /// Which connections its drain closes, before the deadline.
    pub(super) fn closes(&self) -> Closes {
        let (idle, old, rate) = match self {
            Self::Deploy(order) => (order.close_idle_ms, order.max_age_ms, order.close_rate),
            Self::Drain(order) => (order.close_idle_ms, order.max_age_ms, order.close_rate),
            _ => (None, None, None),
        };
        let [idle, old] = [idle, old].map(|ms| ms.filter(|ms| *ms > 0).map(Duration::from_millis));
        Closes { idle, old, rate }
    }

    /// What happens to connections that are open at the deadline of its drain.
    pub fn at_deadline(&self) -> AtDeadline {
        match self {
            Self::Deploy(order) => order.at_deadline,
            Self::Drain(order) => order.at_deadline,
            _ => AtDeadline::Leave,
        }
    }
}

/// Which connections a drain closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closes {
    /// Those that have been idle for so long.
    pub idle: Option<Duration>,
    /// Those that have been open for so long, and are idle for a moment.
    pub old: Option<Duration>,
    /// At most so many a second.
    pub rate: Option<u32>,
}

impl Closes {
    pub(super) fn is_any(self) -> bool {
        self.idle.is_some() || self.old.is_some()
    }

    /// When one is closed, for display.
    fn when(self) -> &'static str {
        match (self.idle, self.old) {
            (Some(_), Some(_)) => "when idle or old",
            (None, Some(_)) => "when old",
            _ => "when idle",
        }
    }
}

/// How a drain closes connections now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The backends.
    pub backends: BTreeSet<BackendId>,
    /// Which of their connections.
    pub which: Closes,
    /// The deadline of the drain, in milliseconds since the machine booted.
    pub deadline_ms: i64,
}

/// How an operation closes connections now, if it does.
pub fn closing(operation: &Operation) -> Option<Closing> {
    let which = operation.order.closes();
    match &operation.phase {
        Phase::Draining { old, deadline_ms, resetting: false, .. } if which.is_any() => {
            Some(Closing { backends: old.clone(), which, deadline_ms: *deadline_ms })
        }
        _ => None,
    }
}

/// Records that so many connections were closed, or that so many were not after all.
pub fn note_closed(operation: &mut Operation, number: i64) {
    if let Phase::Draining { closed, .. } = &mut operation.phase {
        *closed = closed.saturating_add_signed(number);
    }
}

/// Connections at the end of a drain.
#[derive(Debug, Default)]
pub(super) struct Remaining {
    pub left: u64,
    /// A backend whose connections are not known.
    pub uncounted: Option<String>,
    /// Number of those that were reset.
    pub reset: u64,
}

impl Remaining {
    pub fn is_nothing(&self) -> bool {
        self.left == 0 && self.uncounted.is_none()
    }

    /// What was not drained; nothing if everything was.
    pub fn title(&self, old: &str) -> Option<String> {
        match (&self.uncounted, self.left) {
            (None, 0) => None,
            (Some(name), 0) => Some(format!("the connections of {name} could not be counted")),
            (_, left) => Some(format!("{} remained at the deadline", words::count(left, &format!("{old}connection")))),
        }
    }
}

/// Begins the drain of backends, whose new connections go elsewhere from now on.
pub(super) fn draining(old: BTreeSet<BackendId>, timeout_ms: u64, view: &View, now: Now) -> Phase {
    let connections = live(view, &old);
    let deadline_ms = now.ms.saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
    Phase::Draining {
        since_ms: now.ms,
        deadline_ms,
        old,
        connections,
        has_drained: false,
        closed: 0,
        resetting: false,
        reset: 0,
    }
}

/// Waits until the connections of a drain have ended, and at its deadline has them reset if that was ordered. Returns what remains when
/// there is nothing more to wait for.
pub(super) fn wait(operation: &mut Operation, view: &View, now: Now) -> Option<Remaining> {
    let connections = note_connections(operation, view);
    let (at_deadline, closes) = (operation.order.at_deadline(), operation.order.closes());
    let Phase::Draining { since_ms, deadline_ms, old, closed, resetting, reset, .. } = &mut operation.phase else {
        return None;
    };
    let (left, uncounted) = (live(view, old), uncounted(view, old));
    if left > 0 || uncounted.is_some() {
        if now.ms < *deadline_ms {
            return None;
        }
        if at_deadline == AtDeadline::Reset && !*resetting {
            *resetting = true;
            *deadline_ms = now.ms.saturating_add(RESET_MS);
            return None;
        }
    }
    // A server may not have reacted, or another process may hold the connection: what is left has not ended.
    let ended = connections.saturating_sub(left);
    let (took_ms, closed) = (now.ms - *since_ms, (*closed).min(ended));
    let reset = (*reset).min(ended - closed);
    let mut detail = words::count(ended, "connection");
    if closed > 0 {
        detail.push_str(&format!(", {closed} of them closed {}", closes.when()));
    }
    if reset > 0 {
        detail.push_str(&format!(", {reset} of them reset"));
    }
    if left > 0 {
        detail.push_str(&format!(", {left} left"));
    }
    if let Some(name) = &uncounted {
        detail.push_str(&format!(", those of {name} not counted"));
    }
    done(operation, "drained", took_ms, detail);
    Some(Remaining { left, uncounted, reset })
}

/// Records the current number of old connections, and returns the largest number during this drain. Some backends are
/// counted only after the switch, and a count is valid for a moment only.
pub fn note_connections(operation: &mut Operation, view: &View) -> u64 {
    let Phase::Draining { old, connections, .. } = &mut operation.phase else { return 0 };
    *connections = live(view, old).max(*connections);
    *connections
}

/// The backends whose connections an operation has to reset now.
pub fn resetting(operation: &Operation) -> Option<&BTreeSet<BackendId>> {
    match &operation.phase {
        Phase::Draining { old, resetting: true, .. } => Some(old),
        _ => None,
    }
}

/// Records that so many of its connections were reset.
pub fn note_reset(operation: &mut Operation, number: u64) {
    if let Phase::Draining { reset, .. } = &mut operation.phase {
        *reset = reset.saturating_add(number);
    }
}

/// The backends of a part.
pub(super) fn members(view: &View, part: &Part) -> BTreeSet<BackendId> {
    let is_in = |id: &BackendId, version: &str| match part {
        Part::Service => true,
        Part::Version(name) => name == version,
        Part::Backend(name) => name == id,
    };
    view.backends.iter().filter(|(id, backend)| is_in(id, &backend.version)).map(|(id, _)| id.clone()).collect()
}

/// The next step of a drain that waits.
pub(super) fn step(operation: &mut Operation, order: &DrainOrder, view: &View, now: Now) -> Progress {
    let Some(remaining) = wait(operation, view, now) else { return Progress::default() };
    let title = check_part(view, &order.part()).map_or_else(|_| operation.service.clone(), |part| view.title(&part));
    let gets = format!("{title} gets no new connections");
    match remaining.title("") {
        None if remaining.reset > 0 => {
            let reset = words::count(remaining.reset, "connection");
            end(operation, Outcome::Done, now, format!("{gets}, and has none left; {reset} reset"));
        }
        None => end(operation, Outcome::Done, now, format!("{gets}, and has none left")),
        Some(left) => end(operation, Outcome::Left, now, format!("{gets}; {left}")),
    }
    Progress::default()
}

/// A backend whose connections are not known.
fn uncounted(view: &View, ids: &BTreeSet<BackendId>) -> Option<String> {
    let mut backends = ids.iter().filter_map(|id| view.backends.get(id));
    backends.find(|backend| backend.uncounted.is_some()).map(|backend| backend.name.clone())
}
