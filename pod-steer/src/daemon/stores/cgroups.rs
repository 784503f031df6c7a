//! In which cgroup each backend is, and the cgroups that backends have left behind.

use crate::ids::{BackendIndex, CgroupId};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    path::{Path, PathBuf},
};

/// The cgroups of backends.
#[derive(Debug, Default)]
pub struct Places {
    /// The directory of each backend's cgroup, by its index.
    paths: BTreeMap<BackendIndex, PathBuf>,
    /// The id of the cgroup that each backend has now: a container that is restarted gets another.
    ids: HashMap<BackendIndex, CgroupId>,
    /// Cgroups of `exec` without processes. Each stays until the last connection that moved away from it has ended: the kernel runs
    /// no program for a cgroup that is removed.
    retired: Vec<PathBuf>,
    /// A retired cgroup, or one of a backend that has ended, may have to be detached.
    is_cleanup_due: bool,
}

impl Places {
    /// A backend is in this directory; the id of its cgroup is known if it could be opened.
    pub fn set(&mut self, index: BackendIndex, path: PathBuf, cgroup: Option<CgroupId>) {
        self.paths.insert(index, path);
        if let Some(cgroup) = cgroup {
            self.ids.insert(index, cgroup);
        }
    }

    /// The directory of a backend's cgroup.
    pub fn path(&self, index: BackendIndex) -> Option<&PathBuf> {
        self.paths.get(&index)
    }

    /// How many backends have a cgroup.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// The next so many backends after this one, in a ring.
    pub fn next_after(&self, index: BackendIndex, count: usize) -> Vec<BackendIndex> {
        let (behind, before) = ((Bound::Excluded(index), Bound::Unbounded), ..=index);
        let ring = self.paths.range(behind).chain(self.paths.range(before));
        ring.map(|(index, _)| *index).take(count).collect()
    }

    /// The id of a backend's cgroup.
    pub fn id(&self, index: BackendIndex) -> Option<CgroupId> {
        self.ids.get(&index).copied()
    }

    /// The backend in this directory.
    pub fn backend_at(&self, path: &Path) -> Option<BackendIndex> {
        self.paths.iter().find(|(_, of)| *of == path).map(|(index, _)| *index)
    }

    /// Whether this directory is a backend's, or was one's.
    pub fn is_ours(&self, path: &Path) -> bool {
        self.paths.values().chain(&self.retired).any(|own| own == path)
    }

    /// A container has died: when it is started again, it gets another cgroup, at the same path.
    pub fn has_died(&mut self, index: BackendIndex) {
        self.ids.remove(&index);
    }

    /// It is not known in which cgroup a backend is.
    pub fn forget(&mut self, index: BackendIndex) {
        self.paths.remove(&index);
        self.ids.remove(&index);
    }

    /// A cgroup of `exec` has no process any more.
    pub fn retire(&mut self, path: PathBuf) {
        self.retired.push(path);
    }

    /// Drops the retired cgroups of which this is false.
    pub fn retain_retired(&mut self, stays: impl FnMut(&PathBuf) -> bool) {
        self.retired.retain(stays);
    }

    /// There may be something to detach.
    pub fn ask_for_cleanup(&mut self) {
        self.is_cleanup_due = true;
    }

    /// Whether there may be something to detach.
    pub fn is_cleanup_due(&self) -> bool {
        self.is_cleanup_due
    }

    /// A clean-up begins.
    pub fn begin_cleanup(&mut self) {
        self.is_cleanup_due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_come_in_turn() {
        let mut places = Places::default();
        assert!(places.next_after(BackendIndex(7), 3).is_empty());
        for index in [2, 5, 9] {
            places.set(BackendIndex(index), PathBuf::from("/"), None);
        }
        let next =
            |index, count| places.next_after(BackendIndex(index), count).iter().map(|of| of.0).collect::<Vec<_>>();
        assert_eq!((next(0, 2), next(5, 2), next(9, 5)), (vec![2, 5], vec![9, 2], vec![2, 5, 9]));
        assert_eq!(next(6, usize::MAX), [9, 2, 5]);
    }

    #[test]
    fn a_restarted_container_has_another_cgroup_at_its_path() {
        let (mut places, index, cgroup) = (Places::default(), BackendIndex(1), CgroupId(7));
        places.set(index, PathBuf::from("/docker/a"), Some(cgroup));
        assert_eq!((places.id(index), places.backend_at(Path::new("/docker/a"))), (Some(cgroup), Some(index)));
        places.has_died(index);
        assert_eq!((places.id(index), places.path(index)), (None, Some(&PathBuf::from("/docker/a"))));
        // Its new one could not be opened: the path alone is known.
        places.set(index, PathBuf::from("/docker/b"), None);
        assert_eq!((places.id(index), places.backend_at(Path::new("/docker/a"))), (None, None));
        places.forget(index);
        assert!(places.path(index).is_none() && !places.is_ours(Path::new("/docker/b")));
    }

    #[test]
    fn a_retired_cgroup_is_ours_until_it_is_dropped() {
        let mut places = Places::default();
        let path = PathBuf::from("/pod-steer/exec-1-0");
        places.retire(path.clone());
        assert!(places.is_ours(&path) && places.backend_at(&path).is_none());
        places.retain_retired(|_| true);
        assert!(places.is_ours(&path));
        places.retain_retired(|of| *of != path);
        assert!(!places.is_ours(&path));
    }

    #[test]
    fn a_cleanup_is_due_until_it_begins() {
        let mut places = Places::default();
        assert!(!places.is_cleanup_due());
        places.ask_for_cleanup();
        assert!(places.is_cleanup_due());
        places.begin_cleanup();
        assert!(!places.is_cleanup_due());
    }
}
