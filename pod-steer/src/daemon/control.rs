//! The loop that owns the world and the kernel. Every input changes the world; then the plan that follows is applied.
//! Inputs that wait are taken together, so a burst costs one plan.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use pod_steer_ebpf::{RULE_FOREIGN, RULE_HIDDEN, RULE_OF_PORT, RULE_ON_DEMAND};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{info, warn};

use super::{
    Event, RunError, Store,
    accept_queues::AcceptQueues,
    conditions::Conditions,
    counted::Counted,
    deferred::Deferred,
    devices::Devices,
    effects::Effects,
    elsewhere::Elsewhere,
    empty::Vacancies,
    firewall::Firewall,
    health::Checks,
    holders::Holders,
    inspections::Inspections,
    ledger::Ledger,
    measure::Measures,
    operations::Orders,
    pins::Pins,
    reload::Reload,
    ring::KernelEvents,
    stores::{Dirty, Engines, Indices, Looks, Namespaces, Places, Services},
    totals::Kept,
    unanswered::Unanswered,
    users::PortUsers,
};
use crate::{
    api::{Answer, Ask, types::Registered},
    cgroups::{Cgroups, Seen},
    ids::ServiceIndex,
    kernel::{Kernel, Lock, Opened, QueueMigration},
    world::{Claimed, Plan, World},
};

/// How often the kernel's state is compared with the daemon's. Sockets differ only after events were lost.
const RESYNC_EVERY: Duration = Duration::from_secs(30);
/// How often what only a look can tell is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The only holder of stores and of the kernel's state.
pub(super) struct Control {
    /// The facts that a plan follows from.
    pub(super) world: World,
    /// What is in force.
    pub(super) plan: Plan,
    pub(super) kernel: Kernel,
    pub(super) cgroups: Cgroups,
    /// What survives this daemon as long as the machine runs.
    pub(super) store: Store,
    pub(super) reload: Reload,
    pub(super) effects: Effects,
    pub(super) pins: Pins,
    pub(super) kernel_events: KernelEvents,
    pub(super) dirty: Dirty,
    pub(super) services: Services,
    pub(super) indices: Indices,
    pub(super) places: Places,
    /// Those that wait are answered when the namespace of their backend is steered in.
    pub(super) netns: Namespaces<(Registered, Answer)>,
    pub(super) engines: Engines,
    /// Told when every engine has been heard.
    pub(super) ready: Option<oneshot::Sender<()>>,
    pub(super) migration: Arc<QueueMigration>,
    pub(super) inspections: Inspections,
    pub(super) accept_queues: AcceptQueues,
    pub(super) measures: Measures,
    pub(super) totals: Kept,
    pub(super) elsewhere: Elsewhere,
    pub(super) looks: Looks,
    pub(super) devices: Devices,
    pub(super) firewall: Firewall,
    pub(super) unanswered: Unanswered,
    pub(super) checks: Checks,
    pub(super) holders: Holders,
    pub(super) port_users: PortUsers,
    /// Conditions of the daemon as a whole.
    pub(super) conditions: Conditions,
    pub(super) orders: Orders,
    pub(super) counted: Counted,
    /// Waits for the next reconcile.
    pub(super) deferred: VecDeque<Deferred>,
    /// Clients that are answered in this turn.
    pub(super) asks: VecDeque<Ask>,
    /// Nothing of pod-steer is left in the kernel: the daemon ends.
    pub(super) is_unloaded: bool,
}

impl Control {
    /// Takes what an earlier daemon has left in the kernel and in the store.
    pub fn new(
        reload: Reload,
        opened: Opened,
        store: Store,
        cgroups: Cgroups,
        effects: Effects,
        lock: Lock,
    ) -> Result<Self, RunError> {
        let config = reload.config().clone();
        let kernel = opened.kernel;
        let kernel_events = KernelEvents::new(opened.events, opened.logs, kernel.counters().events_lost());
        let services = store.services();
        let mut totals = Kept::read(&store, opened.adopted);
        totals.retain_services(|name| services.contains_key(name));
        let by_index: HashMap<ServiceIndex, &String> = services.iter().map(|(name, index)| (*index, name)).collect();
        let left = kernel.rules().filter(|(_, rule)| rule.flags & RULE_FOREIGN != 0);
        let left = left.map(|(key, _)| (key, None)).collect();
        let claimed = kernel.rules().filter_map(|(key, rule)| {
            let service = (*by_index.get(&ServiceIndex(rule.service))?).clone();
            let is_claim = rule.flags & (RULE_FOREIGN | RULE_HIDDEN | RULE_ON_DEMAND) == 0;
            let of_port = rule.flags & RULE_OF_PORT != 0;
            is_claim.then_some((key, Claimed { service, of_port, listeners: None }))
        });
        let claimed = claimed.collect();
        let mut world = World::new(config.ports.clone(), config.services.clone());
        (world.claimed, world.left) = (claimed, left);
        world.steered = kernel.namespaces().into_iter().collect();
        world.peer_refused = crate::kernel::peer_refused();
        world.forwarding = kernel.forwarding().into_iter().collect();
        let firewall = Firewall::new(kernel.has_forwarded());
        let devices = Devices::new(world.forwarding.is_empty() && kernel.has_device_programs());
        Ok(Self {
            world,
            plan: Plan::default(),
            migration: Arc::new(kernel.queue_migration()?),
            checks: Checks::new(kernel.probes()?),
            kernel,
            cgroups,
            store,
            reload,
            pins: Pins { dir: config.bpffs.clone(), lock: Some(lock), checked_last: Default::default() },
            kernel_events: kernel_events.map_err(RunError::io("wait for events of the kernel programs"))?,
            dirty: Dirty::default(),
            services: Services::new(services),
            indices: Indices::default(),
            places: Places::default(),
            netns: Namespaces::default(),
            engines: Engines::new(config.engines.clone()),
            ready: None,
            inspections: Inspections::default(),
            accept_queues: AcceptQueues::default(),
            measures: Measures::default(),
            totals,
            elsewhere: Elsewhere::default(),
            looks: Looks::default(),
            devices,
            firewall,
            unanswered: Unanswered::default(),
            holders: Holders::default(),
            port_users: PortUsers::default(),
            conditions: Conditions::new(effects.followers()),
            effects,
            orders: Orders::new(Ledger::open(&config.state_dir), Vacancies::new(!opened.adopted)),
            counted: Counted::default(),
            deferred: VecDeque::new(),
            asks: VecDeque::new(),
            is_unloaded: false,
        })
    }

    /// Follows inputs until a signal or an order ends it.
    pub async fn run(
        mut self,
        mut queue: mpsc::Receiver<Event>,
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
        // What was adopted takes effect before anything else is heard.
        self.turn();
        loop {
            let (due_in, looks_due) = (self.due_in(), self.has_to_look() || self.holders.watching);
            tokio::select! {
                // Events of the kernel programs come first: a socket that listens waits for nothing else.
                biased;
                events = self.kernel_events.next() => {
                    let events = events.map_err(RunError::io("read events of the kernel programs"))?;
                    events.into_iter().for_each(|event| self.apply(Event::Kernel(event)));
                }
                Some(event) = queue.recv() => {
                    let mut next = Some(event);
                    while let Some(event) = next {
                        self.apply(event);
                        next = queue.try_recv().ok();
                    }
                }
                Some(ask) = asked.recv() => self.apply(Event::Asked(ask)),
                seen = self.cgroups.seen() => self.cgroups_seen(seen),
                // Clean up only when no input is pending.
                () = yield_now(), if self.places.is_cleanup_due() => self.drop_leftovers(),
                _ = tick.tick() => self.apply(Event::Resync),
                _ = checks.tick() => self.apply(Event::QuickCheck),
                _ = looks.tick(), if looks_due => self.apply(Event::Look),
                () = sleep(due_in) => {}
                _ = hangups.recv() => self.apply(Event::Hangup),
                _ = term.recv() => break,
                _ = int.recv() => break,
            }
            // Whichever input came first: while others keep coming, clients are answered.
            while let Ok(ask) = asked.try_recv() {
                self.apply(Event::Asked(ask));
            }
            // A container binds some 50 ms after its cgroup appears: that cannot wait for a turn, while other inputs keep coming.
            let seen = self.cgroups.seen_now();
            self.cgroups_seen(seen);
            self.turn();
            if self.is_unloaded {
                return Ok(());
            }
        }
        info!("told to stop; what is pinned goes on steering, and `pod-steer unload` would end that");
        Ok(())
    }

    /// Takes an event: facts and stores change, and what has to be planned anew is marked. The turn that follows does the rest.
    fn apply(&mut self, event: Event) {
        match event {
            Event::Kernel(event) => self.kernel_event(&event),
            Event::Cgroup(seen) => self.cgroup_seen(seen),
            Event::Asked(ask) => self.asked(ask),
            Event::Resync => self.resync(),
            Event::QuickCheck => self.quick_check(),
            Event::Look => {
                self.look_at_queues();
                self.look_elsewhere();
                self.keep_pause();
                self.watch_holders();
            }
            Event::Hangup => self.reload(),
            Event::Engine(input) => self.engine_input(input),
            Event::Inspected { id, found, took } => self.inspected(&id, found, took),
            Event::Found { id, cgroup, sockets } => self.found(&id, cgroup, sockets),
            Event::AcceptQueues(found) => self.accept_queues_seen(found),
            Event::Listeners { netns_cookie, listeners } => self.surveyed(netns_cookie, listeners),
            Event::Measured(seen) => self.queues_measured(seen),
            Event::MeasuresDue => self.answer_measures(),
            Event::Idle(ports) => self.free_unless_shared(ports),
            Event::Surveyed(survey) => self.container_surveyed(*survey),
            Event::Elsewhere { id, ports } => self.found_elsewhere(&id, ports),
            Event::Bridged { id, netns_cookie, found } => self.bridged(&id, netns_cookie, found),
            Event::Probed { id, number, verdict } => self.probed(&id, number, verdict),
            Event::Ended { id, process } => self.process_ended(&id, process),
            Event::SettingsRead(read) => self.settings_read(read),
            Event::Held(answers) => self.held(answers),
            Event::HoldOpened { index, opened } => self.hold_opened(index, *opened),
            Event::HoldKept { index, kept } => self.hold_kept(index, kept),
            Event::ClientHeld(index) => self.client_held(index),
            // An engine whose snapshot came before counts as heard: its containers are being located.
            Event::EnginesLate => self.deferred.push_back(Deferred::EnginesLate),
            Event::Settled(service) => self.settled(&service),
            Event::Dropped { id, dropped } => self.dropped(&id, dropped),
            Event::Attached { cookie, result } => self.attached(cookie, result),
            Event::FirewallChanged => self.firewall_changed(),
            Event::Firewall(rules) => self.firewall_compared(&rules),
            Event::Swept(result) => self.swept(result),
            Event::DevicesChanged => self.look_at_devices(false),
            Event::Devices(found) => self.devices_found(found),
            Event::DevicesAttached { cookie, result } => self.devices_attached(cookie, result),
            Event::DevicesDetached(result) => self.devices_detached(result),
            Event::Counted { generation, counts } => self.count_is_there(generation, counts),
            Event::Started { id, started } => self.was_started(&id, started),
            Event::StopUnanswered(id) => drop(self.orders.unstopped.insert(id)),
            Event::Closed { service, operation, closed } => self.were_closed(&service, operation, closed),
            Event::Reset { service, operation, reset } => self.was_reset(service, operation, reset),
            Event::Observers(loaded) => self.observers_loaded(*loaded),
            Event::Registering(registration) => self.registering(*registration),
        }
    }

    fn cgroups_seen(&mut self, seen: std::io::Result<Vec<Seen>>) {
        match seen {
            Ok(seen) => seen.into_iter().for_each(|seen| self.apply(Event::Cgroup(seen))),
            Err(error) => warn!(%error, "cannot read what happens to cgroups"),
        }
    }

    pub(super) fn cgroup_seen(&mut self, seen: Seen) {
        match seen {
            Seen::Container { id, path } => self.deferred.push_back(Deferred::Attach { id: id.into(), path }),
            Seen::Empty(path) => self.cgroup_empty(&path),
            Seen::Unannounced { id } => self.effects.describe(id),
        }
    }
}
