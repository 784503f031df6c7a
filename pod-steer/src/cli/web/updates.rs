//! The stream of updates: parts of the page that have changed since the last time, and new events, as Server-Sent Events.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{
    page::{Selection, View},
    parts,
    site::Site,
    tables,
};

/// A comment is sent if nothing else was for so long.
const QUIET_MAX: Duration = Duration::from_secs(15);
/// A browser that lost its connection tries again after so many milliseconds.
const RETRY: Duration = Duration::from_millis(2_000);

/// The query of the stream.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    service: Option<String>,
    /// The number of the last event that the page has.
    #[serde(default)]
    seen: u64,
    /// Which services it shows, as [`View::shown`] said.
    #[serde(default)]
    shown: String,
}

/// An update.
#[derive(Debug, Serialize)]
struct Update {
    /// HTML by the ids of elements, to be put in them in this order.
    parts: Vec<(String, String)>,
    /// New events, the oldest first.
    events: Vec<String>,
}

/// What a page has got so far.
struct Follower {
    site: Arc<Site>,
    selection: Selection,
    ticks: watch::Receiver<()>,
    /// Which services it shows.
    shown: String,
    /// A hash of each part.
    parts: HashMap<String, u64>,
    seen: u64,
    _place: OwnedSemaphorePermit,
}

/// Sends updates until the browser leaves.
pub(super) async fn updates(State(site): State<Arc<Site>>, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&site.followers).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open; close some\n").into_response();
    };
    // After a lost connection, the browser names the last event that it has got.
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let follower = Follower::new(site, asked, last, place);
    let events = stream::unfold(follower, |mut follower| async move {
        follower.ticks.changed().await.ok()?;
        let event = follower.event();
        Some((Ok::<_, Infallible>(event), follower))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(QUIET_MAX)).into_response()
}

impl Follower {
    fn new(site: Arc<Site>, asked: Asked, last: Option<u64>, place: OwnedSemaphorePermit) -> Self {
        let mut ticks = site.ticks();
        // The first update is sent at once.
        ticks.mark_changed();
        // What a page that lost its connection has got meanwhile is not known.
        let shown = if last.is_some() { String::new() } else { asked.shown };
        let (selection, seen) = (Selection { service: asked.service }, last.unwrap_or(asked.seen));
        Self { site, selection, ticks, shown, parts: HashMap::new(), seen, _place: place }
    }

    fn event(&mut self) -> Event {
        let update = self.update();
        let event = Event::default().id(self.seen.to_string()).retry(RETRY).event("update");
        event.json_data(&update).unwrap_or_default()
    }

    fn update(&mut self) -> Update {
        let site = Arc::clone(&self.site);
        let model = site.model();
        let view = View::new(&site, &model, &self.selection);
        let mut parts = view.parts();
        let shown = view.shown();
        if shown != self.shown {
            parts.insert(0, (parts::SERVICES.to_owned(), view.services().into_string()));
            self.shown = shown;
        }
        let known: HashMap<String, u64> = parts.iter().map(|(id, html)| (id.clone(), hash(html))).collect();
        parts.retain(|(id, _)| self.parts.get(id) != known.get(id));
        self.parts = known;
        let new = model.events.iter().take_while(|(number, _)| *number > self.seen);
        let mut events: Vec<String> = new.map(|(_, event)| tables::event(event).into_string()).collect();
        events.reverse();
        self.seen = model.last_event();
        Update { parts, events }
    }
}

/// For comparing only: two texts of one hash would be an update that is missed.
pub(super) fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::{super::page::tests::site, *};
    use crate::api::types::EventRecord;

    fn follower(site: &Arc<Site>, shown: &str, last: Option<u64>) -> Follower {
        let asked = Asked { service: None, seen: 0, shown: shown.to_owned() };
        let place = Arc::clone(&site.followers).try_acquire_owned().unwrap();
        Follower::new(Arc::clone(site), asked, last, place)
    }

    #[test]
    fn only_what_has_changed_is_sent() {
        let site = Arc::new(site(false));
        let shown = View::new(&site, &site.model(), &Selection { service: None }).shown();
        let mut follower = follower(&site, &shown, None);
        let ids = |update: &Update| update.parts.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        let first = ids(&follower.update());
        assert!(first.contains(&"s-web-chart".to_owned()) && !first.contains(&parts::SERVICES.to_owned()), "{first:?}");
        assert_eq!(ids(&follower.update()), [""; 0]);
        let (detail, event) = (String::new(), "ready".to_owned());
        let record = EventRecord {
            time: String::new(),
            service: "web".into(),
            backend: "a".into(),
            event,
            reason: None,
            detail,
        };
        site.model().add_event(record);
        let update = follower.update();
        assert_eq!((update.parts.len(), update.events.len(), follower.seen), (0, 1, 1));
        assert!(follower.update().events.is_empty());
    }

    #[test]
    fn a_page_that_lost_its_connection_gets_everything() {
        let site = Arc::new(site(true));
        let shown = View::new(&site, &site.model(), &Selection { service: None }).shown();
        let update = follower(&site, &shown, Some(0)).update();
        assert_eq!(update.parts[0].0, parts::SERVICES);
        let update = follower(&site, "other", None).update();
        assert_eq!(update.parts[0].0, parts::SERVICES);
    }
}
