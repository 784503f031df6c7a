//! Limits the number of API clients at a time, for each user, each role and in total. So clients and their descriptors cannot keep the
//! daemon from other clients or from steering.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Maximum number of clients.
const CLIENTS_MAX: usize = 512;
/// Minimum number of clients, even under a small limit on open files.
const CLIENTS_MIN: usize = 16;
/// A client takes two descriptors (a socket and a pidfd), and the API may use a quarter of all open files.
const FILES_PER_CLIENT: u64 = 8;

/// The holder of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Root, or the daemon's own user.
    Root,
    /// Another user who is an operator.
    Operator(u32),
    /// Another user who is a viewer.
    Viewer(u32),
    /// A client that only gets a refusal.
    Refused,
}

/// The slots of an API.
#[derive(Debug)]
pub(super) struct Slots {
    max: usize,
    taken: Mutex<Taken>,
    /// Notified when a slot is free again.
    pub freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    operators: usize,
    viewers: usize,
    refused: usize,
    by_uid: HashMap<u32, usize>,
}

impl Slots {
    /// Slots for a process with this limit on open files.
    pub fn new(files: Option<u64>) -> Arc<Self> {
        let max = files.map_or(CLIENTS_MAX, |files| usize::try_from(files / FILES_PER_CLIENT).unwrap_or(CLIENTS_MAX));
        let max = max.clamp(CLIENTS_MIN, CLIENTS_MAX);
        Arc::new(Self { max, taken: Mutex::default(), freed: Notify::new() })
    }

    /// Takes a slot, if one is free for this holder. A quarter of the slots is reserved for root; viewers get at most a quarter.
    pub fn take(self: &Arc<Self>, holder: Holder) -> Option<Slot> {
        let (of_user, quarter) = (self.max / 8, self.max / 4);
        let mut taken = self.lock();
        let by_user = |uid: u32| taken.by_uid.get(&uid).copied().unwrap_or_default() < of_user;
        let is_free = match holder {
            Holder::Root => taken.all < self.max,
            Holder::Operator(uid) => by_user(uid) && taken.operators < quarter * 2 && taken.all < self.max,
            Holder::Viewer(uid) => by_user(uid) && taken.viewers < quarter && taken.all < self.max,
            Holder::Refused => taken.refused < of_user,
        };
        if !is_free {
            return None;
        }
        match holder {
            Holder::Root => {}
            Holder::Operator(uid) => {
                taken.operators += 1;
                *taken.by_uid.entry(uid).or_default() += 1;
            }
            Holder::Viewer(uid) => {
                taken.viewers += 1;
                *taken.by_uid.entry(uid).or_default() += 1;
            }
            Holder::Refused => taken.refused += 1,
        }
        if holder != Holder::Refused {
            taken.all += 1;
        }
        drop(taken);
        Some(Slot { slots: Arc::clone(self), holder })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot in use. It is freed on drop.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    holder: Holder,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        let uid = match self.holder {
            Holder::Root => None,
            Holder::Operator(uid) => {
                taken.operators -= 1;
                Some(uid)
            }
            Holder::Viewer(uid) => {
                taken.viewers -= 1;
                Some(uid)
            }
            Holder::Refused => {
                taken.refused -= 1;
                return;
            }
        };
        taken.all -= 1;
        if let Some(uid) = uid
            && let Some(count) = taken.by_uid.get_mut(&uid)
        {
            *count -= 1;
            if *count == 0 {
                taken.by_uid.remove(&uid);
            }
        }
        drop(taken);
        self.slots.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(slots: &Arc<Slots>, holder: Holder) -> Vec<Slot> {
        std::iter::from_fn(|| slots.take(holder)).collect()
    }

    #[test]
    fn clients_use_a_quarter_of_the_open_files() {
        let max = |files| Slots::new(files).max;
        assert_eq!((max(Some(1024)), max(Some(1 << 20)), max(Some(8)), max(None)), (128, 512, 16, 512));
    }

    #[test]
    fn no_user_and_no_role_takes_all() {
        let slots = Slots::new(Some(512));
        let mut held = all(&slots, Holder::Viewer(1));
        assert_eq!(held.len(), 8, "an eighth for one user");
        held.extend((2..20).flat_map(|uid| all(&slots, Holder::Viewer(uid))));
        assert_eq!(held.len(), 16, "a quarter for viewers");
        held.extend((100..120).flat_map(|uid| all(&slots, Holder::Operator(uid))));
        assert_eq!(held.len(), 48, "half for operators");
        held.extend(all(&slots, Holder::Root));
        assert_eq!(held.len(), 64, "root takes the rest");
        assert_eq!(all(&slots, Holder::Refused).len(), 8, "the refused do not count");
        held.remove(0);
        assert!(slots.take(Holder::Viewer(1)).is_some() && slots.lock().by_uid[&1] == 7);
        held.clear();
        assert!(slots.lock().all == 0 && slots.lock().by_uid.is_empty());
        assert_eq!(all(&slots, Holder::Root).len(), 64, "root alone may take all");
    }
}
