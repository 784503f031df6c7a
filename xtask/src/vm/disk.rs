//! The machine's disk: a Debian made by debootstrap, with this build in it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::cmd::{command, run};
use crate::{debian, debootstrap, paths};

/// Beside what every Debian has, and its kernel.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,iptables,docker.io,ca-certificates,curl,zstd";
/// Bytes of the disk, most of which are never written.
const SIZE: &str = "4G";
/// Text files, each with its place.
const FILES: [(&str, &str); 4] = [
    // Root's console, without a password.
    (
        "etc/systemd/system/serial-getty@.service.d/root.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,9600 %I $TERM\n",
    ),
    ("etc/systemd/network/machine.network", "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n"),
    ("etc/hostname", "pod-steer\n"),
    ("root/.profile", include_str!("tour.sh")),
];
/// Each program, with its place. The tour has its own, which the machine's users do not need.
const PROGRAMS: [(&str, &str); 3] =
    [("pod-steer", "usr/bin/pod-steer"), ("named-server", "opt/tour/named-server"), ("xtask", "opt/tour/xtask")];

/// A Debian, and what QEMU boots it with.
pub struct Debian {
    root: PathBuf,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

/// Makes one, unless it is there.
pub fn debian(arch: Arch, dir: &Path) -> Result<Debian> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let root = debootstrap::root(dir, &format!("{PACKAGES},linux-image-cloud-{}", arch.debian()))?;
    // Debian keeps links to the newest ones at the top.
    let [kernel, initrd] = ["vmlinuz", "initrd.img"].map(|name| root.join(name));
    Ok(Debian { root, kernel, initrd })
}

/// Puts this build into it, and writes the disk.
pub fn write(debian: &Debian, built: &Path, dir: &Path) -> Result<PathBuf> {
    let root = &debian.root;
    for (place, text) in FILES {
        put(&root.join(place), text.as_bytes(), 0o644)?;
    }
    for (name, place) in PROGRAMS {
        let program = built.join(name);
        let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        put(&root.join(place), &bytes, 0o755)?;
    }
    let unit = fs::read(paths::root().join("examples/pod-steer.service")).context("cannot read the unit")?;
    put(&root.join("etc/systemd/system/pod-steer.service"), &unit, 0o644)?;
    run(command("chroot").arg(root).args(["systemctl", "--quiet", "enable", "pod-steer", "systemd-networkd"]))?;
    debian::ensure(&["mke2fs"])?;
    let image = dir.join("disk.img");
    let _ = fs::remove_file(&image);
    run(command("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(root).arg(&image).arg(SIZE))?;
    Ok(image)
}

fn put(place: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let dir = place.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::write(place, contents).with_context(|| format!("cannot write {}", place.display()))?;
    Ok(fs::set_permissions(place, Permissions::from_mode(mode))?)
}
