//! The conditions that hold now, and what has been told of them. Conditions of the daemon as a whole are kept here: a map is full, a pin
//! is gone, a file cannot be written. All others are collected from where they are known (`status.rs`): the plan, the backends, their
//! health checks, the engines, the ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use tokio::sync::broadcast;
use tracing::{info, warn};

use crate::{
    api::types::EventRecord,
    condition::{Condition, Reason, joined},
    ids::BackendId,
    world::Backend,
};

/// Event when a condition appears.
const APPEARED: &str = "condition";
/// Event when it has ended.
const ENDED: &str = "condition-ended";
/// Event when something was found wrong and is right again.
const REPAIRED: &str = "repaired";

/// Of a condition whose message changes all the time, since it has a count, one message in so long is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// What a condition concerns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// What has no name of its own in an event: an engine, a map, the settings.
    Other(String),
    /// A service, by its name.
    Service(String),
    /// A container that is no backend.
    Container { name: String, id: BackendId },
    /// A backend.
    Backend { service: String, name: String, id: BackendId },
}

impl Subject {
    /// This backend.
    pub fn of(backend: &Backend) -> Self {
        let (service, name, id) = (backend.spec.service.clone(), backend.name.clone(), backend.id.clone());
        Self::Backend { service, name, id }
    }
}

/// As `status` names it.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(subject) => f.write_str(subject),
            Self::Service(service) => write!(f, "service {service}"),
            Self::Container { name, id } => write!(f, "container {name} ({})", id.get(..12).unwrap_or(id)),
            Self::Backend { service, name, .. } => write!(f, "backend {name} of {service}"),
        }
    }
}

/// The message of a condition that holds.
#[derive(Clone, Debug)]
struct Told {
    /// Now.
    text: String,
    /// As it was logged last.
    logged: String,
    at: Instant,
}

impl Told {
    /// The condition appears, which is logged.
    fn new(text: String, now: Instant) -> Self {
        Self { logged: text.clone(), text, at: now }
    }

    /// The condition still holds, and says this now. Returns whether that is to be logged.
    fn says(&mut self, text: String, now: Instant) -> bool {
        self.text = text;
        let is_due = self.text != self.logged && now.saturating_duration_since(self.at) >= LOGGED_EVERY;
        if is_due {
            self.logged.clone_from(&self.text);
            self.at = now;
        }
        is_due
    }
}

/// See the module. A condition is known by its reason and its subject.
pub(super) struct Conditions {
    /// Those of the daemon as a whole.
    held: BTreeMap<(Reason, String), (Condition, Told)>,
    /// The others that have been told and have not ended.
    told: BTreeMap<(Subject, Reason), Told>,
    events: broadcast::Sender<EventRecord>,
}

impl Conditions {
    /// None yet. Followers of `events` are told when one appears or ends.
    pub fn new(events: broadcast::Sender<EventRecord>) -> Self {
        Self { held: BTreeMap::new(), told: BTreeMap::new(), events }
    }

    /// A condition holds. One that holds already only gets the new message, which is logged at most once a minute.
    pub fn set(&mut self, subject: impl Into<String>, condition: Condition) {
        let (subject, text) = (subject.into(), condition.to_string());
        let (reason, now) = (condition.reason, Instant::now());
        match self.held.get_mut(&(reason, subject.clone())) {
            None => {
                self.appeared(&Subject::Other(subject.clone()), reason, &text);
                self.held.insert((reason, subject), (condition, Told::new(text, now)));
            }
            Some((held, told)) => {
                *held = condition;
                if told.says(text, now) {
                    info!(%reason, %subject, "{}", told.text);
                }
            }
        }
    }

    /// A condition does not hold, or no longer.
    pub fn clear(&mut self, reason: Reason, subject: &str) {
        if let Some((_, told)) = self.held.remove(&(reason, subject.to_owned())) {
            self.ended(&Subject::Other(subject.to_owned()), reason, &told.text);
        }
    }

    /// Exactly these conditions, each with its subject, hold for a reason; the others of that reason have ended.
    pub fn replace(&mut self, reason: Reason, now: impl IntoIterator<Item = (String, Condition)>) {
        let now: BTreeMap<String, Condition> = now.into_iter().collect();
        self.retain(reason, &now.keys().cloned().collect());
        for (subject, condition) in now {
            self.set(subject, condition);
        }
    }

    /// Ends the conditions of a reason whose subject is none of these any more.
    pub fn retain(&mut self, reason: Reason, subjects: &BTreeSet<String>) {
        let ended: Vec<String> = self.of(reason).filter(|subject| !subjects.contains(*subject)).cloned().collect();
        for subject in ended {
            self.clear(reason, &subject);
        }
    }

    /// Whether a condition of this reason holds.
    pub fn holds(&self, reason: Reason) -> bool {
        self.of(reason).next().is_some()
    }

    /// Something was found wrong and was repaired at once, so no condition of this reason holds.
    pub fn repaired(&self, reason: Reason, subject: &Subject, message: &str) {
        warn!(%reason, %subject, "repaired: {message}");
        self.tell(subject, REPAIRED, reason, message);
    }

    /// Those of the daemon as a whole, each with its subject.
    pub fn held(&self) -> impl Iterator<Item = (&str, &Condition)> {
        self.held.iter().map(|((_, subject), (condition, _))| (subject.as_str(), condition))
    }

    /// Tells which of the other conditions have appeared and which have ended, given all that hold now. One whose message alone has
    /// changed is no event, and logged at most once a minute.
    pub fn tell_changes(&mut self, now: impl IntoIterator<Item = (Subject, Vec<Condition>)>) {
        let mut all: BTreeMap<(Subject, Reason), String> = BTreeMap::new();
        for (subject, conditions) in now {
            let mut by_reason: BTreeMap<Reason, Vec<&Condition>> = BTreeMap::new();
            for condition in &conditions {
                by_reason.entry(condition.reason).or_default().push(condition);
            }
            all.extend(by_reason.into_iter().map(|(reason, of)| ((subject.clone(), reason), joined(of))));
        }
        let (time, mut before) = (Instant::now(), std::mem::take(&mut self.told));
        for ((subject, reason), told) in before.iter().filter(|(key, _)| !all.contains_key(key)) {
            self.ended(subject, *reason, &told.text);
        }
        for (key, text) in all {
            let (subject, reason) = &key;
            let told = match before.remove(&key) {
                None => {
                    self.appeared(subject, *reason, &text);
                    Told::new(text, time)
                }
                Some(mut told) => {
                    if told.says(text, time) {
                        info!(%reason, %subject, "{}", told.text);
                    }
                    told
                }
            };
            self.told.insert(key, told);
        }
    }

    fn of(&self, reason: Reason) -> impl Iterator<Item = &String> {
        self.held.keys().filter(move |(of, _)| *of == reason).map(|(_, subject)| subject)
    }

    fn appeared(&self, subject: &Subject, reason: Reason, text: &str) {
        warn!(%reason, %subject, "{text}");
        self.tell(subject, APPEARED, reason, text);
    }

    fn ended(&self, subject: &Subject, reason: Reason, text: &str) {
        info!(%reason, %subject, "ended: {text}");
        self.tell(subject, ENDED, reason, text);
    }

    fn tell(&self, subject: &Subject, event: &str, reason: Reason, detail: &str) {
        let (service, backend) = match subject {
            Subject::Other(subject) => ("", subject.as_str()),
            Subject::Service(service) => (service.as_str(), ""),
            Subject::Container { name, .. } => ("", name.as_str()),
            Subject::Backend { service, name, .. } => (service.as_str(), name.as_str()),
        };
        let _ = self.events.send(EventRecord {
            time: jiff::Timestamp::now().to_string(),
            service: service.to_owned(),
            backend: backend.to_owned(),
            event: event.to_owned(),
            reason: Some(reason),
            detail: detail.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &mut broadcast::Receiver<EventRecord>) -> Vec<(String, String)> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|record| (record.backend, record.event)).collect()
    }

    fn pair(subject: &str, event: &str) -> (String, String) {
        (subject.to_owned(), event.to_owned())
    }

    fn pin(message: &str) -> Condition {
        Condition::without_remedy(Reason::NotPinned, message)
    }

    fn of_pin(subject: &str) -> (String, Condition) {
        (subject.to_owned(), pin("1"))
    }

    #[test]
    fn a_condition_is_told_once_when_it_appears_and_once_when_it_ends() {
        let (sender, mut events) = broadcast::channel(16);
        let mut conditions = Conditions::new(sender);
        conditions.set("map PORTS", pin("1 port"));
        conditions.set("map PORTS", pin("2 ports"));
        assert_eq!(told(&mut events), [pair("map PORTS", "condition")]);
        let messages = |conditions: &Conditions| conditions.held().map(|of| of.1.message.clone()).collect::<Vec<_>>();
        assert_eq!(messages(&conditions), ["2 ports"]);
        conditions.clear(Reason::NotPinned, "map PORTS");
        conditions.clear(Reason::NotPinned, "map PORTS");
        assert_eq!(told(&mut events), [pair("map PORTS", "condition-ended")]);
        assert!(messages(&conditions).is_empty());
    }

    #[test]
    fn a_message_that_changes_all_the_time_is_logged_once_a_minute() {
        let begin = Instant::now();
        let mut told = Told::new("1 was left out".into(), begin);
        let mut says = |s: u64, text: &str| told.says(text.into(), begin + Duration::from_secs(s));
        assert!(!says(1, "2 were left out") && !says(59, "3 were left out"));
        assert!(says(60, "3 were left out"), "the last message is logged, however old it is");
        assert!(!says(61, "4 were left out") && !says(200, "3 were left out"));
        assert!(says(201, "5 were left out"));
        assert_eq!(told.text, "5 were left out");
    }

    #[test]
    fn replacing_those_of_a_reason_leaves_the_others() {
        let (sender, mut events) = broadcast::channel(16);
        let mut conditions = Conditions::new(sender);
        conditions.set("x", Condition::without_remedy(Reason::UnknownFile, "stays"));
        conditions.replace(Reason::NotPinned, [of_pin("a"), of_pin("b")]);
        told(&mut events);
        conditions.replace(Reason::NotPinned, [of_pin("b"), of_pin("c")]);
        assert_eq!(told(&mut events), [pair("a", "condition-ended"), pair("c", "condition")]);
        let subjects = |conditions: &Conditions| conditions.held().map(|of| of.0.to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(subjects(&conditions), BTreeSet::from(["x", "b", "c"].map(str::to_owned)));
        conditions.retain(Reason::NotPinned, &BTreeSet::from(["c".to_owned(), "d".to_owned()]));
        assert_eq!(subjects(&conditions), BTreeSet::from(["x", "c"].map(str::to_owned)));
        assert!(conditions.holds(Reason::UnknownFile) && !conditions.holds(Reason::ChangeRefused));
    }

    #[test]
    fn conditions_of_others_are_told_by_subject_and_reason() {
        let (sender, mut events) = broadcast::channel(16);
        let mut conditions = Conditions::new(sender);
        let backend = |id: &str| Subject::Backend { service: "web".into(), name: "web-1".into(), id: id.into() };
        let full = |waiting: u32| Condition::without_remedy(Reason::AcceptQueueFull, format!("{waiting} wait"));
        let taken =
            |port: u16| Condition::new(Reason::PortOfOtherService, format!("{port} is taken"), "choose another");
        conditions.tell_changes([(backend("a"), vec![taken(80), full(3), taken(81)])]);
        let appeared: Vec<EventRecord> = std::iter::from_fn(|| events.try_recv().ok()).collect();
        let said: Vec<&str> = appeared.iter().map(|event| event.detail.as_str()).collect();
        assert_eq!(said, ["80 is taken; choose another; 81 is taken; choose another", "3 wait"]);
        assert!(appeared.iter().all(|event| (event.service.as_str(), event.event.as_str()) == ("web", "condition")));
        assert_eq!(appeared[1].reason, Some(Reason::AcceptQueueFull));

        conditions.tell_changes([(backend("a"), vec![full(4), taken(81)])]);
        assert_eq!(told(&mut events), [], "both reasons still hold");
        conditions.tell_changes([(backend("a"), vec![full(4)]), (Subject::Service("web".into()), vec![taken(80)])]);
        assert_eq!(told(&mut events), [pair("web-1", "condition-ended"), pair("", "condition")]);
        // Another backend of the same name.
        conditions.tell_changes([(backend("b"), vec![full(4)])]);
        let expected = [pair("", "condition-ended"), pair("web-1", "condition-ended"), pair("web-1", "condition")];
        assert_eq!(told(&mut events), expected);
        conditions.tell_changes([]);
        conditions.tell_changes([]);
        assert_eq!(told(&mut events), [pair("web-1", "condition-ended")]);
    }
}
