//! `pod-steer unload`

use super::{Outcome, args::UnloadArgs, block_on};
use crate::{
    api::{
        client::{self, ClientError},
        types::UnloadedBody,
    },
    cgroups,
    daemon::{self, Ledger, Store},
};

/// A running daemon unloads and ends; without one, the same is done here.
pub(super) fn unload(args: &UnloadArgs) -> Outcome {
    let socket = args.socket.clone().unwrap_or_else(|| args.runtime_dir.join("api.sock"));
    let asked = block_on(async { Ok(client::post::<UnloadedBody>(&socket, "/v1/unload", &()).await) })?;
    let asked = match asked {
        Ok(done) => Some(done),
        Err(ClientError::NoDaemon { .. }) => {
            // What a daemon that was killed could not remove.
            let _ = std::fs::remove_file(&socket);
            None
        }
        Err(error) => return Err(error.into()),
    };
    // Without a daemon all is done here; after one, what it may not remove: it has dropped the capability for that.
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = cgroups::mount_point(&mountinfo)
        .ok_or_else(|| anyhow::anyhow!("no cgroup v2 is mounted: mount -t cgroup2 none DIR"))?;
    let store = args.runtime_dir.join("backends").exists().then(|| Store::open(&args.runtime_dir)).transpose()?;
    if let Some(store) = &store {
        daemon::detach_registered(store.backends().values());
    }
    let rest = daemon::undo(&args.bpffs, &mount)?;
    if let Some(store) = store {
        store.remove_all();
    }
    Ledger::remove_all(&args.state_dir);
    let rest = UnloadedBody { namespaces: rest.namespaces, cgroups: rest.cgroups, maps: rest.maps };
    let done = asked.unwrap_or(rest);
    eprintln!(
        "unloaded: {} namespaces, {} cgroups, {} maps; established connections go on",
        done.namespaces, done.cgroups, done.maps
    );
    Ok(())
}
