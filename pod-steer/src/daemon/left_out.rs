//! Listeners that are left out of the socket map, since their backend has as many as it may have or opens them too fast. Clients do
//! not come to them until a look finds them and there is room.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use pod_steer_ebpf::{LEFT_OUT_FAST, LEFT_OUT_MANY, LISTENS_BURST, LISTENS_PER_S};

use super::control::Control;
use crate::{
    condition::{Condition, Reason},
    ids::{BackendIndex, NetnsCookie},
};

/// The kernel program tells of listeners that it leaves out once a second. If it has not for so long, it leaves none out.
const QUIET: Duration = Duration::from_secs(2);

/// A backend of which listeners are left out.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct LeftOut {
    /// Cookie of their namespace.
    pub netns_cookie: NetnsCookie,
    /// Why: one of the `LEFT_OUT_` constants.
    reason: u32,
    /// When it was told last.
    at: Instant,
    /// The look whose answer is being read has found one.
    found: bool,
}

impl Control {
    /// Some listeners of a backend were left out.
    pub(super) fn note_left_out(&mut self, index: BackendIndex, netns_cookie: NetnsCookie, reason: u32) {
        let (usage, count) = (self.kernel.socket_usage(index), self.kernel.left_out(index));
        let Some(backend) = self.world.by_index_mut(index) else { return };
        let (message, remedy) = match reason {
            LEFT_OUT_FAST => {
                let message = format!(
                    "it opens listeners faster than {LISTENS_PER_S} a second, after {LISTENS_BURST} at once: {count} were left out \
                     so far, and clients do not come to those before it slows down and pod-steer finds them"
                );
                (message, "let it keep its listeners open")
            }
            _ => {
                let message = format!(
                    "it has too many listening sockets ({usage}): clients do not come to the further ones before there is room"
                );
                (message, "let it close those that it does not need, or end other backends")
            }
        };
        let now = LeftOut { netns_cookie, reason, at: Instant::now(), found: true };
        let before = self.holders.left_out.insert(index, now);
        backend.set_condition(Condition::new(Reason::ListenersLeftOut, message, remedy));
        if before.is_none_or(|before| before.reason != reason) {
            // The state of a backend depends on what is wrong with it.
            self.touch_backend(index);
        }
        self.holders.watching = true;
    }

    /// A listener of a backend is not registered, which [`Control::tell_left_out`] tells with others.
    pub(super) fn leave_out(&mut self, index: BackendIndex, netns_cookie: NetnsCookie, reason: u32) {
        self.holders.left_out_now.insert(index, (netns_cookie, reason));
    }

    /// Once for all listeners that were found together: a backend may have any number of them.
    pub(super) fn tell_left_out(&mut self) {
        for (index, (netns_cookie, reason)) in std::mem::take(&mut self.holders.left_out_now) {
            self.note_left_out(index, netns_cookie, reason);
        }
    }

    /// A look has left listeners of a backend to the next ones.
    pub(super) fn found_beyond(&mut self, index: BackendIndex, netns_cookie: NetnsCookie) {
        if !self.kernel.socket_usage(index).may_take() {
            self.leave_out(index, netns_cookie, LEFT_OUT_MANY);
        } else if !self.found_left_out(index) {
            self.holders.look_later_at(netns_cookie);
        }
    }

    /// A look has found a listener that was left out, and it is registered.
    pub(super) fn found_left_out(&mut self, index: BackendIndex) -> bool {
        let left_out = self.holders.left_out.get_mut(&index);
        left_out.map(|left_out| left_out.found = true).is_some()
    }

    /// An answer about this namespace is about to be read.
    pub(super) fn expect_left_out(&mut self, netns_cookie: NetnsCookie) {
        let here = self.holders.left_out.values_mut().filter(|left_out| left_out.netns_cookie == netns_cookie);
        here.for_each(|left_out| left_out.found = false);
    }

    /// It has been read: where it has found none, and none was left out since long before the look began, the condition ends.
    pub(super) fn clear_left_out(&mut self, netns_cookie: NetnsCookie, began: Instant) {
        let over = |left_out: &LeftOut| {
            left_out.netns_cookie == netns_cookie
                && !left_out.found
                && began.saturating_duration_since(left_out.at) > QUIET
        };
        let over: Vec<BackendIndex> =
            self.holders.left_out.iter().filter(|(_, left_out)| over(left_out)).map(|(index, _)| *index).collect();
        for index in over {
            self.holders.left_out.remove(&index);
            if let Some(backend) = self.world.by_index_mut(index) {
                backend.end_condition(Reason::ListenersLeftOut);
            }
            self.touch_backend(index);
        }
    }

    /// Compares the numbers of registered sockets that the kernel program goes by with those that are known.
    ///
    /// Unless `all` is set, nothing is done while the number of all sockets is right: reading each takes as long as there are sockets.
    pub(super) fn correct_socket_counts(&mut self, all: bool) {
        if self.engines.is_awaiting() || !all && self.kernel.is_socket_count_right(self.world.sockets.len()) {
            return;
        }
        let mut counts: BTreeMap<BackendIndex, u64> = BTreeMap::new();
        for socket in self.world.sockets.values() {
            *counts.entry(socket.backend).or_default() += 1;
        }
        self.kernel.correct_socket_counts(&counts);
    }
}
