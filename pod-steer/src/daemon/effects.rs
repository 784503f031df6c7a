//! What the daemon does beside changing steering state: it tells the followers of events, asks engines, starts and stops containers, and looks at
//! things that take their time. Nothing else holds the channels for that. A result comes back to the loop as an event.

use std::{
    future::{Future, poll_fn},
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
};

use tokio::{
    io::unix::AsyncFd,
    sync::{broadcast, mpsc},
    task::{AbortHandle, spawn_blocking},
};
use tracing::{error, warn};

use super::Event;
use crate::{api::types::EventRecord, engine, ids::BackendId, sys};

/// The ways out of the loop.
pub(super) struct Effects {
    inputs: mpsc::Sender<Event>,
    followers: broadcast::Sender<EventRecord>,
    /// To the engines: ids of containers that are to be described.
    wanted: broadcast::Sender<String>,
}

impl Effects {
    /// Results go to `inputs`, records of what has happened to `followers`, and ids of containers that are to be described to `wanted`.
    pub fn new(
        inputs: mpsc::Sender<Event>,
        followers: broadcast::Sender<EventRecord>,
        wanted: broadcast::Sender<String>,
    ) -> Self {
        Self { inputs, followers, wanted }
    }

    /// Tells the followers of events.
    pub fn tell(&self, service: &str, backend: &str, event: &str, detail: &str) {
        let _ = self.followers.send(EventRecord {
            time: jiff::Timestamp::now().to_string(),
            service: service.to_owned(),
            backend: backend.to_owned(),
            event: event.to_owned(),
            reason: None,
            detail: detail.to_owned(),
        });
    }

    /// For conditions, which tell the followers when they appear and end.
    pub fn followers(&self) -> broadcast::Sender<EventRecord> {
        self.followers.clone()
    }

    /// Has a container described again. Its engine answers like to an event; other engines do not know the container.
    pub fn describe(&self, container: String) {
        let _ = self.wanted.send(container);
    }

    /// Has an engine stop a container, which may take `stop_ms`. The loop hears of it if the engine has not answered.
    pub fn stop(&self, engine: String, id: BackendId, name: String, stop_ms: Option<i64>) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            if let Err(error) = engine::stop(&engine, &id, stop_ms).await {
                warn!(container = %name, %error, "could not be stopped");
                if error.is_without_answer {
                    let _ = inputs.send(Event::StopUnanswered(id)).await;
                }
            }
        });
    }

    /// Has an engine start a container.
    pub fn start(&self, engine: String, id: BackendId) {
        self.send_later(async move {
            let started = engine::start(&engine, &id).await;
            Event::Started { id, started }
        });
    }

    /// Runs blocking `work` on another thread and sends the event that it returns, or `failed` if it panics: the loop always hears
    /// that it has ended.
    pub fn run(&self, failed: Event, work: impl FnOnce() -> Event + Send + 'static) {
        self.run_then(work, |done| done.unwrap_or(failed));
    }

    /// The same, where `then` makes the event: of what `work` returns, or of nothing if it panics.
    pub fn run_then<T>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        then: impl FnOnce(Option<T>) -> Event + Send + 'static,
    ) {
        let inputs = self.inputs.clone();
        spawn_blocking(move || drop(inputs.blocking_send(then(caught(work)))));
    }

    /// Runs blocking `work` on another thread, which sends events as it goes on. The loop does not wait for its end.
    pub fn run_on(&self, work: impl FnOnce(&mpsc::Sender<Event>) + Send + 'static) {
        let inputs = self.inputs.clone();
        spawn_blocking(move || caught(|| work(&inputs)));
    }

    /// Sends the event of a future when it is ready.
    pub fn send_later(&self, event: impl Future<Output = Event> + Send + 'static) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move { drop(inputs.send(event.await).await) });
    }

    /// Sends the event when one of these listeners has a connection. The task holds the descriptors until then, or until it is aborted.
    pub fn watch(&self, listeners: impl FnOnce() -> Vec<OwnedFd> + Send + 'static, event: Event) -> AbortHandle {
        let inputs = self.inputs.clone();
        let watch = async move {
            let listeners = spawn_blocking(listeners).await.unwrap_or_default().into_iter();
            let watched: Vec<AsyncFd<OwnedFd>> = listeners.filter_map(|fd| sys::readable(fd).ok()).collect();
            poll_fn(|context| {
                let is_any_ready = watched.iter().any(|fd| fd.poll_read_ready(context).is_ready());
                if is_any_ready { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            drop(watched);
            let _ = inputs.send(event).await;
        };
        tokio::spawn(watch).abort_handle()
    }

    /// Where a task that goes on for long sends its events.
    pub fn inputs(&self) -> mpsc::Sender<Event> {
        self.inputs.clone()
    }
}

fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.inspect_err(|_| error!("work on another thread panicked; the reason is on standard error")).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{daemon::runtime, ids::NetnsCookie};

    #[test]
    fn the_loop_hears_of_work_that_panics() {
        let runtime = runtime().unwrap();
        let (inputs, mut queue) = mpsc::channel(1);
        let effects = Effects::new(inputs, broadcast::channel(1).0, broadcast::channel(1).0);
        let event = |cookie| Event::Idle(vec![(NetnsCookie(cookie), BTreeSet::new())]);
        let cookie = |event| if let Some(Event::Idle(idle)) = event { idle[0].0.0 } else { 0 };
        let _entered = runtime.enter();
        effects.run(event(1), || panic!("as a test wants it"));
        assert_eq!(cookie(queue.blocking_recv()), 1);
        effects.run(event(1), move || event(2));
        assert_eq!(cookie(queue.blocking_recv()), 2);
        effects.run_then(|| panic!("as a test wants it"), move |done: Option<u64>| event(done.unwrap_or(3)));
        assert_eq!(cookie(queue.blocking_recv()), 3);
    }
}
