//! Containers that are inspected again after a while, because their details lag behind the events: Podman 4.3 reports the result of a
//! health check before its details have it.

use std::{
    collections::{BTreeSet, HashMap},
    future::pending,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Pauses before each inspection.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];

/// Each container is in it once, so there are no more than the engine has.
#[derive(Debug, Default)]
pub(super) struct Rechecks {
    due: BTreeSet<(Instant, String)>,
    /// When each container is due, and which pause ends then.
    by_id: HashMap<String, (Instant, usize)>,
}

impl Rechecks {
    /// Starts again with the first pause.
    pub fn begin(&mut self, id: &str, now: Instant) {
        self.wait(id, 0, now);
    }

    /// A container is gone.
    pub fn forget(&mut self, id: &str) {
        if let Some((at, _)) = self.by_id.remove(id) {
            self.due.remove(&(at, id.to_owned()));
        }
    }

    /// Waits until a container is due. Cancel safe.
    pub async fn next(&mut self) -> String {
        loop {
            match self.due.first() {
                None => pending().await,
                Some((at, _)) => sleep_until(*at).await,
            }
            if let Some(id) = self.take(Instant::now()) {
                return id;
            }
        }
    }

    /// Takes the first container that is due, and starts its next pause.
    fn take(&mut self, now: Instant) -> Option<String> {
        let id = self.due.first().filter(|(at, _)| *at <= now)?.1.clone();
        let pause = self.by_id.get(&id).map_or(PAUSES.len(), |(_, pause)| pause + 1);
        self.wait(&id, pause, now);
        Some(id)
    }

    fn wait(&mut self, id: &str, pause: usize, now: Instant) {
        self.forget(id);
        if let Some(length) = PAUSES.get(pause) {
            self.due.insert((now + *length, id.to_owned()));
            self.by_id.insert(id.to_owned(), (now + *length, pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_due_after_each_pause_and_waits_once() {
        let (mut rechecks, begun) = (Rechecks::default(), Instant::now());
        let after = |ms: u64| begun + Duration::from_millis(ms);
        rechecks.begin("a", begun);
        rechecks.begin("b", after(100));
        assert_eq!(rechecks.take(after(199)), None);
        assert_eq!(rechecks.take(after(200)).as_deref(), Some("a"));
        // Another event begins anew.
        rechecks.begin("a", after(250));
        assert_eq!(rechecks.take(after(350)).as_deref(), Some("b"));
        assert_eq!(rechecks.take(after(450)).as_deref(), Some("a"));
        rechecks.forget("b");
        assert_eq!((rechecks.due.len(), rechecks.by_id.len()), (1, 1));
        assert_eq!(rechecks.take(after(1249)), None);
        assert_eq!(rechecks.take(after(1250)).as_deref(), Some("a"));
        assert!(rechecks.due.is_empty() && rechecks.by_id.is_empty(), "that was the last pause");
    }
}
