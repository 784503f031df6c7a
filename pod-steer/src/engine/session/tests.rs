use std::sync::Arc;

use tokio::{sync::Semaphore, time::timeout};

use super::*;
use crate::engine::{
    ImageLabels, SandboxState,
    fake::{ADDRESS, Fake, container, event},
    values::Sandbox,
};

/// A session with an engine, from the daemon's side.
struct Daemon {
    fake: Fake,
    events: mpsc::Sender<Happened>,
    inputs: mpsc::Receiver<EngineInput>,
    trust: watch::Sender<bool>,
    wanted: broadcast::Sender<String>,
}

impl Daemon {
    /// Follows the engine. To be called on a runtime.
    fn follow(fake: Fake) -> Self {
        let ((events, received), (sender, inputs)) = (mpsc::channel(16), mpsc::channel(16));
        let ((trust, trusted), (wanted, ids)) = (watch::channel(false), broadcast::channel(16));
        fake.state().events = Some(received);
        tokio::spawn(follow(fake.clone(), trusted, sender, ids));
        Self { fake, events, inputs, trust, wanted }
    }

    async fn next(&mut self) -> EngineInput {
        timeout(Duration::from_secs(30), self.inputs.recv()).await.expect("an input").expect("the session goes on")
    }

    /// The ids and the faults of a snapshot.
    async fn snapshot(&mut self) -> (Vec<Container>, Vec<(String, String)>) {
        match self.next().await {
            EngineInput::Snapshot { engine, mut containers, unread } => {
                assert_eq!(engine, ADDRESS);
                containers.sort_by(|a, b| a.id.cmp(&b.id));
                (containers, unread)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn described(&mut self) -> Container {
        match self.next().await {
            EngineInput::Container(container) => *container,
            other => panic!("{other:?}"),
        }
    }

    async fn happened(&mut self, id: &str, change: Change) {
        self.events.send(event(id, change.clone())).await.unwrap();
        match self.next().await {
            EngineInput::Happened { id: of, change: seen, .. } => assert_eq!((of.as_str(), seen), (id, change)),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the engine was asked this for the `nth` time.
    async fn asked(&self, request: &str, nth: usize) {
        let times = || self.fake.state().asked.iter().filter(|asked| *asked == request).count();
        timeout(Duration::from_secs(30), async {
            while times() < nth {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{request} in {:?}", self.fake.state().asked));
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// An engine with these containers, whose image has no labels.
fn engine(ids: &[&str]) -> Fake {
    let fake = Fake::default();
    {
        let mut state = fake.state();
        state.listed = ids.iter().map(|id| (*id).to_owned()).collect();
        state.containers = ids.iter().map(|id| ((*id).to_owned(), container(id))).collect();
        state.images.insert("image".to_owned(), Default::default());
    }
    fake
}

#[test]
fn events_are_requested_before_the_snapshot() {
    block_on(async {
        let mut daemon = Daemon::follow(engine(&["a"]));
        assert_eq!(daemon.snapshot().await, (vec![container("a")], vec![]));
        assert_eq!(daemon.fake.state().asked[..3], ["events", "containers", "container a"]);
    });
}

#[test]
fn a_snapshot_leaves_out_removed_containers_and_names_unreadable_ones() {
    block_on(async {
        let fake = engine(&["a", "b", "gone"]);
        fake.state().containers.remove("gone");
        fake.state().unreadable.push("b".to_owned());
        let mut daemon = Daemon::follow(fake);
        let (containers, unread) = daemon.snapshot().await;
        assert_eq!(containers, [container("a")]);
        assert_eq!(unread, [("b".to_owned(), "cannot parse the answer to b: not JSON".to_owned())]);
    });
}

#[test]
fn an_engine_that_is_lost_is_reported_and_followed_again() {
    block_on(async {
        let mut daemon = Daemon::follow(engine(&["a"]));
        daemon.snapshot().await;
        let (events, received) = mpsc::channel(16);
        daemon.fake.state().events = Some(received);
        daemon.events = events;
        let lost = daemon.next().await;
        assert!(matches!(&lost, EngineInput::Lost { engine, .. } if engine == ADDRESS), "{lost:?}");
        assert_eq!(daemon.snapshot().await.0.len(), 1);
    });
}

#[test]
fn a_description_older_than_an_event_is_marked() {
    block_on(async {
        let mut daemon = Daemon::follow(engine(&["a"]));
        daemon.snapshot().await;
        let hold = Arc::new(Semaphore::new(0));
        daemon.fake.state().held.insert("a".to_owned(), hold.clone());
        daemon.happened("a", Change::Started).await;
        daemon.asked("container a", 2).await;
        daemon.happened("a", Change::Died).await;
        hold.add_permits(2);
        assert!(!daemon.described().await.phase_is_current, "the container has died since");
        assert!(daemon.described().await.phase_is_current, "it is asked for again");
    });
}

#[test]
fn an_event_of_a_former_run_is_not_told() {
    block_on(async {
        let fake = engine(&["a", "b"]);
        fake.state().containers.get_mut("a").unwrap().started_ns = 100;
        let mut daemon = Daemon::follow(fake);
        daemon.snapshot().await;
        // An engine repeats them to a new session.
        for change in [Change::Signalled(libc::SIGTERM), Change::Died, Change::Paused, Change::Started] {
            daemon.events.send(Happened { at_ns: Some(99), ..event("a", change) }).await.unwrap();
            assert_eq!(daemon.described().await.id, "a", "the engine is asked instead");
        }
        // The answer may be ahead of the events.
        daemon.fake.state().containers.get_mut("b").unwrap().started_ns = 300;
        daemon.happened("b", Change::Renamed).await;
        assert_eq!(daemon.described().await.started_ns, 300);
        daemon.events.send(Happened { at_ns: Some(200), ..event("b", Change::Died) }).await.unwrap();
        assert_eq!(daemon.described().await.id, "b");
        // Its own, one of an engine that gives no time, and what concerns every run.
        for (change, at_ns) in [(Change::Paused, Some(100)), (Change::Unpaused, None), (Change::Removed, Some(1))] {
            daemon.events.send(Happened { at_ns, ..event("a", change.clone()) }).await.unwrap();
            let told = daemon.next().await;
            assert!(matches!(&told, EngineInput::Happened { change: seen, .. } if *seen == change), "{told:?}");
        }
    });
}

#[test]
fn a_description_older_than_the_removal_is_dropped() {
    block_on(async {
        let mut daemon = Daemon::follow(engine(&["a", "b"]));
        daemon.snapshot().await;
        let hold = Arc::new(Semaphore::new(0));
        daemon.fake.state().held.insert("a".to_owned(), hold.clone());
        daemon.happened("a", Change::Started).await;
        daemon.asked("container a", 2).await;
        daemon.happened("a", Change::Removed).await;
        hold.add_permits(1);
        daemon.happened("b", Change::Renamed).await;
        assert_eq!(daemon.described().await.id, "b");
    });
}

#[test]
fn a_creation_is_reported_before_the_container_is_inspected() {
    block_on(async {
        let mut daemon = Daemon::follow(engine(&[]));
        daemon.snapshot().await;
        let mine = Some(Box::new(Container { network: crate::world::Network::Unknown, ..container("new") }));
        let created = Happened { id: "new".to_owned(), change: Change::Created, at_ns: None, mine };
        daemon.events.send(created).await.unwrap();
        let first = daemon.next().await;
        assert!(matches!(&first, EngineInput::Happened { change: Change::Created, .. }), "{first:?}");
        assert_eq!(daemon.described().await.network, crate::world::Network::Unknown);
    });
}

#[test]
fn only_an_engine_whose_events_are_late_is_asked_for_creations() {
    for are_late in [true, false] {
        block_on(async {
            let fake = engine(&[]);
            fake.state().are_late = are_late;
            fake.state().creations.insert("new".to_owned(), container("new"));
            let mut daemon = Daemon::follow(fake);
            daemon.snapshot().await;
            daemon.wanted.send("new".to_owned()).unwrap();
            daemon.asked("container new", 1).await;
            if are_late {
                assert_eq!(daemon.described().await, container("new"));
            }
            let asked = daemon.fake.state().asked.contains(&"creation new".to_owned());
            assert_eq!(asked, are_late);
        });
    }
}

#[test]
fn containers_of_a_sandbox_are_inspected_when_it_changes() {
    block_on(async {
        let fake = engine(&["a"]);
        fake.state().containers.insert("a".to_owned(), Container { joined: Some("pod".to_owned()), ..container("a") });
        let sandbox = Sandbox { id: "pod".to_owned(), name: "pod".to_owned(), state: SandboxState::Running(7) };
        fake.state().sandboxes.insert("pod".to_owned(), sandbox.clone());
        let mut daemon = Daemon::follow(fake);
        assert_eq!(daemon.snapshot().await.0[0].sandbox, Some(sandbox.clone()));
        daemon.fake.state().sandboxes.remove("pod");
        // The sandbox itself has no label, so its event is not passed on.
        daemon.events.send(event("pod", Change::Removed)).await.unwrap();
        let removed = Sandbox { state: SandboxState::Removed, ..sandbox };
        assert_eq!(daemon.described().await.sandbox, Some(removed), "the name is remembered");
    });
}

#[test]
fn labels_of_images_count_once_they_are_trusted() {
    block_on(async {
        let fake = engine(&["a"]);
        let labels = container("a").labels;
        fake.state().images.insert("image".to_owned(), labels.clone());
        let mut daemon = Daemon::follow(fake);
        let first = daemon.snapshot().await.0.remove(0);
        assert!(first.labels.is_empty());
        assert_eq!(first.image_labels, ImageLabels::Ignored(["pod-steer.service".to_owned()].into()));
        daemon.trust.send(true).unwrap();
        assert_eq!(daemon.snapshot().await.0[0].labels, labels);
    });
}
