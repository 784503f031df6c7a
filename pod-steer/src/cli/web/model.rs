//! What the page shows: the daemon's answers so far, the traffic of the last ten minutes, the last orders and events. Bounded.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::traffic::Traffic;
use crate::{
    api::{
        client::ClientError,
        live::Live,
        types::{EventRecord, ServiceStatus},
    },
    cli::live::answers::{Answers, Away},
    rollout::Operation,
};

/// Orders that are shown.
pub(super) const ORDERS_MAX: usize = 20;
/// Events that are kept and shown.
pub(super) const EVENTS_MAX: usize = 50;

/// See the module.
#[derive(Debug)]
pub(super) struct Model {
    begun: Instant,
    /// The answers.
    pub answers: Answers,
    /// Set while the daemon does not answer.
    pub away: Option<Away>,
    /// The traffic.
    pub traffic: Traffic,
    /// The last orders, the newest first.
    pub orders: Vec<Operation>,
    /// The last events with their numbers, the newest first.
    pub events: VecDeque<(u64, EventRecord)>,
    /// Events so far.
    events_count: u64,
    /// How the last orders of pages ended, by numbers that only the page that gave the order knows; each is shown once.
    notices: VecDeque<(u64, String)>,
    /// Notices so far.
    notices_count: u64,
}

impl Model {
    /// Begins with the daemon's first answer.
    pub(super) fn new(live: Live) -> Self {
        let answers = Answers::new(live);
        let mut traffic = Traffic::default();
        traffic.add(0.0, &answers.board);
        Self {
            begun: Instant::now(),
            answers,
            away: None,
            traffic,
            orders: Vec::new(),
            events: VecDeque::new(),
            events_count: 0,
            notices: VecDeque::new(),
            notices_count: 0,
        }
    }

    /// Keeps how an order ended, for the page that has given it, which asks by this number.
    pub(super) fn tell(&mut self, notice: String) -> u64 {
        self.notices_count += 1;
        self.notices.push_front((self.notices_count, notice));
        self.notices.truncate(ORDERS_MAX);
        self.notices_count
    }

    /// Takes a notice, the first time.
    pub(super) fn take_notice(&mut self, number: u64) -> Option<String> {
        let place = self.notices.iter().position(|(own, _)| *own == number)?;
        self.notices.remove(place).map(|(_, notice)| notice)
    }

    /// Seconds since the page began.
    pub(super) fn now_s(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// The daemon has answered, or not.
    pub(super) fn answered(&mut self, answer: Result<Live, ClientError>) {
        match answer {
            Ok(live) => {
                self.away = None;
                self.answers.add(live);
                self.traffic.add(self.now_s(), &self.answers.board);
            }
            Err(error) => self.away = Some(Away::after(self.away.as_ref(), &error)),
        }
    }

    /// The daemon's history, the oldest order first.
    pub(super) fn set_orders(&mut self, mut orders: Vec<Operation>) {
        orders.reverse();
        orders.truncate(ORDERS_MAX);
        self.orders = orders;
    }

    /// An event has come.
    pub(super) fn add_event(&mut self, event: EventRecord) {
        self.events_count += 1;
        self.events.push_front((self.events_count, event));
        self.events.truncate(EVENTS_MAX);
    }

    /// The number of the last event.
    pub(super) fn last_event(&self) -> u64 {
        self.events_count
    }

    /// What changes with every order that changes something: the operation and the revision of each service.
    pub(super) fn revisions(&self) -> Vec<(u64, u32)> {
        let services = self.answers.board.live.status.services.iter();
        let under_way = |service: &ServiceStatus| service.operation.as_ref().map_or(0, |status| status.operation.id);
        services.map(|service| (under_way(service), service.decision.revision)).collect()
    }
}
