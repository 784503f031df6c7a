//! The sockets that the connections of health checks are for.

use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{HashMap, Map, MapData};
use pod_steer_ebpf::{PROBES_UNDER_WAY_MAX, ProbeKey};

use super::{Kernel, KernelError, Result};
use crate::ids::SocketCookie;

/// Records the sockets of probes. It is a handle of its own because probes are made beside the daemon's loop.
#[derive(Clone)]
pub struct Probes(Arc<Mutex<HashMap<MapData, ProbeKey, u64>>>);

/// A probe whose socket is recorded until this is dropped.
pub struct ProbeUnderWay {
    probes: Probes,
    key: ProbeKey,
}

impl Kernel {
    /// A handle on the probes. Removes those of a dead daemon: clients may use their ports by now.
    pub fn probes(&self) -> Result<Probes> {
        let opened = MapData::from_pin(self.dir.join("maps/PROBES")).and_then(|data| Map::HashMap(data).try_into());
        let mut map: HashMap<MapData, ProbeKey, u64> = opened.map_err(KernelError::map("open", "PROBES"))?;
        let left: Vec<ProbeKey> = map.keys().flatten().collect();
        for key in left {
            let _ = map.remove(&key);
        }
        Ok(Probes(Arc::new(Mutex::new(map))))
    }
}

impl Probes {
    /// From now on, the kernel gives connections from `key` to the socket with this cookie.
    pub fn begin(&self, key: ProbeKey, cookie: SocketCookie) -> Result<ProbeUnderWay> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(key, cookie.0, 0).map_err(KernelError::add(
            "write the socket of a probe to",
            "PROBES",
            PROBES_UNDER_WAY_MAX,
        ))?;
        Ok(ProbeUnderWay { probes: self.clone(), key })
    }
}

impl Drop for ProbeUnderWay {
    fn drop(&mut self) {
        let _ = self.probes.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
