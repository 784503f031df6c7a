//! The answer to `GET /v1/sockets`. The loop collects the facts; another thread completes them and answers.

use std::collections::BTreeSet;

use super::control::Control;
use crate::{
    api::sockets::{SocketsAsk, SocketsQuery},
    ids::{NetnsCookie, SocketCookie},
    near,
    sockets::{self, BackendFacts, Facts, Holders, LOOK_MAX, Limits},
    world::{Backend, Phase, Sockets as OfBackends},
};

impl Control {
    /// Answers when the sockets have been looked at, beside the loop.
    pub(super) fn answer_sockets(&self, ask: SocketsAsk) {
        let SocketsAsk { query, with_processes, turn, answer } = ask;
        if answer.is_closed() {
            return;
        }
        let selected = match self.selected(&query) {
            Ok(selected) => selected,
            Err(error) => return drop(answer.send(Err(error))),
        };
        let all = OfBackends::new(&self.world.sockets);
        let runs = |backend: &&&Backend| backend.phase != Phase::Exited;
        let backends: Vec<BackendFacts> =
            selected.iter().filter(runs).map(|backend| self.backend_facts(backend, &all)).collect();
        let mut cookies: BTreeSet<NetnsCookie> = backends.iter().flat_map(BackendFacts::namespaces).collect();
        cookies.extend(backends.iter().filter_map(|backend| backend.ingress));
        let places = self.places_of(cookies.iter().copied());
        let mut unseen = Vec::new();
        if places.len() < cookies.len() {
            unseen.push(format!("{} network namespaces could not be found", cookies.len() - places.len()));
        }
        if !with_processes {
            unseen.push("processes and users are shown to operators only".to_owned());
        }
        let holds = self.world.holds.values().flat_map(|hold| hold.sockets.keys());
        let registered: Vec<SocketCookie> =
            self.world.sockets.keys().chain(holds).copied().chain(self.world.pause_cookie).collect();
        let tables = sockets::tables_of(&self.plan);
        let holders = if with_processes { Holders::OfBackends } else { Holders::Nowhere };
        self.effects.run_on(move |_| {
            let has_left = || answer.is_closed();
            if has_left() {
                return;
            }
            let (registered, roles) = (registered.into_iter().collect(), tables.into());
            let facts = Facts { backends, registered, roles, places, holders, live: query.live, unseen };
            let found = sockets::look(&facts, &Limits::new(LOOK_MAX, &has_left));
            if let Ok(text) = serde_json::to_vec(&found) {
                let _ = answer.send(Ok(text));
            }
            // Until here no other client of this role is looked for.
            drop(turn);
        });
    }

    fn backend_facts(&self, backend: &Backend, all: &OfBackends<'_>) -> BackendFacts {
        let state = self.state(backend);
        let is_paused = self.world.decisions.get(&backend.spec.service).is_some_and(|decision| decision.paused);
        BackendFacts {
            id: backend.id.to_string(),
            name: backend.name.clone(),
            service: backend.spec.service.clone(),
            version: backend.spec.version.clone(),
            service_ports: backend.spec.ports.iter().map(|map| map.service_port()).collect(),
            target_ports: backend.spec.ports.iter().map(|map| map.target_port()).collect(),
            netns: backend.netns.map(|netns| netns.cookie),
            ingress: backend.ingress().map(|netns| netns.cookie),
            state: Some(state),
            without_clients: Some(sockets::without_clients(state, is_paused, &self.backend_warnings(backend))),
            forwarded: backend.forwarded().is_some(),
            processes: self.processes_of(backend),
            sockets: all.of(backend.index).map(|(cookie, socket)| (cookie, socket.clone())).collect(),
        }
    }

    /// The backends that a query selects.
    fn selected(&self, query: &SocketsQuery) -> Result<Vec<&Backend>, String> {
        let of_service = |backend: &&Backend| query.service.as_ref().is_none_or(|name| *name == backend.spec.service);
        let all = self.world.backends.values();
        let selected: Vec<&Backend> = all.clone().filter(of_service).collect();
        if let Some(service) = query.service.as_ref().filter(|_| selected.is_empty()) {
            let mut known: Vec<&str> = all.map(|backend| backend.spec.service.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(near::no_service(service, &known));
        }
        let Some(named) = &query.backend else { return Ok(selected) };
        let names: Vec<(&str, &str)> =
            selected.iter().map(|backend| (&*backend.id as &str, backend.name.as_str())).collect();
        let places = near::backends_named(named, &names)?;
        Ok(places.into_iter().filter_map(|place| selected.get(place).copied()).collect())
    }
}
