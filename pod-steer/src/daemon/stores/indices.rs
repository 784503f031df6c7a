//! Indices of backends in the kernel's maps: which are free again, and what is still counted for them.

use crate::ids::BackendIndex;
use std::collections::{BTreeSet, HashMap};

/// What is known of indices beside the backends that have them now.
#[derive(Debug, Default)]
pub struct Indices {
    /// Of backends that have ended, until they are given out again.
    freed: BTreeSet<BackendIndex>,
    /// Containers that found no free index; they are described again when a backend has gone.
    without: BTreeSet<String>,
    /// Connections that came from another backend and whose end no kernel program sees.
    written_off: HashMap<BackendIndex, u64>,
}

impl Indices {
    /// The backend with this index has ended.
    pub fn free(&mut self, index: BackendIndex) {
        self.freed.insert(index);
    }

    /// An index is given out. True if another backend had it in this daemon's life: the kernel may still know sockets of that one.
    pub fn give_out(&mut self, index: BackendIndex) -> bool {
        self.written_off.remove(&index);
        self.freed.remove(&index)
    }

    /// A container found no free index.
    pub fn refuse(&mut self, container: String) {
        self.without.insert(container);
    }

    /// Takes the containers that found no free index.
    pub fn take_refused(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.without)
    }

    /// The end of one more connection of this backend will not be seen.
    pub fn write_off(&mut self, index: BackendIndex) {
        *self.written_off.entry(index).or_default() += 1;
    }

    /// Connections of this backend whose end was not seen.
    pub fn written_off(&self, index: BackendIndex) -> u64 {
        self.written_off.get(&index).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_begins_anew_when_it_is_given_out() {
        let (mut indices, index) = (Indices::default(), BackendIndex(3));
        indices.write_off(index);
        indices.write_off(index);
        assert_eq!((indices.written_off(index), indices.written_off(BackendIndex(4))), (2, 0));
        indices.free(index);
        assert!(indices.give_out(index) && !indices.give_out(index), "it was freed once");
        assert_eq!(indices.written_off(index), 0);
    }

    #[test]
    fn a_refused_container_is_asked_for_once() {
        let mut indices = Indices::default();
        indices.refuse("a".to_owned());
        indices.refuse("a".to_owned());
        assert_eq!(indices.take_refused().len(), 1);
        assert!(indices.take_refused().is_empty());
    }
}
