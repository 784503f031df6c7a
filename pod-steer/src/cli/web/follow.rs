//! Follows the daemon: asks for its state every two seconds, for its history when that may have changed, and reads its events.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::site::Site;
use crate::{
    api::{client, types::EventRecord},
    cli::live::answers::ask,
    rollout::Operation,
};

/// Time between two samples of the traffic.
const EVERY: Duration = Duration::from_secs(2);
/// The history is asked for at least once in this time.
const HISTORY_MAX: Duration = Duration::from_secs(60);
/// Pause before the events are followed again.
const EVENTS_PAUSE: Duration = Duration::from_secs(1);

/// What changes with the history: revisions of services, and the number of the last event.
type Seen = (Vec<(u64, u32)>, u64);

/// Follows the daemon until the future is dropped.
pub(super) async fn follow(site: Arc<Site>) {
    tokio::join!(sample(&site), events(&site));
}

async fn sample(site: &Site) {
    let mut due = interval(EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: Option<(Instant, Seen)> = None;
    loop {
        tokio::select! {
            _ = due.tick() => {}
            () = site.hurry.notified() => {}
        }
        let answer = ask(&site.socket).await;
        let seen = {
            let mut model = site.model();
            model.answered(answer);
            (model.revisions(), model.last_event())
        };
        let is_known = known.as_ref().is_some_and(|(at, before)| at.elapsed() < HISTORY_MAX && *before == seen);
        if !is_known && let Ok(orders) = client::get::<Vec<Operation>>(&site.socket, "/v1/history").await {
            site.model().set_orders(orders);
            known = Some((Instant::now(), seen));
        }
        site.changed();
    }
}

async fn events(site: &Site) {
    loop {
        let each = |line: &[u8]| {
            if let Ok(event) = serde_json::from_slice::<EventRecord>(line) {
                site.model().add_event(event);
            }
            true
        };
        // That the daemon is away is reported with the samples.
        let _ = client::follow(&site.socket, "/v1/events", each).await;
        sleep(EVENTS_PAUSE).await;
    }
}
