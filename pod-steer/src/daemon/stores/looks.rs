//! Which backends' network devices are to be looked at, and which are being looked at.

use std::collections::BTreeSet;

use crate::ids::BackendId;

/// Most looks that are under way at a time.
const LOOKS_MAX: usize = 4;

/// Looks that wait, and those under way: one at a time for each backend.
#[derive(Debug, Default)]
pub struct Looks {
    /// Something has happened to these.
    due: BTreeSet<BackendId>,
    /// These are looked at again because some time has passed.
    renewed: BTreeSet<BackendId>,
    under_way: BTreeSet<BackendId>,
}

impl Looks {
    /// A backend's network may have changed. A look that is under way may be too early, so another one follows it.
    pub fn add(&mut self, id: BackendId) {
        self.due.insert(id);
    }

    /// These are to be looked at after those whose network may have changed.
    pub fn renew(&mut self, ids: impl IntoIterator<Item = BackendId>) {
        self.renewed.extend(ids);
    }

    /// The next backend to look at; `None` if there is none, or so many are under way.
    pub fn begin(&mut self) -> Option<BackendId> {
        if self.under_way.len() >= LOOKS_MAX {
            return None;
        }
        let next = self.due.iter().chain(&self.renewed).find(|id| !self.under_way.contains(*id))?.clone();
        self.due.remove(&next);
        self.renewed.remove(&next);
        self.under_way.insert(next.clone());
        Some(next)
    }

    /// A look is over.
    pub fn end(&mut self, id: &str) {
        self.under_way.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> BackendId {
        BackendId::from(name)
    }

    #[test]
    fn looks_at_one_backend_follow_each_other() {
        let mut looks = Looks::default();
        looks.add(id("a"));
        looks.add(id("a"));
        assert_eq!((looks.begin(), looks.begin()), (Some(id("a")), None));
        looks.add(id("a"));
        assert_eq!(looks.begin(), None, "one is under way");
        looks.end("a");
        assert_eq!((looks.begin(), looks.begin()), (Some(id("a")), None));
        looks.end("a");
        assert_eq!(looks.begin(), None);
    }

    #[test]
    fn few_are_under_way_and_news_come_first() {
        let mut looks = Looks::default();
        looks.renew(["a", "b", "c", "d", "e", "f"].map(id));
        looks.add(id("z"));
        let begun: Vec<BackendId> = std::iter::from_fn(|| looks.begin()).collect();
        assert_eq!(begun, ["z", "a", "b", "c"].map(id));
        looks.end("a");
        looks.add(id("b"));
        assert_eq!((looks.begin(), looks.begin()), (Some(id("d")), None));
        looks.end("b");
        assert_eq!(looks.begin(), Some(id("b")));
    }
}
