//! `pod-steer unload`

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use super::{Failure, Outcome, args::UnloadArgs, block_on, terminal::note};
use crate::{
    api::{
        client::{self, ClientError},
        types::UnloadedBody,
    },
    bpffs, cgroups,
    config::{GivenPaths, Paths},
    daemon::{self, Ledger, Store},
    firewall,
    ids::BackendId,
    kernel::{Lock, LockError},
    world::Backend,
};

/// Time limit for a daemon to exit after it has unloaded.
const END_MAX: Duration = Duration::from_secs(5);

/// Asks a running daemon to unload and exit. Without a daemon, this process unloads.
pub(super) fn unload(args: UnloadArgs) -> Outcome {
    let UnloadArgs { config, socket, bpffs, runtime_dir, state_dir } = args;
    let given = GivenPaths { runtime_dir, state_dir, bpffs, socket };
    let paths = Paths::resolve(config.as_deref(), given).map_err(|e| Failure::Input(crate::chain(&e)))?;
    let socket = &paths.socket;
    // Everything in this directory is removed, so check first that it is a directory of pins.
    if paths.bpffs.exists() {
        bpffs::check(&paths.bpffs).map_err(|e| Failure::Input(e.to_string()))?;
    }
    // The programs of devices may be detached already, and rules of the firewall be there still.
    let forwards = paths.bpffs.join("forward").read_dir().is_ok_and(|mut pins| pins.next().is_some());
    let asked = block_on(async { Ok(client::post::<UnloadedBody>(socket, "/v1/unload", &()).await) })?;
    let asked = match asked {
        Ok(done) => Some(done),
        Err(ClientError::NoDaemon { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let _lock = match lock(&paths.bpffs, asked.is_some()) {
        Ok(lock) => lock,
        Err(error @ LockError::Held { .. }) => {
            let socket = socket.display();
            return Err(anyhow::anyhow!(
                "{error}; its API does not answer at `{socket}`, so nothing was removed. Give the API socket with `--socket`, or stop the daemon first"
            )
            .into());
        }
        Err(error) => return Err(anyhow::Error::from(error).into()),
    };
    if asked.is_none() {
        // A killed daemon leaves its socket behind.
        let _ = std::fs::remove_file(socket);
    }
    // Without a daemon, everything is removed here. Otherwise the rest is: a daemon lacks the capability to remove some of it.
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = cgroups::mount_point(&mountinfo)
        .ok_or_else(|| anyhow::anyhow!("cgroup v2 is not mounted; mount it: mount -t cgroup2 none DIR"))?;
    let store = paths.runtime_dir.join("backends").exists().then(|| Store::open(&paths.runtime_dir)).transpose()?;
    let backends = store.as_ref().map(Store::backends).unwrap_or_default();
    daemon::detach_registered(backends.values());
    let rest = daemon::undo(&paths.bpffs, &mount);
    if forwards {
        firewall::remove();
    }
    let rest = rest
        .map_err(|error| anyhow::anyhow!("not everything could be removed; run `pod-steer unload` again ({error})"))?;
    if let Some(store) = store {
        store.remove_all();
    }
    let done = asked.unwrap_or_else(|| UnloadedBody { asleep: asleep(&paths.state_dir, &backends), ..rest.into() });
    Ledger::remove_all(&paths.state_dir);
    let UnloadedBody { namespaces, cgroups, devices, maps, asleep } = done;
    // Nothing rewrites the packets of a forwarded connection any more.
    let (also, but) = match devices {
        0 => (String::new(), ""),
        _ => (format!(", {devices} programs of network devices"), ", but for those that were forwarded"),
    };
    note(&format!(
        "unloaded: detached from {namespaces} namespaces and {cgroups} cgroups{also}, removed {maps} maps; established connections \
         continue{but}"
    ));
    if !asleep.is_empty() {
        let asleep = asleep.join(" ");
        note(&format!("containers of services that slept stay stopped; start them yourself: docker start {asleep}"));
    }
    Ok(())
}

/// The names of containers that sleep, by the files that a daemon has left.
fn asleep(state_dir: &Path, backends: &BTreeMap<BackendId, Backend>) -> Vec<String> {
    match state_dir.exists() {
        true => daemon::asleep(&Ledger::open(state_dir).decisions(), backends),
        false => Vec::new(),
    }
}

/// Locks the directory of pins, if it exists, so that nothing is removed from a running daemon. A daemon that has just unloaded may take
/// a moment to exit.
fn lock(bpffs: &Path, may_wait: bool) -> Result<Option<Lock>, LockError> {
    let begun = Instant::now();
    loop {
        match Lock::take(bpffs) {
            _ if !bpffs.exists() => return Ok(None),
            Err(LockError::Held { .. }) if may_wait && begun.elapsed() < END_MAX => {
                std::thread::sleep(Duration::from_millis(10));
            }
            taken => return taken.map(Some),
        }
    }
}
