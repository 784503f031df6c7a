//! Keeps one checker for each backend that runs and has a check, and takes what they find.

use std::collections::{BTreeMap, BTreeSet};

use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::{Event, control::Control};
use crate::{
    condition::{Condition, Reason},
    health::{self, CheckKind, CheckSpec, Job, Subject, Target, Verdict},
    ids::{BackendId, SocketCookie},
    kernel::Probes,
    netns::Netns,
    process_set::ProcessSet,
    world::{Backend, Health, Kind, Phase, Socket, Sockets},
};

/// The checkers, and what they met with last.
pub(super) struct Checks {
    probes: Probes,
    by_id: BTreeMap<BackendId, Checker>,
    /// The conditions of backends that do not pass, by their ids.
    conditions: BTreeMap<BackendId, Condition>,
    /// Counts the checkers: what one says that was stopped meanwhile means nothing.
    started: u64,
}

struct Checker {
    number: u64,
    job: Job,
    /// The backend's sockets, when they were last looked at.
    sockets: BTreeSet<SocketCookie>,
    task: AbortHandle,
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checks {
    pub fn new(probes: Probes) -> Self {
        Self { probes, by_id: BTreeMap::new(), conditions: BTreeMap::new(), started: 0 }
    }

    /// A backend has ended: what was believed is not true of what may run in its place.
    pub fn ended(&mut self, backend: &mut Backend) {
        self.by_id.remove(&backend.id);
        self.conditions.remove(&backend.id);
        backend.probed = Health::Unchecked;
    }

    /// A container runs again, and its end was not told. A check of its sockets begins anew with new sockets, and may have passed already.
    pub fn runs_again(&mut self, backend: &mut Backend) {
        let checks_container = |checker: &Checker| matches!(checker.job.subject, Subject::Container { .. });
        if self.by_id.get(&backend.id).is_some_and(checks_container) {
            self.ended(backend);
        }
    }

    /// Whether there is something that a change may have to take back.
    fn knows(&self, id: &str) -> bool {
        self.by_id.contains_key(id) || self.conditions.contains_key(id)
    }

    /// The condition of a backend that does not pass.
    pub fn condition(&self, id: &str) -> Option<&Condition> {
        self.conditions.get(id)
    }
}

/// What is to be done about a backend.
enum Due {
    /// It has no check.
    Nothing,
    /// It is to be checked.
    Check(Job),
    /// It cannot be checked at the moment, and what is believed stays.
    Later,
    /// There is nothing to check yet. That may be a condition.
    Wait(Option<Condition>),
    /// It never can.
    Never(Condition),
}

impl Control {
    /// Brings the checkers to what is to be checked now. Comes before the plan: a backend that has a check gets nothing
    /// before it has passed.
    pub(super) fn follow_checks(&mut self) {
        let world = &self.world;
        self.checks.by_id.retain(|id, _| world.backends.contains_key(id));
        self.checks.conditions.retain(|id, _| world.backends.contains_key(id));
        // Most have no check, and never had.
        let concerned = |backend: &&Backend| {
            world.configured.check(&backend.spec).is_some()
                || backend.probed != Health::Unchecked
                || self.checks.knows(&backend.id)
        };
        let concerned: Vec<&Backend> = world.backends.values().filter(concerned).collect();
        if concerned.is_empty() {
            return;
        }
        let sockets = Sockets::new(&world.sockets);
        let due = concerned.into_iter().map(|backend| {
            let own: Vec<(SocketCookie, &Socket)> = sockets.of(backend.index).collect();
            (backend.id.clone(), self.due(backend, &own), own.iter().map(|(cookie, _)| *cookie).collect())
        });
        let due: Vec<(BackendId, Due, BTreeSet<SocketCookie>)> = due.collect();
        for (id, due, sockets) in due {
            let (health, condition) = match due {
                Due::Later if self.checks.by_id.contains_key(&id) => continue,
                Due::Later => match self.world.backends.get(&id).map(|backend| backend.probed) {
                    Some(Health::Healthy) => continue,
                    _ => (Health::Starting, None),
                },
                Due::Nothing => (Health::Unchecked, None),
                Due::Wait(condition) => (Health::Starting, condition),
                Due::Never(condition) => (Health::Unhealthy, Some(condition)),
                Due::Check(job) => {
                    self.check(&id, job, sockets);
                    continue;
                }
            };
            self.checks.by_id.remove(&id);
            self.believe(&id, health, condition);
        }
    }

    fn due(&self, backend: &Backend, sockets: &[(SocketCookie, &Socket)]) -> Due {
        let Some(spec) = self.world.configured.check(&backend.spec).cloned() else { return Due::Nothing };
        match backend.phase {
            Phase::Running => {}
            // The previous result is valid as long as it listens.
            Phase::Stopping => return Due::Later,
            _ => return Due::Wait(None),
        }
        if matches!(spec.kind, CheckKind::Exec { .. }) {
            return match &backend.kind {
                Kind::Container { engine } => {
                    let subject = Subject::Container { engine: engine.clone(), id: backend.id.to_string() };
                    Due::Check(Job { spec, subject })
                }
                _ => {
                    let message = "a check by exec needs a container";
                    Due::Never(Condition::new(Reason::CheckFails, message, "choose another, or none"))
                }
            };
        }
        let Some((netns, ingress)) = backend.netns.zip(backend.ingress()) else { return Due::Wait(None) };
        // A short loss of steering says nothing about its health.
        if self.world.repairing.contains(&ingress.cookie) {
            return Due::Later;
        }
        // Elsewhere the kernel would choose the socket that a probe comes to.
        if !self.world.steered.contains(&ingress.cookie) {
            return Due::Wait(None);
        }
        let Some(target) = self.target(backend, &spec, netns, sockets) else {
            return Due::Wait(not_listening(backend, &spec, sockets));
        };
        let owner = self.processes_of(backend);
        if owner == ProcessSet::default() {
            return Due::Later;
        }
        Due::Check(Job { spec, subject: Subject::Socket { target, netns, owner } })
    }

    /// The socket that probes are for.
    fn target(
        &self,
        backend: &Backend,
        spec: &CheckSpec,
        netns: Netns,
        sockets: &[(SocketCookie, &Socket)],
    ) -> Option<Target> {
        let port = spec.port(&backend.spec.ports)?;
        let probed = self.checks.by_id.get(&backend.id).and_then(|checker| match &checker.job.subject {
            Subject::Socket { target, .. } => Some(target.cookie),
            Subject::Container { .. } => None,
        });
        let fits = sockets.iter().filter(|(_, socket)| socket.port == port && socket.netns_cookie == netns.cookie);
        // The one that is probed already, as long as it listens; else one that takes IPv4.
        let (cookie, socket) =
            fits.min_by_key(|(cookie, socket)| (Some(*cookie) != probed, socket.v6only, socket.ip, *cookie))?;
        Some(Target { cookie: *cookie, netns_cookie: netns.cookie, ip: socket.ip, port })
    }

    fn check(&mut self, id: &str, job: Job, sockets: BTreeSet<SocketCookie>) {
        let checker = self.checks.by_id.get_mut(id);
        // A server with several sockets that closes one is what it was; one that has nothing but new ones is not.
        let is_new = checker.as_ref().is_some_and(|checker| match &job.subject {
            Subject::Socket { target, .. } => !checker.sockets.contains(&target.cookie),
            Subject::Container { .. } => false,
        });
        if let Some(checker) = checker.filter(|checker| checker.job == job) {
            checker.sockets = sockets;
            return;
        }
        let Some(backend) = self.world.backends.get(id) else { return };
        // When a daemon takes over, what its predecessor believed is true until it is contradicted.
        let believed = match backend.probed {
            Health::Unchecked => Health::Starting,
            _ if is_new => Health::Starting,
            believed => believed,
        };
        self.believe(id, believed, None);
        self.checks.started += 1;
        let number = self.checks.started;
        let (inputs, id, name) = (self.effects.inputs(), BackendId::from(id), BackendId::from(id));
        let tell = move |verdict| {
            let (inputs, id) = (inputs.clone(), id.clone());
            async move { drop(inputs.send(Event::Probed { id, number, verdict }).await) }
        };
        let task = tokio::spawn(health::follow(job.clone(), self.checks.probes.clone(), believed, tell)).abort_handle();
        self.checks.by_id.insert(name, Checker { number, job, sockets, task });
    }

    /// A checker has something to tell.
    pub(super) fn probed(&mut self, id: &str, number: u64, verdict: Verdict) {
        if self.checks.by_id.get(id).is_some_and(|checker| checker.number == number) {
            let Verdict { health, failure } = verdict;
            let condition = failure.map(|failure| Condition::without_remedy(Reason::CheckFails, failure));
            self.believe(id, health, condition);
        }
    }

    fn believe(&mut self, id: &str, health: Health, condition: Option<Condition>) {
        match condition {
            Some(condition) => drop(self.checks.conditions.insert(id.into(), condition)),
            None => drop(self.checks.conditions.remove(id)),
        }
        let Some(backend) = self.world.backends.get_mut(id).filter(|backend| backend.probed != health) else { return };
        let (service, name) = (backend.spec.service.clone(), backend.name.clone());
        info!(%service, backend = %name, ?health, "checked");
        backend.probed = health;
        if let Err(error) = self.store.put(backend) {
            warn!(error = %crate::chain(&error), "a restart will have to check this backend again");
        }
        self.touch_service(&service);
    }
}

/// A server that listens, and not where its check is for, waits for ever: an operator should know.
fn not_listening(backend: &Backend, spec: &CheckSpec, sockets: &[(SocketCookie, &Socket)]) -> Option<Condition> {
    let port = spec.port(&backend.spec.ports)?;
    (!sockets.is_empty()).then(|| {
        let message = format!("its health check waits for it to listen on port {port}");
        Condition::without_remedy(Reason::CheckFails, message)
    })
}
