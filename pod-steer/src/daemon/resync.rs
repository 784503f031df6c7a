//! The resync: every 30 s the kernel's state is compared with what the daemon believes.

use tracing::warn;

use super::control::Control;

impl Control {
    /// Compares the kernel's state with what the daemon believes, and repairs what differs.
    pub(super) fn resync(&mut self) {
        let lost = self.kernel.events_lost();
        if lost != std::mem::replace(&mut self.events_lost, lost) {
            warn!(lost, "events of the kernel programs were lost; the sockets are read as a whole");
        }
        self.read_sockets();
        self.free_ports(true);
        self.drop_leftovers();
    }
}
