//! Where Docker and Podman create the cgroups of containers, and how they name them. No I/O.

use std::path::PathBuf;

use super::convert::is_id;

/// The container whose cgroup has this name: `ID`, `docker-ID.scope`, `libpod-ID.scope`, `libpod-payload-ID`, `cri-containerd-ID.scope`.
/// The cgroup of Podman's monitor has the same id, and does not count. The cgroup of a Podman pod is named by an id alone, like that of a
/// Docker container; the pod's containers are below it.
pub fn container_of(name: &str) -> Option<&str> {
    if name.contains("conmon") {
        return None;
    }
    let base = name.strip_suffix(".scope").unwrap_or(name);
    let id = base.rsplit('-').next()?;
    is_id(id).then_some(id)
}

/// See [`Engine::cgroup_parents`](crate::engine::Engine::cgroup_parents).
pub fn parents(given: &str) -> Vec<PathBuf> {
    let given = given.trim_matches('/');
    if given.is_empty() {
        // The defaults of Docker and Podman, with the cgroupfs and the systemd driver.
        return ["docker", "system.slice", "machine.slice", "libpod_parent"].map(PathBuf::from).to_vec();
    }
    let Some(slice) = given.strip_suffix(".slice").filter(|name| !name.contains('/')) else {
        return vec![PathBuf::from(given), PathBuf::from(given).join("libpod_parent")];
    };
    // systemd nests `a-b.slice` in `a.slice`.
    let mut path = PathBuf::new();
    for (at, _) in slice.match_indices('-') {
        path.push(format!("{}.slice", &slice[..at]));
    }
    path.push(format!("{slice}.slice"));
    vec![path]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn knows_a_container_by_its_cgroup() {
        for name in [ID.to_owned(), format!("docker-{ID}.scope"), format!("libpod-{ID}.scope")] {
            assert_eq!(container_of(&name), Some(ID), "{name}");
        }
        for name in ["", "docker", "libpod-conmon-0123.scope", "system.slice"] {
            assert_eq!(container_of(name), None, "{name}");
        }
        assert_eq!(container_of(&format!("libpod-conmon-{ID}.scope")), None);
        assert_eq!(container_of(&format!("libpod-payload-{ID}")), Some(ID));
    }

    #[test]
    fn systemd_slices_nest() {
        assert_eq!(parents("a-b-c.slice"), [PathBuf::from("a.slice/a-b.slice/a-b-c.slice")]);
        assert_eq!(parents("/plain/path")[0], PathBuf::from("plain/path"));
        assert!(parents("").contains(&PathBuf::from("docker")));
    }
}
