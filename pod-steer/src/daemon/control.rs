//! The loop that owns the world and the kernel. Every input changes the world; then the plan that follows is applied.
//! Inputs that wait are taken together, so a burst costs one plan.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use pod_steer_ebpf::{OwnListener, PortKey, RULE_FOREIGN, RULE_HIDDEN, RULE_OF_PORT, RULE_ON_DEMAND};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
    sync::{broadcast, mpsc, oneshot},
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{info, warn};

use super::{
    Input, RunError, Store,
    accept_queues::AcceptQueues,
    conditions::Conditions,
    counted::Counted,
    elsewhere::Elsewhere,
    empty::Vacancies,
    health::Checks,
    holders::Holders,
    inspections::Inspections,
    ledger::Ledger,
    operations::Orders,
    owners::Engines,
    pace::Pace,
    reload::Reload,
    report::Told,
    ring::{drain, flush},
    users::PortWalk,
};
use crate::{
    api::{
        Answer, Ask,
        types::{EventRecord, Registered},
    },
    cgroups::{Cgroups, Seen},
    clock::boot_ms,
    kernel::{Applied, Kernel, Lock, Opened, QueueMigration},
    netns::Netns,
    sys,
    world::{Changed, Claimed, Plan, World},
};

/// How often the kernel's state is compared with the daemon's. Sockets differ only after events were lost.
const RESYNC_EVERY: Duration = Duration::from_secs(30);
/// How often what only a look can tell is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Least time until a change that the kernel refused is tried again.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// That time is at least so many times what the last attempt took.
const RETRY_SHARE: u32 = 9;

/// Topic of a condition: the kernel refused a part of the plan.
const REFUSED: &str = "refused";

pub(super) struct Control {
    pub(super) world: World,
    pub(super) kernel: Kernel,
    pub(super) cgroups: Cgroups,
    pub(super) store: Store,
    pub(super) reload: Reload,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) services: BTreeMap<String, u32>,
    /// Namespaces that were seen and may have to be attached; a descriptor is let go as soon as that is done.
    pub(super) seen_namespaces: HashMap<u64, (Netns, Option<File>)>,
    /// Namespaces that are being attached, and who waits for it.
    pub(super) attaching: HashMap<u64, Vec<(Registered, Answer)>>,
    /// The cgroup that each backend has now, by its index: a container that is restarted gets another.
    pub(super) cgroup_ids: HashMap<u32, u64>,
    /// Cgroups of `exec` without processes, which stay until the last connection that moved away from them has ended:
    /// the kernel runs no program for a cgroup that is removed.
    pub(super) over: Vec<PathBuf>,
    /// There may be cgroups to be left.
    pub(super) leftovers: bool,
    /// By index: connections that came from another backend and whose end nobody will see.
    pub(super) written_off: HashMap<u32, u64>,
    /// Containers that found no free index; they are described again when a backend has gone.
    pub(super) without_index: BTreeSet<String>,
    /// Indices of backends that have ended, until they are given out again.
    pub(super) freed_indices: BTreeSet<u32>,
    /// Where the cgroup of each backend is, by its index.
    pub(super) paths: HashMap<u32, PathBuf>,
    pub(super) plan: Plan,
    pub(super) migration: Arc<QueueMigration>,
    pub(super) inspections: Inspections,
    pub(super) accept_queues: AcceptQueues,
    pub(super) elsewhere: Elsewhere,
    /// Listeners that have closed since the last plan: what they were known by, and the cookie of each.
    pub(super) own_closed: BTreeSet<(OwnListener, u64)>,
    pub(super) checks: Checks,
    pub(super) holders: Holders,
    pub(super) port_walk: PortWalk,
    /// Ports of a user on which nobody listened at the last comparison.
    pub(super) unused_ports: BTreeSet<PortKey>,
    /// Engines that cannot be reached, and why.
    pub(super) lost_engines: BTreeMap<String, String>,
    /// Conditions of the daemon as a whole.
    pub(super) conditions: Conditions,
    /// Of the directory of pins.
    pub(super) lock: Option<Lock>,
    /// Index of the last backend whose links were looked at.
    pub(super) checked_last: u32,
    pub(super) bpffs: PathBuf,
    /// Engines whose word is awaited before anything is changed: there is steering, and no file says whose it is.
    pub(super) awaited: BTreeSet<String>,
    pub(super) engines: Engines,
    /// To the engines: ids of containers that are to be described.
    pub(super) wanted: broadcast::Sender<String>,
    /// Engines that have not said anything yet; when all have, `ready` is told.
    pub(super) unheard: BTreeSet<String>,
    pub(super) ready: Option<oneshot::Sender<()>>,
    pub(super) events: broadcast::Sender<EventRecord>,
    pub(super) ring: AsyncFd<RingBuf<MapData>>,
    logs: Option<AsyncFd<aya_log::EbpfLogger<&'static dyn log::Log>>>,
    pub(super) events_lost: u64,
    /// What has changed since the last plan.
    pub(super) changed: Changed,
    pub(super) pace: Pace,
    /// When a change that the kernel refused is tried again.
    retry_at: Option<Instant>,
    /// A rule that is in force may not be as planned.
    is_stale: bool,
    pub(super) orders: Orders,
    pub(super) counted: Counted,
}

impl Control {
    pub fn new(
        reload: Reload,
        opened: Opened,
        store: Store,
        cgroups: Cgroups,
        inputs: mpsc::Sender<Input>,
        events: broadcast::Sender<EventRecord>,
        wanted: broadcast::Sender<String>,
    ) -> Result<Self, RunError> {
        let config = reload.config().clone();
        let readable = |e| RunError::io("wait for events of the kernel programs")(e);
        let migration = Arc::new(opened.kernel.queue_migration()?);
        let checks = Checks::new(opened.kernel.probes()?);
        let events_lost = opened.kernel.events_lost();
        let services = store.services();
        let by_index: HashMap<u32, &String> = services.iter().map(|(name, index)| (*index, name)).collect();
        let left = opened.kernel.rules().filter(|(_, rule)| rule.flags & RULE_FOREIGN != 0);
        let left = left.map(|(key, _)| (key, None)).collect();
        let claimed = opened.kernel.rules().filter_map(|(key, rule)| {
            let service = (*by_index.get(&rule.service)?).clone();
            let is_claim = rule.flags & (RULE_FOREIGN | RULE_HIDDEN | RULE_ON_DEMAND) == 0;
            let of_port = rule.flags & RULE_OF_PORT != 0;
            is_claim.then_some((key, Claimed { service, of_port, listeners: None }))
        });
        let claimed = claimed.collect();
        let mut world = World::new(config.ports.clone(), config.services.clone());
        (world.claimed, world.left) = (claimed, left);
        world.steered = opened.kernel.namespaces().into_iter().collect();
        Ok(Self {
            world,
            services,
            kernel: opened.kernel,
            cgroups,
            store,
            reload,
            inputs,
            seen_namespaces: HashMap::new(),
            attaching: HashMap::new(),
            over: Vec::new(),
            leftovers: false,
            written_off: HashMap::new(),
            without_index: BTreeSet::new(),
            freed_indices: BTreeSet::new(),
            cgroup_ids: HashMap::new(),
            paths: HashMap::new(),
            plan: Plan::default(),
            migration,
            inspections: Inspections::default(),
            accept_queues: AcceptQueues::default(),
            elsewhere: Elsewhere::default(),
            own_closed: BTreeSet::new(),
            checks,
            holders: Holders::default(),
            port_walk: PortWalk::default(),
            unused_ports: BTreeSet::new(),
            lost_engines: BTreeMap::new(),
            conditions: Conditions::new(events.clone()),
            lock: None,
            checked_last: 0,
            bpffs: config.bpffs.clone(),
            awaited: BTreeSet::new(),
            engines: Engines::new(config.engines.clone()),
            wanted,
            unheard: config.engines.iter().cloned().collect(),
            ready: None,
            events,
            ring: sys::readable(opened.events).map_err(readable)?,
            logs: match opened.logs {
                Some(logs) => Some(sys::readable(logs).map_err(readable)?),
                None => None,
            },
            events_lost,
            changed: Changed::default(),
            pace: Pace::default(),
            retry_at: None,
            is_stale: false,
            orders: Orders::new(Ledger::open(&config.state_dir), Vacancies::new(!opened.adopted)),
            counted: Counted::default(),
        })
    }

    /// Follows inputs until a signal or an order ends it.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Input>,
        mut asked: mpsc::Receiver<Ask>,
        mut hangups: Signal,
    ) -> Result<(), RunError> {
        let handler = |kind| signal(kind).map_err(RunError::io("catch a signal"));
        let (mut term, mut int) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut checks = interval(LOOK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = interval(RESYNC_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (due_in, looking) = (self.due_in(), self.has_to_look());
            tokio::select! {
                // What the kernel says first: a socket that listens waits for nobody.
                biased;
                ready = self.ring.readable_mut() => {
                    let events = drain(ready.map_err(RunError::io("read events of the kernel programs"))?);
                    for event in events {
                        self.kernel_event(&event);
                    }
                }
                Some(input) = queue.recv() => {
                    let mut next = Some(input);
                    while let Some(input) = next {
                        self.input(input);
                        next = queue.try_recv().ok();
                    }
                }
                Some(ask) = asked.recv() => if self.answer_ask(ask) {
                    return Ok(());
                },
                seen = self.cgroups.seen() => match seen {
                    Ok(seen) => seen.into_iter().for_each(|seen| self.cgroup_seen(seen)),
                    Err(error) => warn!(%error, "cannot read what happens to cgroups"),
                },
                () = flush(&mut self.logs) => {}
                // What is over can wait until nobody does: before it is looked at, what has just arrived is.
                () = yield_now(), if self.leftovers => self.drop_leftovers(),
                _ = tick.tick() => self.resync(),
                _ = checks.tick() => self.quick_check(),
                _ = looks.tick(), if looking || self.holders.watching => {
                    self.look_at_queues();
                    self.look_elsewhere();
                    self.keep_pause();
                    self.watch_holders();
                }
                () = sleep(due_in) => {}
                _ = hangups.recv() => self.reload(),
                _ = term.recv() => break,
                _ = int.recv() => break,
            }
            // Whatever came first: a client does not wait until nothing else comes.
            while let Ok(ask) = asked.try_recv() {
                if self.answer_ask(ask) {
                    return Ok(());
                }
            }
            // Each turn: while inputs keep coming, the sleep above never ends.
            self.touch_if_due();
            self.converge();
            self.inspect_due();
            self.look_for_holders();
            self.free_due_ports();
            self.step_operations();
            self.kernel.end_turn();
        }
        info!("told to stop; what is pinned goes on steering, and `pod-steer unload` would end that");
        Ok(())
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Engine(input) => self.engine_input(input),
            Input::Inspected { id, found, took } => self.inspected(&id, found, took),
            Input::Found { id, sockets } => self.found(&id, sockets),
            Input::AcceptQueues(found) => self.accept_queues_seen(found),
            Input::Listeners { netns_cookie, listeners } => self.surveyed(netns_cookie, listeners),
            Input::Idle(ports) => self.free_unless_shared(ports),
            Input::Surveyed(survey) => self.container_surveyed(*survey),
            Input::Elsewhere { id, ports } => self.found_elsewhere(&id, ports),
            Input::Probed { id, number, verdict } => self.probed(&id, number, verdict),
            Input::Ended { id, process } => self.process_ended(&id, process),
            Input::SettingsRead(read) => self.settings_read(read),
            Input::Held(answers) => self.held(answers),
            Input::EnginesLate => self.start_without_engines(),
            Input::Settled(service) => self.settled(&service),
            Input::Dropped { id, dropped } => self.dropped(&id, dropped),
            Input::Attached { cookie, result } => self.attached(cookie, result),
            Input::Counted { generation, counts } => self.count_is_there(generation, counts),
            Input::Registering(registration) => self.registering(*registration),
        }
    }

    pub(super) fn cgroup_seen(&mut self, seen: Seen) {
        match seen {
            Seen::Container { id, path } => self.container_cgroup(&id, &path),
            Seen::Empty(path) => self.cgroup_empty(&path),
            // Whichever engine has it answers like to an event; the others do not know it.
            Seen::Unannounced { id } => drop(self.wanted.send(id)),
        }
    }

    /// Whether the kernel follows the decision of a service that was planned last.
    pub(super) fn is_in_force(&self, service: &str) -> bool {
        let planned = self.plan.decisions.get(service).zip(self.services.get(service));
        self.awaited.is_empty() && planned.is_none_or(|(decision, index)| self.kernel.follows(*index, *decision))
    }

    /// Whether something that is in force may not be as planned.
    pub(super) fn is_stale(&self) -> bool {
        !self.changed.is_nothing() || self.is_stale || self.pace.due().is_some()
    }

    /// Brings the kernel to what follows from the world.
    pub(super) fn converge(&mut self) {
        let retries = self.retry_at.is_some_and(|at| at <= Instant::now());
        if !self.awaited.is_empty() || !retries && self.changed.is_nothing() {
            return;
        }
        let begun = Instant::now();
        self.world.now_ms = boot_ms();
        self.renew_own_listeners();
        self.follow_checks();
        let (changed, mut plan) = (std::mem::take(&mut self.changed), std::mem::take(&mut self.plan));
        let told = Told::of(&plan);
        self.world.replan(&changed, &mut plan);
        self.name_services(&plan);
        self.attach_namespaces(&plan);
        let owners = || {
            let backends = self.world.backends.values();
            backends.filter_map(|backend| Some((backend.index, *self.services.get(&backend.spec.service)?))).collect()
        };
        let Applied { settled, error, is_behind, is_stale, refused } = self.kernel.apply(&plan, &self.services, owners);
        self.world.refuse(&mut plan, &refused);
        // The tables are in effect already; only operations wait for the grace periods.
        self.orders.settled = settled;
        // With thousands of rules an attempt takes long, and clients of the API must be answered meanwhile.
        self.retry_at = is_behind.then(|| Instant::now() + RETRY_MIN.max(begun.elapsed() * RETRY_SHARE));
        self.is_stale = is_stale;
        match error {
            Some(error) => {
                let message = format!("it refused a change, which is tried again: {}", crate::chain(&error));
                self.conditions.set(REFUSED, "the kernel", message);
            }
            None => self.conditions.clear(REFUSED, "the kernel"),
        }
        self.leave_namespaces(&plan);
        self.store_ready_times();
        self.report(&plan, &told);
        self.plan = plan;
        self.note_silent();
        self.pace.planned(&changed, begun.elapsed(), Instant::now());
        self.leave_pause();
    }
}
