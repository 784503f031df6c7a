//! Kernel images and modules of Debian's archive.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::MODULES;
use super::version::Version;
use crate::arch::Arch;
use crate::archive::{Archive, unpack_all};
use crate::cmd::{command, output, run};
use crate::say;

/// Releases whose cloud kernels are tried, with the newest one's updates.
pub const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];
/// Where a kernel's package has the [`MODULES`].
const MODULE_FILES: [&str; MODULES.len()] = [
    "net/llc/llc",
    "net/802/stp",
    "net/bridge/bridge",
    "drivers/net/veth",
    "net/sched/sch_ingress",
    "net/sched/cls_bpf",
];

/// A kernel in files.
pub struct Fetched {
    pub kernel: PathBuf,
    /// Modules that are not built in, each with its path in the guest, in the order in which they are loaded.
    pub modules: Vec<(PathBuf, String)>,
}

/// Every cloud kernel there is.
pub fn kernels(archive: &Archive, arch: Arch) -> Result<Vec<Version>> {
    let names = output(archive.apt("apt-cache").args(["pkgnames", "linux-image-"]))?;
    Ok(names.lines().filter_map(|name| Version::of_package(name, arch)).collect())
}

/// The kernel with its modules. Versions vanish from the archive, so a fetched one is kept.
pub fn fetch(archive: &Archive, kernel: &Version) -> Result<Fetched> {
    let file = archive.dir().join(format!("vmlinuz-{}", kernel.text));
    let modules = archive.dir().join(format!("modules-{}", kernel.text));
    if !file.is_file() || !modules.is_dir() {
        fetch_into(archive, kernel, &file, &modules)?;
    }
    let found = MODULES.map(|name| (modules.join(format!("{name}.ko")), format!("modules/{name}.ko")));
    Ok(Fetched { kernel: file, modules: found.into_iter().filter(|(file, _)| file.is_file()).collect() })
}

/// The program of a package, unpacked beside the kernels. Later releases have all programs below `usr`.
pub fn program(archive: &Archive, package: &str, path: &str) -> Result<PathBuf> {
    let unpacked = archive.dir().join(package);
    let found = || [unpacked.join(path), unpacked.join("usr").join(path)].into_iter().find(|file| file.is_file());
    if found().is_none() {
        say::note(&format!("fetching {package}"));
        fs::create_dir_all(&unpacked)?;
        run(archive.apt("apt-get").args(["download", "-qq", package]).current_dir(&unpacked))?;
        unpack_all(&unpacked, &unpacked)?;
    }
    found().with_context(|| format!("{package} has no {path}"))
}

fn fetch_into(archive: &Archive, kernel: &Version, file: &Path, modules: &Path) -> Result<()> {
    // The kernel and its modules are in packages of their own since 7.3.
    let split = ["binary", "modules"].map(|part| format!("linux-{part}-{}", kernel.text));
    let is_there = |package: &String| output(archive.apt("apt-cache").args(["show", package])).is_ok();
    let split: Vec<String> = split.into_iter().filter(is_there).collect();
    let packages = if split.is_empty() { vec![format!("linux-image-{}", kernel.text)] } else { split };
    let unpacked = archive.dir().join("unpacked");
    fs::create_dir_all(&unpacked)?;
    for package in packages {
        say::note(&format!("fetching {package}"));
        run(archive.apt("apt-get").args(["download", "-qq", &package]).current_dir(&unpacked))?;
    }
    unpack_all(&unpacked, &unpacked)?;
    let of = |path: &str| {
        let places = ["lib", "usr/lib"].map(|lib| format!("{lib}/modules/{}/{path}", kernel.text));
        places.map(|place| unpacked.join(place)).into_iter().find(|file| file.is_file())
    };
    let vmlinuz = Some(unpacked.join(format!("boot/vmlinuz-{}", kernel.text))).filter(|file| file.is_file());
    let vmlinuz = vmlinuz.or_else(|| of("vmlinuz")).with_context(|| format!("no vmlinuz of {}", kernel.text))?;
    fs::create_dir_all(modules)?;
    for (path, name) in MODULE_FILES.iter().zip(MODULES) {
        let (plain, packed) = (of(&format!("kernel/{path}.ko")), of(&format!("kernel/{path}.ko.xz")));
        if let Some(packed) = &packed {
            run(command("xz").arg("--decompress").arg(packed))?;
        }
        if let Some(module) = plain.or_else(|| packed.map(|packed| packed.with_extension(""))) {
            fs::rename(module, modules.join(format!("{name}.ko")))?;
        }
    }
    fs::rename(vmlinuz, file)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}
