//! Conditions of the daemon as a whole that need an operator: a map is full, a pin is gone, a file cannot be written.
//! Conditions of one backend are in `Backend::troubles`, those of one service in the plan.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::broadcast;
use tracing::{debug, info, warn};

use crate::api::types::{EventRecord, Problem};

/// Event when a condition appears.
const APPEARED: &str = "condition";
/// Event when it has ended.
const ENDED: &str = "condition-ended";
/// Event when something was found wrong and is right again.
const REPAIRED: &str = "repaired";

/// The conditions that hold now. Each has a topic (the kind of condition, a constant of the module that sets it) and a subject
/// (what it concerns, shown to the operator).
pub(super) struct Conditions {
    held: BTreeMap<(&'static str, String), String>,
    events: broadcast::Sender<EventRecord>,
}

impl Conditions {
    /// None yet. Followers of `events` are told when one appears or ends.
    pub fn new(events: broadcast::Sender<EventRecord>) -> Self {
        Self { held: BTreeMap::new(), events }
    }

    /// A condition holds. `message` says what is wrong, why, and what to do. One that holds already only gets the new message.
    pub fn set(&mut self, topic: &'static str, subject: impl Into<String>, message: impl Into<String>) {
        let (subject, message) = (subject.into(), message.into());
        let before = self.held.insert((topic, subject.clone()), message.clone());
        match before {
            None => {
                warn!(%topic, %subject, "{message}");
                self.tell(&subject, APPEARED, &message);
            }
            Some(before) if before != message => debug!(%topic, %subject, "{message}"),
            Some(_) => {}
        }
    }

    /// A condition does not hold, or no longer.
    pub fn clear(&mut self, topic: &'static str, subject: &str) {
        if let Some(message) = self.held.remove(&(topic, subject.to_owned())) {
            info!(%topic, %subject, "ended: {message}");
            self.tell(subject, ENDED, &message);
        }
    }

    /// Exactly these (subject, message) hold for a topic; the others of that topic have ended.
    pub fn replace(&mut self, topic: &'static str, now: impl IntoIterator<Item = (String, String)>) {
        let now: BTreeMap<String, String> = now.into_iter().collect();
        self.retain(topic, &now.keys().cloned().collect());
        for (subject, message) in now {
            self.set(topic, subject, message);
        }
    }

    /// Ends the conditions of a topic whose subject is none of these any more.
    pub fn retain(&mut self, topic: &'static str, subjects: &BTreeSet<String>) {
        let ended: Vec<String> = self.of(topic).filter(|subject| !subjects.contains(*subject)).cloned().collect();
        for subject in ended {
            self.clear(topic, &subject);
        }
    }

    /// Whether a condition of this topic holds.
    pub fn holds(&self, topic: &'static str) -> bool {
        self.of(topic).next().is_some()
    }

    /// Something was found wrong and was repaired at once, so no condition holds.
    pub fn repaired(&self, subject: &str, message: &str) {
        warn!(%subject, "repaired: {message}");
        self.tell(subject, REPAIRED, message);
    }

    /// As `status` shows them.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        self.held.iter().map(|((_, subject), message)| Problem { subject: subject.clone(), message: message.clone() })
    }

    fn of(&self, topic: &'static str) -> impl Iterator<Item = &String> {
        self.held.keys().filter(move |(of, _)| *of == topic).map(|(_, subject)| subject)
    }

    fn tell(&self, subject: &str, event: &str, message: &str) {
        let _ = self.events.send(EventRecord {
            time: jiff::Timestamp::now().to_string(),
            service: String::new(),
            backend: subject.to_owned(),
            event: event.to_owned(),
            detail: message.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &mut broadcast::Receiver<EventRecord>) -> Vec<(String, String)> {
        std::iter::from_fn(|| events.try_recv().ok()).map(|record| (record.backend, record.event)).collect()
    }

    fn pair(subject: &str, what: &str) -> (String, String) {
        (subject.to_owned(), what.to_owned())
    }

    #[test]
    fn a_condition_is_told_once_when_it_appears_and_once_when_it_ends() {
        let (sender, mut events) = broadcast::channel(16);
        let mut conditions = Conditions::new(sender);
        conditions.set("pins", "map PORTS", "1 port");
        conditions.set("pins", "map PORTS", "2 ports");
        assert_eq!(told(&mut events), [pair("map PORTS", "condition")]);
        let message =
            |conditions: &Conditions| conditions.problems().map(|problem| problem.message).collect::<Vec<_>>();
        assert_eq!(message(&conditions), ["2 ports"]);
        conditions.clear("pins", "map PORTS");
        conditions.clear("pins", "map PORTS");
        assert_eq!(told(&mut events), [pair("map PORTS", "condition-ended")]);
        assert!(message(&conditions).is_empty());
    }

    #[test]
    fn replacing_a_topic_leaves_the_others() {
        let (sender, mut events) = broadcast::channel(16);
        let mut conditions = Conditions::new(sender);
        conditions.set("other", "x", "stays");
        conditions.replace("pins", [pair("a", "1"), pair("b", "1")]);
        told(&mut events);
        conditions.replace("pins", [pair("b", "1"), pair("c", "1")]);
        assert_eq!(told(&mut events), [pair("a", "condition-ended"), pair("c", "condition")]);
        assert_eq!(conditions.problems().map(|p| p.subject).collect::<Vec<_>>(), ["x", "b", "c"]);
        conditions.retain("pins", &BTreeSet::from(["c".to_owned(), "d".to_owned()]));
        assert_eq!(conditions.problems().map(|p| p.subject).collect::<Vec<_>>(), ["x", "c"]);
    }
}
