//! Reading what the kernel programs send: their events, and decision logs if those were asked for.

use std::io;

use aya::maps::{MapData, RingBuf};
use pod_steer_ebpf::Event as KernelEvent;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::control::Control;
use crate::sys;

/// The decision logs of the kernel programs.
type Logs = AsyncFd<aya_log::EbpfLogger<&'static dyn log::Log>>;

/// What the kernel programs send.
pub(super) struct KernelEvents {
    ring: AsyncFd<RingBuf<MapData>>,
    logs: Option<Logs>,
    /// Events that were lost so far, as noted last.
    lost: u64,
}

impl KernelEvents {
    /// Reads from this ring, and prints these logs. So many events were lost before.
    pub fn new(
        ring: RingBuf<MapData>,
        logs: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
        lost: u64,
    ) -> io::Result<Self> {
        Ok(Self { ring: sys::readable(ring)?, logs: logs.map(sys::readable).transpose()?, lost })
    }

    /// Waits for events; prints decision logs meanwhile.
    pub async fn next(&mut self) -> io::Result<Vec<KernelEvent>> {
        loop {
            tokio::select! {
                biased;
                ready = self.ring.readable_mut() => {
                    let mut ready = ready?;
                    let events = read_all(ready.get_inner_mut());
                    ready.clear_ready();
                    return Ok(events);
                }
                () = flush(&mut self.logs) => {}
            }
        }
    }

    /// Takes the events that are there, whether the loop has been woken for them or not.
    pub fn take(&mut self) -> Vec<KernelEvent> {
        read_all(self.ring.get_mut())
    }

    /// So many events were lost so far. True if that has changed.
    pub fn note_lost(&mut self, lost: u64) -> bool {
        lost != std::mem::replace(&mut self.lost, lost)
    }
}

fn read_all(ring: &mut RingBuf<MapData>) -> Vec<KernelEvent> {
    let mut events = Vec::new();
    while let Some(item) = ring.next() {
        match event(&item) {
            Some(event) => events.push(event),
            None => debug!(bytes = item.len(), "an event of unknown size"),
        }
    }
    events
}

impl Control {
    /// Takes the events that are there, whether the loop has been woken for them or not.
    pub(super) fn read_ring(&mut self) {
        for event in self.kernel_events.take() {
            self.kernel_event(&event);
        }
    }
}

/// The contract's types are plain old data; their bytes are copied out.
pub(crate) fn event(bytes: &[u8]) -> Option<KernelEvent> {
    (bytes.len() == size_of::<KernelEvent>()).then(|| sys::read_event(bytes))
}

/// Waits for decision logs and prints them.
async fn flush(logs: &mut Option<Logs>) {
    let Some(logs) = logs else { return std::future::pending().await };
    let ready: io::Result<_> = logs.readable_mut().await;
    if let Ok(mut ready) = ready {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
