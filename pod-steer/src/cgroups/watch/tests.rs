use std::os::unix::fs::PermissionsExt as _;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const POD: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

/// A directory stands for the hierarchy: inotify is the same.
fn within<T>(name: &str, run: impl AsyncFnOnce(&Path) -> T) -> T {
    let dir = std::env::temp_dir().join(format!("pod-steer-cgroups-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(run(&dir));
    fs::remove_dir_all(&dir).unwrap();
    result
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn a_container_is_seen_wherever_its_cgroup_is_made() {
    let paths = [
        format!("docker/{ID}"),
        format!("system.slice/docker-{ID}.scope"),
        format!("libpod_parent/{POD}/libpod-{ID}"),
        format!("machine.slice/machine-libpod_pod_{POD}.slice/libpod-{ID}.scope"),
        format!("system.slice/system-web.slice/web@1.service/libpod-payload-{ID}"),
        format!("user.slice/user-1.slice/user@1.service/user.slice/user-libpod_pod_{POD}.slice/libpod-{ID}.scope"),
    ];
    for (number, path) in paths.iter().enumerate() {
        within(&format!("made-{number}"), async |dir| {
            let mut cgroups = Cgroups::new(dir.to_owned());
            assert_eq!(cgroups.expect(ID, "", me()), None);
            // All directories at once: those below are there before the first is watched.
            fs::create_dir_all(dir.join(path)).unwrap();
            let container = Seen::Container { id: ID.to_owned(), path: dir.join(path) };
            let mut seen = cgroups.seen().await.unwrap();
            // A pod's cgroup looks like one of Docker's containers.
            seen.retain(|seen| *seen != Seen::Unannounced { id: POD.to_owned() });
            assert_eq!(seen, [container]);
            assert_eq!(cgroups.expect(ID, "", me()), Some(dir.join(path)));
        });
    }
}

#[test]
fn a_container_that_was_there_before_is_found() {
    within("before", async |dir| {
        let path = dir.join(format!("system.slice/web.service/libpod-payload-{ID}"));
        fs::create_dir_all(&path).unwrap();
        let mut cgroups = Cgroups::new(dir.to_owned());
        assert_eq!(cgroups.expect(ID, "", me()), Some(path.clone()));
        fs::remove_dir(&path).unwrap();
        assert_eq!(cgroups.expect(ID, "", me()), None);
    });
}

#[test]
fn a_cgroup_that_another_user_may_have_made_is_ignored() {
    within("others", async |dir| {
        let mut cgroups = Cgroups::new(dir.to_owned());
        let theirs = dir.join("user.slice");
        fs::create_dir(&theirs).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
        cgroups.expect(ID, "", me());
        fs::create_dir(theirs.join(format!("libpod-{ID}"))).unwrap();
        fs::create_dir_all(dir.join(format!("docker/{POD}"))).unwrap();
        assert_eq!(cgroups.seen().await.unwrap(), [Seen::Unannounced { id: POD.to_owned() }]);
        assert_eq!(cgroups.expect(ID, "", me()), None);
    });
}

#[test]
fn the_hierarchy_is_not_rescanned_while_the_limit_is_reached() {
    within("many", async |dir| {
        let mut cgroups = Cgroups::new(dir.to_owned());
        cgroups.directories = DIRECTORIES_MAX;
        cgroups.unwatched = Some(Condition::without_remedy(Reason::CgroupsNotWatched, "too many"));
        fs::create_dir_all(dir.join(format!("a.slice/docker-{ID}.scope"))).unwrap();
        assert_eq!(cgroups.retry(), []);
        cgroups.directories -= 1;
        assert_eq!(cgroups.retry(), [Seen::Unannounced { id: ID.to_owned() }]);
    });
}
