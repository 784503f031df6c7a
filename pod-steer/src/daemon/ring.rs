//! Reading what the kernel programs send: their events, and decision logs if those were asked for.

use std::io;

use aya::maps::{MapData, RingBuf};
use pod_steer_ebpf::Event;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::control::Control;
use crate::sys;

/// Takes every event that is in the ring.
pub(super) fn drain(mut ready: tokio::io::unix::AsyncFdReadyMutGuard<'_, RingBuf<MapData>>) -> Vec<Event> {
    let events = read_all(ready.get_inner_mut());
    ready.clear_ready();
    events
}

fn read_all(ring: &mut RingBuf<MapData>) -> Vec<Event> {
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
        for event in read_all(self.ring.get_mut()) {
            self.kernel_event(&event);
        }
    }
}

/// The contract's types are plain old data; their bytes are copied out.
pub(crate) fn event(bytes: &[u8]) -> Option<Event> {
    (bytes.len() == size_of::<Event>()).then(|| sys::read_event(bytes))
}

/// Waits for decision logs and prints them.
pub(super) async fn flush(logs: &mut Option<AsyncFd<aya_log::EbpfLogger<&'static dyn log::Log>>>) {
    let Some(logs) = logs else { return std::future::pending().await };
    let ready: io::Result<_> = logs.readable_mut().await;
    if let Ok(mut ready) = ready {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
