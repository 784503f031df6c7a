//! The cgroup v2 hierarchy. `watch` reports when a container's cgroup appears, and when a cgroup has become empty. The names of containers'
//! cgroups are those of `engine`.

pub mod below;
mod watch;

use crate::ids::CgroupId;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::DirEntryExt as _,
    path::{Path, PathBuf},
};

pub use watch::{Cgroups, Seen, is_made_by};

use crate::engine::container_of;

/// The cgroup below the root of the hierarchy in which each daemon has a cgroup.
pub const OWN: &str = "pod-steer";

/// Finds the cgroup v2 mount. On machines with both versions it is not at `/sys/fs/cgroup`.
pub fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (root, at) = (before.next()?, before.next()?);
        // Spaces in a path are written as \040; cgroup mounts have none in practice.
        (after.next()? == "cgroup2" && root == "/").then(|| PathBuf::from(at))
    })
}

/// The container's own cgroup among a path and its ancestors. `None` if the path does not name the container: then its
/// processes run in a cgroup that is not its own, as with Podman's `--cgroups=disabled`.
pub fn own_cgroup<'a>(path: &'a Path, id: &str) -> Option<&'a Path> {
    path.ancestors().find(|path| path.file_name().and_then(|name| name.to_str()).and_then(container_of) == Some(id))
}

/// Every directory below this one, each before those in it.
pub fn directories(top: &Path) -> impl Iterator<Item = fs::DirEntry> {
    let read = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect::<Vec<_>>()
    };
    let mut left = read(top);
    std::iter::from_fn(move || {
        let entry = left.pop()?;
        left.extend(read(&entry.path()));
        Some(entry)
    })
}

/// The directories of the cgroups with these ids, by id. Walks the hierarchy until all are found.
pub fn with_ids(mount: &Path, ids: &BTreeSet<CgroupId>) -> BTreeMap<CgroupId, PathBuf> {
    let wanted = directories(mount).filter(|entry| ids.contains(&CgroupId(entry.ino())));
    wanted.take(ids.len()).map(|entry| (CgroupId(entry.ino()), entry.path())).collect()
}

/// True if no process is in this cgroup or below it. A removed cgroup has none; a cgroup that cannot be read may have some.
pub fn is_empty(path: &Path) -> bool {
    match fs::read_to_string(path.join("cgroup.events")) {
        Ok(text) => text.lines().any(|line| line == "populated 0"),
        Err(error) => error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn finds_the_mount_of_cgroup_v2() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      42 30 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("30 25 0:26 /part /mnt rw - cgroup2 none rw\n"), None);
        assert_eq!(mount_point("nonsense"), None);
    }

    #[test]
    fn a_container_s_own_cgroup_has_its_id() {
        let own = |path: &str| own_cgroup(Path::new(path), ID).map(|path| path.to_str().unwrap().to_owned());
        for path in [
            format!("/c/docker/{ID}"),
            format!("/c/libpod_parent/{}/libpod-{ID}", "f".repeat(64)),
            format!("/c/system.slice/web.service/libpod-payload-{ID}"),
        ] {
            assert_eq!(own(&path), Some(path.clone()));
            assert_eq!(own(&format!("{path}/container/deep")), Some(path));
        }
        for path in ["/c", "/c/user.slice/session-1.scope", "/c/libpod_parent/conmon"] {
            assert_eq!(own(path), None, "{path}");
        }
        assert_eq!(own(&format!("/c/docker/{}", "f".repeat(64))), None, "the cgroup of another container");
    }

    #[test]
    fn finds_cgroups_by_their_ids() {
        let root = std::env::temp_dir().join(format!("pod-steer-cgroups-{}", std::process::id()));
        let paths = ["a", "a/b", "c"].map(|name| root.join(name));
        paths.iter().for_each(|path| fs::create_dir_all(path).unwrap());
        let ids = paths.each_ref().map(|path| CgroupId(fs::metadata(path).unwrap().ino()));
        let found = with_ids(&root, &BTreeSet::from([ids[1], ids[2], CgroupId(u64::MAX)]));
        assert_eq!(found, BTreeMap::from([(ids[1], paths[1].clone()), (ids[2], paths[2].clone())]));
        assert!(with_ids(&root, &BTreeSet::new()).is_empty());
        fs::remove_dir_all(root).unwrap();
    }
}
