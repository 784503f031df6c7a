//! `pod-steer unload`

use super::{Outcome, args::UnloadArgs, block_on};
use crate::{
    api::{
        client::{self, ClientError},
        types::UnloadedBody,
    },
    cgroups,
    daemon::{self, Store},
};

/// A running daemon unloads and ends; without one, the same is done here.
pub(super) fn unload(args: &UnloadArgs) -> Outcome {
    let socket = args.socket.clone().unwrap_or_else(|| args.runtime_dir.join("api.sock"));
    let asked = block_on(async { Ok(client::post::<UnloadedBody>(&socket, "/v1/unload", &()).await) })?;
    let done = match asked {
        Ok(done) => done,
        Err(ClientError::NoDaemon { .. }) => {
            let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
            let mount = cgroups::mount_point(&mountinfo)
                .ok_or_else(|| anyhow::anyhow!("no cgroup v2 is mounted: mount -t cgroup2 none DIR"))?;
            let done = daemon::undo(&args.bpffs, &mount, &[])?;
            // Whoever has no state has no files either.
            if args.runtime_dir.join("backends").exists() {
                Store::open(&args.runtime_dir)?.remove_all();
            }
            UnloadedBody { namespaces: done.namespaces, cgroups: done.cgroups, maps: done.maps }
        }
        Err(error) => return Err(error.into()),
    };
    eprintln!(
        "unloaded: {} namespaces, {} cgroups, {} maps; established connections go on",
        done.namespaces, done.cgroups, done.maps
    );
    Ok(())
}
