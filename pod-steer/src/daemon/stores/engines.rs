//! What is known of the container engines: which are followed, which have been heard, and which name containers of another one.

use std::collections::{BTreeMap, BTreeSet};

/// The engines, by their addresses.
#[derive(Debug, Default)]
pub struct Engines {
    followed: Vec<String>,
    /// Containers that an engine has named and that are backends of another one.
    foreign: BTreeMap<String, BTreeSet<String>>,
    /// Engines that cannot be reached, and why.
    lost: BTreeMap<String, String>,
    /// Engines whose snapshot is awaited before anything is changed: there is steering, and no file says whose it is.
    awaited: BTreeSet<String>,
    /// Engines that have neither sent a snapshot nor been found unreachable.
    unheard: BTreeSet<String>,
}

impl Engines {
    /// These are followed.
    pub fn new(followed: Vec<String>) -> Self {
        let unheard = followed.iter().cloned().collect();
        Self { followed, unheard, ..Self::default() }
    }

    /// Whether an engine is followed.
    pub fn follows(&self, engine: &str) -> bool {
        self.followed.iter().any(|followed| followed == engine)
    }

    /// An engine has sent a snapshot or cannot be reached. True if all have by now.
    pub fn hear(&mut self, engine: &str) -> bool {
        self.unheard.remove(engine);
        self.unheard.is_empty()
    }

    /// Engines that have not been heard.
    pub fn unheard(&self) -> &BTreeSet<String> {
        &self.unheard
    }

    /// Every engine, and whether it can be reached.
    pub fn reachable(&self) -> impl Iterator<Item = (&str, bool)> {
        let is_up = |engine: &String| !self.lost.contains_key(engine) && !self.unheard.contains(engine);
        self.followed.iter().map(move |engine| (engine.as_str(), is_up(engine)))
    }

    /// An engine cannot be reached.
    pub fn lose(&mut self, engine: String, why: String) {
        self.lost.insert(engine, why);
    }

    /// An engine can be reached.
    pub fn find(&mut self, engine: &str) {
        self.lost.remove(engine);
    }

    /// Engines that cannot be reached, and why.
    pub fn lost(&self) -> &BTreeMap<String, String> {
        &self.lost
    }

    /// Changes nothing before every engine has sent its snapshot.
    pub fn await_all(&mut self) {
        self.awaited.extend(self.followed.iter().cloned());
    }

    /// The engines whose snapshot is awaited.
    pub fn awaited(&self) -> &BTreeSet<String> {
        &self.awaited
    }

    /// Whether the snapshot of an engine is awaited: nothing may be changed.
    pub fn is_awaiting(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Awaits no longer the engines of which this is true.
    pub fn await_no_longer(&mut self, is_over: impl Fn(&str) -> bool) {
        self.awaited.retain(|engine| !is_over(engine));
    }

    /// Whether every container that there is is known: a backend without one has none.
    pub fn are_all_known(&self) -> bool {
        self.lost.is_empty() && self.awaited.is_empty()
    }

    /// An engine names a container of another one.
    pub fn note_foreign(&mut self, engine: &str, id: &str) {
        self.foreign.entry(engine.to_owned()).or_default().insert(id.to_owned());
    }

    /// Drops the foreign containers of an engine of which this is false. False if it names none anyway.
    pub fn retain_foreign(&mut self, engine: &str, stays: impl Fn(&str) -> bool) -> bool {
        let Some(named) = self.foreign.get_mut(engine) else { return false };
        named.retain(|id| stays(id));
        if named.is_empty() {
            self.foreign.remove(engine);
        }
        true
    }

    /// How many containers of other engines an engine names, and the first of them.
    pub fn foreign_of(&self, engine: &str) -> Option<(usize, &str)> {
        let named = self.foreign.get(engine)?;
        Some((named.len(), named.first()?))
    }

    /// The engines that name a container of another one.
    pub fn naming(&self, id: &str) -> Vec<String> {
        let naming = self.foreign.iter().filter(|(_, named)| named.contains(id));
        naming.map(|(engine, _)| engine.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Engines {
        Engines::new(vec!["a".to_owned(), "b".to_owned()])
    }

    #[test]
    fn all_are_heard_when_each_was() {
        let mut engines = two();
        assert!(!engines.hear("a") && engines.unheard().contains("b"));
        assert!(!engines.hear("a"), "the same once more");
        assert!(engines.hear("b") && engines.hear("b"));
    }

    #[test]
    fn a_lost_engine_may_have_containers_that_are_not_known() {
        let mut engines = two();
        assert!(engines.are_all_known());
        engines.lose("a".to_owned(), "refused".to_owned());
        assert!(!engines.are_all_known() && engines.lost()["a"] == "refused");
        engines.hear("b");
        assert_eq!(engines.reachable().collect::<Vec<_>>(), [("a", false), ("b", true)]);
        engines.find("a");
        engines.await_all();
        assert!(engines.is_awaiting() && !engines.are_all_known());
        engines.await_no_longer(|engine| engine == "a");
        assert!(engines.is_awaiting() && engines.awaited().contains("b"));
        engines.await_no_longer(|_| true);
        assert!(engines.are_all_known());
    }

    #[test]
    fn foreign_containers_are_those_that_it_still_names() {
        let mut engines = two();
        assert!(!engines.retain_foreign("b", |_| true));
        engines.note_foreign("b", "1");
        engines.note_foreign("b", "2");
        assert_eq!((engines.foreign_of("b"), engines.naming("2")), (Some((2, "1")), vec!["b".to_owned()]));
        assert!(engines.retain_foreign("b", |id| id != "1"));
        assert_eq!((engines.foreign_of("b"), engines.naming("1")), (Some((1, "2")), vec![]));
        assert!(engines.retain_foreign("b", |_| false));
        assert_eq!(engines.foreign_of("b"), None);
    }
}
