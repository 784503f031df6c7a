//! Accepts connections to the API's socket. The kernel's credentials of the client decide whether it is served, before a byte of its
//! request is read. Each part of a request has a time limit.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{Extension, Router, body::Body, http::StatusCode};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{HttpService, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::{Resource, getrlimit};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::warn;

use super::{
    Access,
    answers::{Answering, Follows},
    peer::{ConnectedPeer, Role},
    refuse,
    slots::{Holder, Slot, Slots},
};

/// Time limit for the head of a request, and for the pause between two requests.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Time limit for reading an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// As [`HEAD_MAX`], for a client that only gets a refusal.
const REFUSED_HEAD_MAX: Duration = Duration::from_secs(1);
/// Maximum size of a head, and of the buffer of one client.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Pause after a failed accept, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that a client of root waits for a slot.
const SLOT_MAX: Duration = Duration::from_secs(5);

const NOT_ALLOWED: &str = "this user may not use the API; run the command as root, or as a member of the group given by \
                           `pod-steer run --group` (to read only: `--viewers`)";
const TOO_MANY: &str =
    "this user, or all users together, have too many connections to the API; close some and try again";

/// The socket, who may use it, and how many at a time.
pub(super) struct Gate {
    listener: UnixListener,
    access: Access,
    slots: Arc<Slots>,
}

/// A client and its role.
struct Arrived {
    stream: UnixStream,
    slot: Slot,
    admitted: Result<ConnectedPeer, (StatusCode, &'static str)>,
}

impl Gate {
    pub fn new(listener: UnixListener, access: Access) -> Self {
        Self { listener, access, slots: Slots::new(getrlimit(Resource::Nofile).current) }
    }

    /// Serves until `ended` resolves, and then completes the requests under way.
    pub async fn serve(self, app: Router, mut ended: oneshot::Receiver<()>) {
        let (end, ending) = watch::channel(());
        let mut connections = JoinSet::new();
        // Keep this future until it completes: it may hold an accepted client of root that waits for a slot.
        let mut arrived = Box::pin(self.arrived());
        loop {
            tokio::select! {
                Arrived { stream, slot, admitted } = &mut arrived => {
                    arrived.set(self.arrived());
                    let ending = ending.clone();
                    match admitted {
                        Ok(peer) => {
                            let follows = Follows::default();
                            let app = app.clone().layer(Extension(peer)).layer(Extension(follows.clone()));
                            let stream = Answering::new(stream, ANSWER_MAX, follows);
                            connections.spawn(converse(stream, slot, TowerToHyperService::new(app), HEAD_MAX, ending));
                        }
                        Err((status, why)) => {
                            let service = service_fn(move |_: Request<Incoming>| async move {
                                Ok::<_, Infallible>(refuse(status, why))
                            });
                            let stream = Answering::new(stream, ANSWER_MAX, Follows::default());
                            connections.spawn(converse(stream, slot, service, REFUSED_HEAD_MAX, ending));
                        }
                    }
                }
                Some(_) = connections.join_next() => {}
                _ = &mut ended => break,
            }
        }
        drop(arrived);
        drop((self, end));
        while connections.join_next().await.is_some() {}
    }

    /// Accepts the next client to serve. A client without a slot is disconnected without an answer.
    async fn arrived(&self) -> Arrived {
        loop {
            let identified = self.listener.accept().await.and_then(|(stream, _)| {
                let peer = ConnectedPeer::of(&stream, self.access)?;
                Ok((stream, peer))
            });
            let (stream, peer) = match identified {
                Ok(identified) => identified,
                Err(error) => {
                    self.failed(&error).await;
                    continue;
                }
            };
            let (slot, refusal) = match peer.role() {
                Some(role) => (self.slot(&peer, role).await, (StatusCode::SERVICE_UNAVAILABLE, TOO_MANY)),
                // The socket's mode refuses such a client, unless it was changed.
                None => (None, (StatusCode::FORBIDDEN, NOT_ALLOWED)),
            };
            if let Some(slot) = slot {
                return Arrived { stream, slot, admitted: Ok(peer) };
            }
            if let Some(slot) = self.slots.take(Holder::Refused) {
                warn!(%peer, "refused a client of the API: {}", refusal.1);
                return Arrived { stream, slot, admitted: Err(refusal) };
            }
        }
    }

    /// Takes a slot for a client. A client of root waits for one.
    async fn slot(&self, peer: &ConnectedPeer, role: Role) -> Option<Slot> {
        let holder = match (peer.is_trusted(), role) {
            (true, _) => Holder::Root,
            (false, Role::Operator) => Holder::Operator(peer.uid()),
            (false, Role::Viewer) => Holder::Viewer(peer.uid()),
        };
        let slot = self.slots.take(holder);
        if slot.is_some() || holder != Holder::Root {
            return slot;
        }
        let wait = async {
            loop {
                self.slots.freed.notified().await;
                if let Some(slot) = self.slots.take(holder) {
                    return slot;
                }
            }
        };
        timeout(SLOT_MAX, wait).await.ok()
    }

    async fn failed(&self, error: &io::Error) {
        warn!(%error, "cannot accept a client of the API");
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Answers the requests of one client until it disconnects, exceeds a limit, or the daemon exits.
async fn converse<S>(stream: Answering, slot: Slot, service: S, head_max: Duration, mut ending: watch::Receiver<()>)
where
    S: HttpService<Incoming, ResBody = Body>,
    S::Error: std::error::Error + Send + Sync + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_max).max_buf_size(BUFFER_BYTES_MAX);
    let mut conversation = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = conversation.as_mut() => {}
        _ = ending.changed() => {
            conversation.as_mut().graceful_shutdown();
            let _ = conversation.await;
        }
    }
    drop(slot);
}
