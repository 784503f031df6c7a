//! `pod-steer run`: puts the parts together and follows what happens. `control` is the one loop that owns the world and
//! the kernel; everything else sends it messages.

mod accept_queues;
mod adopt;
mod ages;
mod allowed_images;
mod allowed_users;
mod asks;
mod backends;
mod bridges;
mod changed;
mod closings;
mod conditions;
mod control;
mod counted;
mod deferred;
pub(crate) mod descriptions;
mod devices;
mod effects;
mod elsewhere;
mod empty;
mod ended;
mod engines;
mod event;
mod exec_cgroups;
mod firewall;
mod health;
mod hold_process;
mod holders;
mod holds;
mod image_labels;
mod inspections;
mod judging;
mod ledger;
mod left_out;
mod leftovers;
mod measure;
mod namespaces;
mod operations;
mod owners;
mod pace;
mod pause;
mod pins;
mod places;
mod policies;
pub(crate) mod processes;
mod reach;
mod reconciler;
mod recorded;
mod register;
mod reload;
mod report;
mod resets;
mod resync;
pub(crate) mod ring;
mod runtime;
mod sandboxes;
mod services;
mod sleep;
mod socket_file;
mod socket_looks;
mod sockets;
mod starting;
mod status;
mod steps;
mod stopping;
mod store;
mod stores;
mod survey;
mod totals;
mod unanswered;
mod users;
mod views;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{info, warn};

pub use counted::Counts;
pub use event::Event;
pub use exec_cgroups::undo;
pub use hold_process::{Source as HoldSource, hold_clients};
pub(crate) use holds::words as hold_words;
pub use ledger::{Change, Ledger, LedgerError, PlannedStop};
pub use pause::hold;
pub use processes::detach_registered;
pub use reload::{Reload, SetLogLevel};
pub use runtime::runtime;
pub use sleep::asleep;
pub use store::Store;

use effects::Effects;

use crate::{
    api::{self, metrics::Port},
    bpffs, caps, cgroups,
    condition::Reason,
    config::RunConfig,
    confine, doctor, engine,
    kernel::{Kernel, Lock, LockError, Opened},
    sys,
};

/// Messages that may wait for the loop before senders wait too.
const INPUTS_MAX: usize = 4096;
/// Events that a slow follower may lag behind before it misses some.
const EVENTS_MAX: usize = 4096;

/// Our scheduling priority, as in nice(1).
const NICE: i32 = -10;
/// How long clients wait at the start for engines to say what is there.
const ENGINES_MAX: Duration = Duration::from_secs(5);
/// How long the last answers may take when the daemon ends.
const ANSWERS_MAX: Duration = Duration::from_millis(500);

/// What keeps the daemon from running.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine lacks something.
    #[error("{0}")]
    Unfit(String),
    /// Another daemon runs.
    #[error("another pod-steer runs with `{}`; end it first, or choose another `--runtime-dir` and `--bpffs`", .0.display())]
    Running(PathBuf),
    /// Another process has the directory of pins.
    #[error("{0}; end it first, or choose another `--bpffs`")]
    Locked(#[from] LockError),
    /// The steering state.
    #[error(transparent)]
    Kernel(#[from] crate::kernel::KernelError),
    /// The files of the runtime directory.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The filter of system calls.
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    /// The port for metrics.
    #[error(
        "metrics cannot be served on {address}; choose another port by `--metrics`, or find out which program has this one: ss -ltnp"
    )]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part of the system.
    #[error("{what}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Runs until it is told to stop. What is pinned stays: traffic goes on without us.
pub async fn run(reload: Reload) -> Result<(), RunError> {
    // Until then it would end the daemon.
    let hangups = signal(SignalKind::hangup()).map_err(RunError::io("catch a signal"))?;
    let config = reload.config().clone();
    if let Some(unfit) = doctor::required(&config.bpffs).into_iter().find(|finding| !finding.ok) {
        return Err(RunError::Unfit(unfit.to_string()));
    }
    let store = Store::open(&config.runtime_dir)?;
    let Some(_lock) = store.lock()? else { return Err(RunError::Running(config.runtime_dir.clone())) };
    // Before anything is changed, and before the capability for a port below 1024 is dropped.
    let metrics = config.metrics.map(|address| open_metrics(address, &config.bpffs)).transpose()?;
    // Before anything is touched: the socket, the cgroups and the state may be another daemon's.
    bpffs::make(&config.bpffs).map_err(|e| RunError::Unfit(e.to_string()))?;
    let lock = Lock::take(&config.bpffs)?;

    let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(RunError::io("read /proc/self/mountinfo"))?;
    let mount = cgroups::mount_point(&mountinfo)
        .ok_or_else(|| RunError::Unfit("no cgroup v2 is mounted; mount it: mount -t cgroup2 none DIR".to_owned()))?;
    // The root of the hierarchy has no write permission; CAP_DAC_OVERRIDE, which is dropped below, gets past that.
    let base = exec_cgroups::base_cgroup(&mount, &config.bpffs);
    fs::create_dir_all(&base).map_err(RunError::io(format!(
        "cannot make the cgroup `{}`; grant CAP_DAC_OVERRIDE, or make it before: mkdir -p {0}",
        base.display()
    )))?;
    let cgroups = cgroups::Cgroups::new(mount);
    let socket = config.socket.clone();
    let listener = bind(&config).map_err(RunError::io(format!("listen on `{}`", socket.display())))?;
    // A container's first bind comes some 50 ms after its cgroup, also on a machine that is busy.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        warn!(%error, "cannot raise our priority; on a busy machine a container may bind before it is managed");
    }
    // As many open files as we may have: tables that change together, and a backend's sockets, are many for a moment.
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
        warn!(%error, "cannot raise the limit on open files");
    }
    // Before any other thread is there, and before anybody is listened to.
    caps::drop_unneeded().map_err(RunError::io("drop the capabilities that are not needed"))?;
    confine::restrict_daemon()?;
    runtime::first_thread().await.map_err(RunError::io("make a thread"))?;
    sys::shrink_memory();
    let opened = Kernel::open(&config.bpffs, config.backends_max, config.log_decisions)
        .inspect_err(|_| drop(fs::remove_file(&socket)))?;
    let (adopted, recovered) = (opened.adopted, opened.recovered.clone());
    log_upgrade(&opened);

    store.keep_notes(opened.kernel.notes()?);
    let (inputs, queue) = mpsc::channel(INPUTS_MAX);
    let (events, _) = tokio::sync::broadcast::channel(EVENTS_MAX);
    let (wanted, _) = tokio::sync::broadcast::channel(INPUTS_MAX);
    let effects = Effects::new(inputs.clone(), events.clone(), wanted.clone());
    let mut control = control::Control::new(reload, opened, store, cgroups, effects, lock)?;
    for name in &recovered {
        let message =
            format!("the pin of the map `{name}` was gone; the programs had it still, and it is pinned again");
        control.conditions.repaired(Reason::NotPinned, &conditions::Subject::Other("pins".to_owned()), &message);
    }
    control.adopt();
    control.watch_devices();
    control.watch_firewall();
    let (ready, heard) = oneshot::channel();
    control.ready = Some(ready);

    let late = inputs.clone();
    tokio::spawn(async move {
        sleep(ENGINES_MAX).await;
        let _ = late.send(Event::EnginesLate).await;
    });
    for engine in config.engines.clone() {
        let (sender, mut received) = mpsc::channel(INPUTS_MAX);
        tokio::spawn(engine::follow(engine, control.reload.trust_image_labels(), sender, wanted.subscribe()));
        let inputs = inputs.clone();
        tokio::spawn(async move {
            while let Some(input) = received.recv().await {
                if inputs.send(Event::Engine(input)).await.is_err() {
                    return;
                }
            }
        });
    }
    let (end_api, ended) = oneshot::channel();
    let (asks, asked) = mpsc::channel(INPUTS_MAX);
    let shared = api::Shared::new(asks, events, config.access);
    let engines = config.engines.len();
    let api = tokio::spawn(async move {
        // The API answers only after the initial sync.
        if engines > 0 {
            let _ = heard.await;
        }
        tell_ready();
        api::serve(listener, metrics, shared, ended).await;
    });
    info!(
        socket = %socket.display(), bpffs = %config.bpffs.display(), engines = config.engines.len(), adopted,
        "pod-steer {} steers", env!("CARGO_PKG_VERSION")
    );
    let result = control.run(queue, asked, hangups).await;
    let _ = fs::remove_file(&socket);
    // The client that asked last still gets its answer; one that only follows events does not delay the end.
    let _ = end_api.send(());
    let _ = timeout(ANSWERS_MAX, api).await;
    result
}

/// Opens the port for metrics. A user who took it while the daemon was restarted must not keep steering without one: then it is opened later.
fn open_metrics(address: SocketAddr, bpffs: &Path) -> Result<Port, RunError> {
    match Port::open(address) {
        Err(error) if bpffs.join("maps").exists() => {
            warn!(%address, %error, "metrics are not served before this address is free; find out who has it: ss -ltnp");
            Ok(Port::later(address))
        }
        opened => opened.map_err(|source| RunError::Metrics { address, source }),
    }
}

/// Logs what an earlier release has left and was replaced.
fn log_upgrade(opened: &Opened) {
    if let Some(migrated) = &opened.migrated {
        let maps: Vec<&str> = migrated.maps.iter().copied().collect();
        info!(
            from = migrated.from,
            to = migrated.to,
            maps = maps.join(", "),
            took = ?migrated.took,
            "the kernel state was brought to another layout"
        );
    }
    let migrated = opened.migrated.iter().map(|migrated| &migrated.replaced);
    for replaced in migrated.chain([&opened.replaced]).filter(|replaced| !replaced.links.is_empty()) {
        let from: Vec<&str> = replaced.from.iter().map(String::as_str).collect();
        info!(
            links = %replaced,
            from = from.join(", "),
            to = replaced.to,
            took = ?replaced.took,
            "attached programs of another build were replaced"
        );
    }
}

/// Tells systemd, if it started us, that what was there is known and steered.
fn tell_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!(%error, "systemd could not be told that we are ready");
    }
}

/// Makes the API's socket, which only root and the configured groups may connect to: the kernel refuses every other user
/// before the daemon hears of it. What is left of a dead daemon's is replaced.
fn bind(config: &RunConfig) -> io::Result<UnixListener> {
    match fs::remove_file(&config.socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&config.socket)?;
    let groups = [config.access.operators, config.access.viewers];
    socket_file::open_to_groups(&config.socket, groups.into_iter().flatten())
        .inspect_err(|_| drop(fs::remove_file(&config.socket)))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
