//! Every input of the loop.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pod_steer_ebpf::Event as KernelEvent;

use crate::{
    api::Ask,
    cgroups::Seen,
    engine::{EngineInput, Undone},
    ids::{BackendId, BackendIndex, CgroupId, NetnsCookie, SocketCookie},
    ports::Port,
};

/// What has happened, or is asked.
pub enum Event {
    /// A kernel program reports a socket.
    Kernel(KernelEvent),
    /// A cgroup has appeared, or has become empty.
    Cgroup(Seen),
    /// A client of the API asks.
    Asked(Ask),
    /// It is time to compare everything.
    Resync,
    /// It is time for the comparisons that are cheap.
    QuickCheck,
    /// It is time to look at what nothing reports.
    Look,
    /// SIGHUP: the settings are to be read again.
    Hangup,
    /// From a container engine.
    Engine(EngineInput),
    /// The programs that observe versions are loaded.
    Observers(Box<super::judging::Loaded>),
    /// Sockets of a backend that had just begun to listen were looked at.
    Inspected {
        /// The backend.
        id: BackendId,
        /// What was found, by cookie; nothing of those that were not seen.
        found: BTreeMap<SocketCookie, Option<super::inspections::Inspection>>,
        /// How long the look took.
        took: Duration,
    },
    /// Sockets that listened before their backend was managed.
    Found {
        /// The backend.
        id: BackendId,
        /// Its cgroup, if it was known.
        cgroup: Option<CgroupId>,
        /// The sockets, held open until they are registered; nothing if the search failed.
        sockets: Option<Vec<crate::procs::FoundSocket>>,
    },
    /// The listeners of a namespace were enumerated.
    Listeners {
        /// Cookie of the namespace.
        netns_cookie: NetnsCookie,
        /// All of them.
        listeners: Vec<crate::listening::Listener>,
    },
    /// The accept queues of some namespaces were looked at.
    AcceptQueues(Vec<super::accept_queues::Look>),
    /// The accept queues of all namespaces were measured.
    Measured(Vec<super::measure::Seen>),
    /// Clients have waited long enough for that.
    MeasuresDue,
    /// The ports that no socket uses, by the cookie of their namespace.
    Idle(Vec<(NetnsCookie, BTreeSet<Port>)>),
    /// A process that is to be registered was looked at.
    Registering(Box<super::register::Registration>),
    /// A container that ran before it was managed was looked at.
    Surveyed(Box<super::survey::Survey>),
    /// On which ports a backend listens that does not listen where it should.
    Elsewhere {
        /// The backend.
        id: BackendId,
        /// The ports; nothing if the look failed.
        ports: Option<BTreeSet<Port>>,
    },
    /// How a container with a network namespace of its own is connected.
    Bridged {
        /// The container.
        id: BackendId,
        /// Cookie of the namespace that was looked at.
        netns_cookie: NetnsCookie,
        /// What was found; nothing if the look failed.
        found: Option<super::bridges::Found>,
    },
    /// What is believed of a backend's health has changed.
    Probed {
        /// The backend.
        id: BackendId,
        /// The number of the checker that says so.
        number: u64,
        /// What is believed.
        verdict: crate::health::Verdict,
    },
    /// Engines have had their time to answer at the start.
    EnginesLate,
    /// A process that is followed has ended.
    Ended {
        /// The backend.
        id: BackendId,
        /// The process.
        process: crate::procs::ProcessId,
    },
    /// The settings were read again; or why not.
    SettingsRead(Result<Box<crate::config::RunConfig>, String>),
    /// Which processes hold listeners was looked at.
    Held(super::holders::Answers),
    /// A process was to open the listeners that hold clients.
    HoldOpened {
        /// Its index.
        index: BackendIndex,
        /// What it has opened; or why it has not.
        opened: Box<Result<super::holds::OpenedHold, String>>,
    },
    /// A second process was to keep the listeners that hold clients.
    HoldKept {
        /// The index of the hold.
        index: BackendIndex,
        /// The process; or why there is none.
        kept: super::holds::Kept,
    },
    /// A client has come to a hold whose service sleeps.
    ClientHeld(BackendIndex),
    /// Nobody can be using the former tables of a service any more.
    Settled(String),
    /// Packets that the listeners of a backend have dropped so far.
    Dropped {
        /// The backend.
        id: BackendId,
        /// How many.
        dropped: u64,
    },
    /// The connections of registered backends were counted.
    Counted {
        /// The generation that they were counted for.
        generation: u64,
        /// By backend.
        counts: super::counted::Counts,
    },
    /// An engine was told to start a container.
    Started {
        /// The container.
        id: BackendId,
        /// Why it could not.
        started: Result<(), Undone>,
    },
    /// An engine was told to stop this container, and has not answered.
    StopUnanswered(BackendId),
    /// Idle connections of a drain were closed.
    Closed {
        /// The service.
        service: String,
        /// The number of the operation.
        operation: u64,
        /// How many.
        closed: crate::idle::Closed,
    },
    /// Connections that were open at the deadline of an operation were reset.
    Reset {
        /// The service.
        service: String,
        /// The number of the operation.
        operation: u64,
        /// How many.
        reset: super::resets::Reset,
    },
    /// The rules of the firewall were compared.
    Firewall(super::firewall::Rules),
    /// The entries of forwarded connections were gone through; or why not.
    Swept(Result<crate::kernel::Swept, String>),
    /// Rules of the firewall of the ingress namespace have changed.
    FirewallChanged,
    /// Network devices have come, gone or changed.
    DevicesChanged,
    /// The network devices by which clients may come; or why they are not known.
    Devices(Result<Vec<crate::kernel::Device>, String>),
    /// Programs were attached to network devices.
    DevicesAttached {
        /// Cookie of their namespace.
        cookie: NetnsCookie,
        /// Those that failed; or why none was attached to.
        result: super::devices::Attached,
    },
    /// Programs were detached from network devices; or which still have them, and why.
    DevicesDetached(Result<(), String>),
    /// A namespace is steered in now, or cannot be.
    Attached {
        /// Its cookie.
        cookie: NetnsCookie,
        /// Why not.
        result: Result<(), String>,
    },
}
