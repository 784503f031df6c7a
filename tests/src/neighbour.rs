//! Another user of BPF on the same machine, as systemd, a container engine or another load balancer is.
//!
//! Some of its objects stay while it runs; others come and go about a thousand times a second. It has a host of its own, so its cgroup,
//! its network namespace and its bpffs are no test's, and they are removed even if the test is killed. What it shares with every test
//! is the kernel's lists of programs, maps and links.

use std::{
    fs::{self, File},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    host::Host,
    programs::{BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, attach, create_map, instruction, load, pin},
};

const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_EGRESS: u32 = 1;

/// Between two rounds. Shorter ones would leave a small machine no time for the tests.
const PAUSE: Duration = Duration::from_micros(250);

/// The other user. It ends when it is dropped.
#[derive(Debug)]
pub struct Neighbour {
    worker: Option<JoinHandle<Result<()>>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    host: Host,
    stop: AtomicBool,
    rounds: AtomicU64,
}

impl Neighbour {
    /// Starts it; returns when its first objects are there.
    pub fn start() -> Result<Self> {
        let shared = Arc::new(Shared { host: Host::new()?, stop: AtomicBool::new(false), rounds: AtomicU64::new(0) });
        let lasting = shared.objects("lasting").context("the lasting objects of the other user of BPF")?;
        let worker = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.come_and_go(&lasting))
        };
        Ok(Self { worker: Some(worker), shared })
    }

    /// How often its passing objects have come and gone.
    pub fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::Relaxed)
    }

    /// Ends it, and returns the number of rounds. An error if any of them failed, or if its lasting pins were removed.
    pub fn stop(mut self) -> Result<u64> {
        self.end()?;
        Ok(self.rounds())
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(worker) = self.worker.take() else { return Ok(()) };
        worker.join().map_err(|_| anyhow!("the other user of BPF panicked"))?
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the other user of BPF failed: {error:#}");
        }
    }
}

/// A map, two programs and two links, pinned under these names.
#[derive(Debug)]
struct Objects {
    pins: Vec<PathBuf>,
    _held: Vec<OwnedFd>,
}

impl Shared {
    fn come_and_go(&self, lasting: &Objects) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let passing = self.objects("passing")?;
            for path in &passing.pins {
                fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
            }
            drop(passing);
            self.rounds.fetch_add(1, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
        for path in &lasting.pins {
            ensure!(path.exists(), "{} is gone", path.display());
        }
        Ok(())
    }

    fn objects(&self, name: &str) -> Result<Objects> {
        let map = create_map(BPF_MAP_TYPE_HASH, 4, 8, 16).context("making a map")?;
        // r0 = 1: the packet passes, and the kernel chooses the socket.
        let pass = [instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)];
        let packets = load(BPF_PROG_TYPE_CGROUP_SKB, BPF_CGROUP_INET_EGRESS, &pass).context("loading a program")?;
        let lookup = load(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, &pass).context("loading a lookup program")?;
        let cgroup = File::open(self.host.cgroup())?;
        let in_cgroup = attach(&packets, cgroup.as_fd(), BPF_CGROUP_INET_EGRESS).context("attaching to a cgroup")?;
        let net = self.host.net().as_fd();
        let in_namespace = attach(&lookup, net, BPF_SK_LOOKUP).context("attaching to a namespace")?;
        let held =
            [("map", map), ("packets", packets), ("lookup", lookup), ("cgroup", in_cgroup), ("netns", in_namespace)];
        let mut objects = Objects { pins: vec![], _held: vec![] };
        for (kind, object) in held {
            let path = self.host.path("/sys/fs/bpf").join(format!("{name}-{kind}"));
            pin(&object, &path).with_context(|| format!("pinning {}", path.display()))?;
            objects.pins.push(path);
            objects._held.push(object);
        }
        Ok(objects)
    }
}
