//! How containers come, change and go.

use std::collections::BTreeSet;

use tracing::{debug, info, warn};

use super::{control::Control, deferred::Deferred, ended::Ending, image_labels::image_labels_condition};
use crate::{
    clock::boot_ms,
    condition::{Condition, Reason},
    engine::{self, Change, Container, EngineInput, ImageLabels, ends},
    ids::{BackendId, BackendIndex},
    kernel::{Cgroup, Kernel, Usage},
    labels,
    ports::Port,
    settings::Image,
    world::{Backend, Health, Kind, Lingering, Misfit, Network, Phase},
};

impl Control {
    pub(super) fn engine_input(&mut self, input: EngineInput) {
        match input {
            EngineInput::Snapshot { engine, containers, unread } => self.snapshot(&engine, containers, unread),
            EngineInput::Container(container) => {
                // It has just appeared, if it is not known.
                let seen_after = self.orders.ledger.next_operation() - 1;
                self.container(*container, Some(seen_after));
            }
            EngineInput::Happened { engine, id, change, at_ns } => self.happened(&engine, &id, &change, at_ns),
            EngineInput::Lost { engine, error } => {
                self.heard(&engine);
                self.engines.lose(engine, error);
            }
        }
    }

    /// Everything that an engine has: what is not in it went while nobody listened.
    fn snapshot(&mut self, engine: &str, mut containers: Vec<Container>, unread: Vec<(String, String)>) {
        self.engines.find(engine);
        let read = containers.iter().map(|container| &container.id);
        let there: BTreeSet<String> = read.chain(unread.iter().map(|(id, _)| id)).cloned().collect();
        let of_engine = |kind: &Kind| matches!(kind, Kind::Container { engine: of } if of == engine);
        let backends = self.world.backends.values().filter(|backend| of_engine(&backend.kind));
        let gone = backends.map(|backend| backend.id.clone()).filter(|id| !there.contains(id.as_str()));
        let gone: Vec<BackendId> = gone.collect();
        for id in gone {
            self.ended(&id, Ending::Removed);
        }
        self.world.misfits.retain(|id, misfit| misfit.engine != engine || there.contains(id.as_str()));
        self.names_no_longer(engine, |id| there.contains(id));
        for (id, why) in unread {
            if self.is_of_another_engine(&id, engine) {
                continue;
            }
            let known = self.world.backends.get(id.as_str()).map(|backend| backend.name.clone());
            let name = known.unwrap_or_else(|| id.get(..12).unwrap_or(&id).to_owned());
            let message = format!("it is not followed: {why}");
            let conditions = vec![Condition::without_remedy(Reason::ContainerNotRead, message)];
            self.world.misfits.insert(id.into(), Misfit { name, engine: engine.to_owned(), conditions });
        }
        containers.sort_by_key(|container| container.created_ms);
        let managed: Vec<Container> =
            containers.into_iter().filter_map(|container| self.describe(container, None)).collect();
        managed.iter().for_each(|container| self.attach(container));
        self.deferred.extend(managed.into_iter().map(|container| Deferred::Locate(Box::new(container))));
        self.deferred.push_back(Deferred::Described(engine.to_owned()));
    }

    /// An engine has described all its containers, and they have been located.
    pub(super) fn described_all(&mut self, engine: &str) {
        self.touch();
        self.no_longer_awaited(|awaited| awaited == engine);
        self.heard(engine);
    }

    /// A container as it is now. `seen_after` is for one that is not known yet.
    fn container(&mut self, container: Container, seen_after: Option<u64>) {
        if let Some(container) = self.describe(container, seen_after) {
            self.attach(&container);
            self.deferred.push_back(Deferred::Locate(Box::new(container)));
        }
    }

    /// Brings a backend to what the engine says of its container. Returns the container if it is managed and has not ended.
    fn describe(&mut self, container: Container, seen_after: Option<u64>) -> Option<Container> {
        if self.is_of_another_engine(&container.id, &container.engine) {
            return None;
        }
        let version = labels::default_version(&container.image, &container.image_id);
        let labels = container.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let known = self.world.backends.get(container.id.as_str()).cloned();
        let is_sifted = container.image_labels != ImageLabels::Unknown;
        let spec = match (labels::parse(labels, &version), &known) {
            (Some(Ok(spec)), _) if is_sifted => spec,
            // Which labels are its own cannot be found out any more: it serves what it did, and is followed as before.
            (_, Some(known)) if !is_sifted => known.spec.clone(),
            (parsed, _) => {
                let errors = parsed.into_iter().filter_map(Result::err).flatten();
                self.ignore(container, errors.map(|error| error.condition()).collect());
                return None;
            }
        };
        let announced = container.network == Network::Unknown;
        if known.is_some() && announced {
            return None;
        }
        if !self.takes_image(&container, &spec.service) {
            return None;
        }
        let index = match &known {
            Some(backend) => backend.index,
            None => match self.attached_before(&container).map_or_else(|| self.new_index(&spec.service), Ok) {
                Ok(index) => index,
                Err(condition) => {
                    self.indices.refuse(container.id.clone());
                    self.misfit(&container, vec![condition]);
                    return None;
                }
            },
        };
        let died = known.as_ref().is_some_and(|known| {
            container.phase_is_current && container.phase == Phase::Exited && known.phase != Phase::Exited
        });
        let (news, seen) = (known.is_none(), self.world.next_seen());
        let mut backend = known.unwrap_or_else(|| {
            let kind = Kind::Container { engine: container.engine.clone() };
            Backend {
                created_ms: container.created_ms,
                started_ns: container.started_ns,
                seen,
                seen_after,
                phase: container.phase,
                health: container.health,
                ..Backend::new(&*container.id, kind, index, spec.clone())
            }
        });
        backend.name.clone_from(&container.name);
        backend.spec = spec;
        backend.image = Some(Image::new(&container.image, &container.image_id));
        if container.created_ms != 0 {
            backend.created_ms = container.created_ms;
        }
        backend.network = container.network;
        backend.stop_signal = container.stop_signal;
        backend.stop_timeout_s = container.stop_timeout_s;
        backend.is_transient = container.is_transient;
        let is_next_run = backend.is_started_at(container.started_ns);
        if is_next_run {
            self.checks.runs_again(&mut backend);
        }
        if container.phase_is_current {
            if let Some(start) = self.orders.starts.get_mut(&*container.id) {
                start.was_described();
            }
            backend.health = container.health;
            match &container.health_failure {
                Some(failure) => {
                    backend.set_condition(Condition::without_remedy(Reason::EngineCheckFails, failure));
                }
                None => {
                    backend.end_condition(Reason::EngineCheckFails);
                }
            }
            // A container that was told to stop still runs for a while, and an engine says no more than that.
            match (backend.phase, container.phase) {
                (_, Phase::Running) if is_next_run => backend.is_now(Phase::Running),
                (Phase::Stopping, Phase::Running) => {}
                (before, now) if before == now || died => {}
                (_, Phase::Paused) => backend.was_paused(),
                (Phase::Paused, Phase::Running) => backend.was_unpaused(boot_ms()),
                (_, now) => backend.is_now(now),
            }
        }
        if let Err(error) = self.store.put(&backend) {
            warn!(error = %crate::chain(&error), "a restart will have to find this container again");
        }
        if news {
            debug!(container = %backend.name, id = %backend.id, service = %backend.spec.service, "managed");
        }
        let id = backend.id.clone();
        match image_labels_condition(&container) {
            Some(condition) if is_sifted => self.misfit(&container, vec![condition]),
            Some(_) => {}
            None => drop(self.world.misfits.remove(&id)),
        }
        let (service, network) = (backend.spec.service.clone(), backend.network);
        if let Some(before) = self.world.backends.insert(id.clone(), backend) {
            self.touch_service(&before.spec.service);
            self.touch_pod(before.network);
        }
        self.touch_service(&service);
        self.touch_pod(network);
        if died {
            self.ended(&id, Ending::Died);
            return None;
        }
        Some(container)
    }

    /// Expects the cgroup of a container, and attaches to it if it is there.
    fn attach(&mut self, container: &Container) {
        let owner = engine::owner(&container.engine);
        let Some(path) = self.cgroups.expect(&container.id, &container.cgroup_parent, owner) else { return };
        let Some(index) = self.world.backends.get(container.id.as_str()).map(|backend| backend.index) else { return };
        // An engine describes a container several times while it starts.
        let is_attached = Cgroup::open(&path)
            .is_ok_and(|cgroup| self.places.id(index) == Some(cgroup.id) && self.kernel.is_attached(cgroup.id, index));
        if !is_attached {
            self.deferred.push_back(Deferred::Attach { id: container.id.as_str().into(), path });
        }
    }

    /// Learns where a container runs.
    pub(super) fn locate(&mut self, container: &Container) {
        let runs = |backend: &Backend| matches!(backend.phase, Phase::Running | Phase::Paused);
        if let Some(pid) = container.pid
            && self.world.backends.get(container.id.as_str()).is_some_and(runs)
        {
            self.started(&container.id, pid);
        }
        self.note_sandbox(container);
    }

    pub(super) fn misfit(&mut self, container: &Container, conditions: Vec<Condition>) {
        let misfit = Misfit { name: container.name.clone(), engine: container.engine.clone(), conditions };
        self.world.misfits.insert(container.id.as_str().into(), misfit);
    }

    /// An index for a new backend of a service, its counters at zero.
    pub(super) fn new_index(&mut self, service: &str) -> Result<BackendIndex, Condition> {
        let max = self.kernel.backends_max();
        let own = self.world.backends.values().filter(|backend| backend.spec.service == service).count();
        let usage = Usage { own: count(own), used: count(self.world.backends.len()), limit: max };
        // That all are in use is said below.
        if usage.used < max && !usage.may_take() {
            let message = format!("the service `{service}` may have no more backends: {usage}");
            let remedy = "end some that it does not need, or raise `run --max-backends`, which takes an `unload` first";
            return Err(Condition::new(Reason::TooManyBackends, message, remedy));
        }
        let full = || {
            let message = format!("all {max} backends are in use");
            let remedy = "raise `run --max-backends`, which takes an `unload` first";
            Condition::new(Reason::TooManyBackends, message, remedy)
        };
        // What an ended backend's programs still count must not be counted for another.
        let counting = |kernel: &Kernel| -> BTreeSet<BackendIndex> {
            kernel.attached_backends().into_iter().map(|(_, index)| index).chain(kernel.moved_to()).collect()
        };
        let mut index = self.world.free_index(max, &counting(&self.kernel));
        while index.is_none() && self.places.is_cleanup_due() {
            self.drop_leftovers();
            index = self.world.free_index(max, &counting(&self.kernel));
        }
        let index = index.ok_or_else(full)?;
        if self.indices.give_out(index) {
            self.kernel.disown_index(index);
        }
        let reset = self.kernel.reset_backend_counters(index);
        reset.map_err(|error| Condition::without_remedy(Reason::ChangeRefused, crate::chain(&error)))?;
        // Its programs have been detached, so nothing is counted there any more.
        if let Some(former) = self.world.lingering.remove(&index) {
            self.touch_service(&former.service);
        }
        Ok(index)
    }

    /// Has the containers described again for which no index was free.
    pub(super) fn ask_for_those_without_index(&mut self) {
        for id in self.indices.take_refused() {
            self.effects.describe(id);
        }
    }

    fn happened(&mut self, engine: &str, id: &str, change: &Change, at_ns: Option<i64>) {
        if self.is_of_another_engine(id, engine) {
            if *change == Change::Removed {
                self.names_no_longer(engine, |named| named != id);
            }
            return;
        }
        if *change == Change::Removed {
            self.world.misfits.remove(id);
            return self.ended(id, Ending::Removed);
        }
        if *change == Change::Died {
            // Podman tells of a death when the next run may serve already: then its description does away with the former one.
            if self.has_processes(id) {
                return self.effects.describe(id.to_owned());
            }
            return self.ended(id, Ending::Died);
        }
        if *change == Change::NetworkChanged {
            return self.look_at_network(id);
        }
        if *change == Change::Started {
            self.runs_again(id);
        }
        let Some(backend) = self.world.backends.get_mut(id) else { return };
        match change {
            Change::Signalled(signal) if ends(*signal, backend.stop_signal) => backend.told_to_stop(boot_ms()),
            Change::Started => {
                backend.starts_anew(at_ns);
                backend.is_now(Phase::Running);
                backend.conditions.clear();
                self.holders.left_out.remove(&backend.index);
                backend.port_history.restart();
                self.world.listening.remove(&backend.index);
            }
            Change::Paused => backend.was_paused(),
            Change::Unpaused => backend.was_unpaused(boot_ms()),
            Change::Health(health) => {
                backend.health = *health;
                if *health != Health::Unhealthy {
                    backend.end_condition(Reason::EngineCheckFails);
                }
            }
            Change::Signalled(_)
            | Change::Created
            | Change::Renamed
            | Change::HealthUnknown
            | Change::NetworkChanged
            | Change::Removed
            | Change::Died => {
                return;
            }
        }
        if let Some(backend) = self.world.backends.get(id)
            && let Err(error) = self.store.put(backend)
        {
            warn!(error = %crate::chain(&error), "a restart will have to find this container again");
        }
        self.touch_id(id);
    }

    /// A backend is gone, and everything that was made for it.
    pub(super) fn remove(&mut self, id: &str) {
        self.cgroups.forget(id);
        let Some(backend) = self.world.backends.remove(id) else { return };
        let ports = backend.spec.ports.iter().flat_map(|map| [map.service_port(), map.target_port()]).collect();
        let service = backend.spec.service.clone();
        self.world.lingering.insert(backend.index, Lingering { service: service.clone(), ports });
        self.indices.free(backend.index);
        self.world.listening.remove(&backend.index);
        self.holders.left_out.remove(&backend.index);
        self.counted.forget(id);
        self.forget_sockets(backend.index);
        self.port_users.ask();
        self.places.forget(backend.index);
        self.places.ask_for_cleanup();
        self.ask_for_those_without_index();
        self.store.remove(id);
        self.totals.forget_backend(id);
        self.belongs_to_no_engine(id);
        info!(service = %backend.spec.service, backend = %backend.name, "gone");
        self.tell(&backend.spec.service, &backend.name, "gone", "");
        self.touch_service(&service);
        self.touch_pod(backend.network);
        self.left(backend.network);
    }

    /// A backend listened before it was managed, and its port cannot be shared.
    pub(super) fn note_unshared(&mut self, index: BackendIndex, port: Port, error: std::io::Error) {
        let Some(backend) = self.world.by_index_mut(index) else { return };
        let message = format!(
            "its socket on port {port} was bound before pod-steer knew it and cannot be shared ({error}): no other backend \
             can bind that port, and its queue is lost when it stops"
        );
        backend.set_condition(Condition::new(Reason::ListenerNotShared, message, "restart it once"));
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
