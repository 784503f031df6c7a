//! What `status` answers: the world and the plan, with the kernel's counters.

use std::collections::{BTreeMap, HashMap};

use super::{conditions::Subject, control::Control};
use crate::{
    api::types::{BackendStatus, BridgeStatus, NamespaceStatus, ServiceStatus, Status, SubjectCondition},
    clock::by_wall_clock,
    condition::{Condition, Reason, Severity},
    ids::BackendIndex,
    world::{Backend, Kind, State, handed_over},
};

impl Control {
    pub(super) fn status(&self) -> Status {
        let mut by_service: BTreeMap<&str, Vec<&Backend>> = BTreeMap::new();
        for backend in self.world.backends.values() {
            by_service.entry(&backend.spec.service).or_default().push(backend);
        }
        // The last backend may have ended while its clients are held.
        for (_, hold) in self.world.holds.iter().filter(|(index, _)| self.live(**index) > 0) {
            by_service.entry(&hold.service).or_default();
        }
        // An operation may wait for the next one.
        for name in self.orders.operations.keys() {
            by_service.entry(name).or_default();
        }
        let mut sockets: HashMap<BackendIndex, usize> = HashMap::new();
        for socket in self.world.sockets.values() {
            *sockets.entry(socket.backend).or_default() += 1;
        }
        let services = by_service.into_iter().map(|(name, backends)| self.service(name, backends, &sockets));
        let services: Vec<ServiceStatus> = services.collect();
        let conditions = self.all_conditions(&services);
        Status { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id(), services, conditions }
    }

    fn service(
        &self,
        name: &str,
        mut backends: Vec<&Backend>,
        sockets: &HashMap<BackendIndex, usize>,
    ) -> ServiceStatus {
        backends.sort_by_key(|backend| backend.age());
        let index = self.services.index(name);
        let counters = index.map(|index| self.kernel.counters().service(index)).unwrap_or_default();
        let mut namespaces: Vec<NamespaceStatus> = backends
            .iter()
            .filter_map(|backend| backend.claims_in())
            .filter(|netns| self.plan.steers_in(netns.cookie))
            .map(|netns| NamespaceStatus { id: netns.to_string(), cookie: netns.cookie.0 })
            .collect();
        namespaces.sort_by_key(|namespace| namespace.cookie);
        namespaces.dedup();
        let mut maps: Vec<_> = backends.iter().flat_map(|backend| backend.spec.ports.clone()).collect();
        maps.sort();
        maps.dedup();
        let sockets = |backend: &Backend| sockets.get(&backend.index).copied().unwrap_or(0);
        let mut rows: Vec<BackendStatus> =
            backends.iter().map(|backend| self.backend(backend, sockets(backend))).collect();
        let opened: u64 = rows.iter().map(|row| row.opened).sum();
        let shares = self.plan.shares(name);
        for (row, backend) in rows.iter_mut().zip(&backends) {
            row.share = shares.get(&backend.index).copied().unwrap_or_default();
            row.served = if opened == 0 { 0.0 } else { row.opened as f64 / opened as f64 };
        }
        ServiceStatus {
            name: name.to_owned(),
            ports: maps.iter().map(ToString::to_string).collect(),
            namespaces,
            options: self.world.options(name),
            decision: by_wall_clock(self.world.decisions.get(name).cloned().unwrap_or_default()),
            pause: self.pause_status(name),
            operation: self.orders.operations.get(name).cloned().map(|running| self.operation_status(running)),
            cold_starts: self.totals.cold_starts(name),
            conditions: [
                self.plan.service_conditions.get(name).cloned().unwrap_or_default(),
                self.sleep_conditions(name),
            ]
            .concat(),
            counters: counters.into(),
            backends: rows,
        }
    }

    /// What a backend does.
    pub(super) fn state(&self, backend: &Backend) -> State {
        self.plan.states.get(&backend.index).copied().unwrap_or(State::Starting)
    }

    /// Connections that a backend holds.
    pub(super) fn live(&self, index: BackendIndex) -> u64 {
        let counters = self.kernel.counters().backend(index);
        // Signed: the counters are not read in one instant.
        let moved = counters.moved_in as i64 - counters.moved_in_closed as i64 - counters.moved_out as i64
            + counters.moved_out_closed as i64;
        let written_off = self.indices.written_off(index) as i64;
        let live = counters.opened as i64 - counters.closed as i64 + moved - written_off;
        live.max(0) as u64
    }

    /// The same for any backend, also for one whose connections no kernel program counts.
    pub(super) fn live_of(&self, backend: &Backend) -> u64 {
        match self.counted(backend) {
            Some(counted) => counted.unwrap_or(0),
            None => self.live(backend.index),
        }
    }

    fn backend(&self, backend: &Backend, sockets: usize) -> BackendStatus {
        let counters = self.kernel.counters().backend(backend.index);
        BackendStatus {
            id: backend.id.to_string(),
            name: backend.name.clone(),
            kind: match backend.kind {
                Kind::Container { .. } => "container",
                Kind::Exec => "exec",
                Kind::Registered { .. } => "registered",
            }
            .to_owned(),
            engine: match &backend.kind {
                Kind::Container { engine } => Some(engine.clone()),
                _ => None,
            },
            version: backend.spec.version.clone(),
            bridge: backend.bridge.as_ref().map(|bridge| BridgeStatus {
                name: bridge.name.clone(),
                addresses: bridge.addresses().map(|address| address.to_string()).collect(),
            }),
            weight: backend.spec.weight,
            state: self.state(backend),
            sockets,
            steered: counters.steered,
            opened: counters.opened,
            closed: counters.closed,
            live: self.live_of(backend),
            moved_in: counters.moved_in,
            moved_out: counters.moved_out,
            moved_half_open: counters.moved_half_open,
            not_moved: counters.not_moved,
            share: 0.0,
            served: 0.0,
            conditions: [self.backend_warnings(backend), self.backend_infos(backend)].concat(),
        }
    }

    /// The conditions of a backend that an operator has to act on.
    pub(super) fn backend_warnings(&self, backend: &Backend) -> Vec<Condition> {
        let planned = self.plan.conditions.get(&backend.index).into_iter().flatten();
        let own = planned.chain(backend.conditions.values()).chain(self.checks.condition(&backend.id)).cloned();
        let refused = handed_over(&self.world, backend).filter(|own| own.severity == Severity::Warning);
        own.chain(self.full_queues(backend)).chain(refused).collect()
    }

    /// Every condition that an operator has to act on, but for those of the daemon as a whole.
    pub(super) fn warnings(&self) -> BTreeMap<Subject, Vec<Condition>> {
        let backends = self.world.backends.values().filter_map(|backend| {
            let own = self.backend_warnings(backend);
            (!own.is_empty()).then(|| (Subject::of(backend), own))
        });
        self.warnings_beside_backends().chain(backends).collect()
    }

    fn warnings_beside_backends(&self) -> impl Iterator<Item = (Subject, Vec<Condition>)> {
        let ledger =
            self.orders.ledger.condition().map(|condition| {
                (Subject::Other("ledger of decisions and history".to_owned()), vec![condition.clone()])
            });
        let engines = self.engines.lost().iter().map(|(engine, error)| {
            let message = format!("cannot be reached: {error}; its containers are steered to as last known");
            let condition = Condition::without_remedy(Reason::EngineUnreachable, message);
            (Subject::Other(format!("engine {engine}")), vec![condition])
        });
        let services = self.plan.service_conditions.iter();
        let mut services: BTreeMap<String, Vec<Condition>> =
            services.map(|(service, own)| (service.clone(), own.clone())).collect();
        for (service, own) in self.all_sleep_conditions() {
            services.entry(service).or_default().extend(own);
        }
        let services = services.into_iter().map(|(service, own)| (Subject::Service(service), own));
        let containers = self.world.misfits.iter().map(|(id, misfit)| {
            (Subject::Container { name: misfit.name.clone(), id: id.clone() }, misfit.conditions.clone())
        });
        ledger.into_iter().chain(engines).chain(services).chain(containers)
    }

    /// Those of the daemon, the engines, the services and the containers, and then those of the backends, which are in their rows.
    fn all_conditions(&self, services: &[ServiceStatus]) -> Vec<SubjectCondition> {
        let of = |subject: &str, condition: &Condition| SubjectCondition {
            subject: subject.to_owned(),
            condition: condition.clone(),
        };
        let mut all: Vec<SubjectCondition> =
            self.conditions.held().map(|(subject, condition)| of(subject, condition)).collect();
        for (subject, conditions) in self.warnings_beside_backends() {
            let subject = subject.to_string();
            all.extend(conditions.iter().map(|condition| of(&subject, condition)));
        }
        for service in services {
            for backend in service.backends.iter().filter(|backend| !backend.conditions.is_empty()) {
                let subject = format!("backend {} of {}", backend.name, service.name);
                all.extend(backend.conditions.iter().map(|condition| of(&subject, condition)));
            }
        }
        all
    }
}
