//! Debian's archive, read with an apt configuration of our own: nothing is installed, and the machine's sources are not changed. The
//! address is that of the machine's own configuration.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::MODULES;
use super::version::Version;
use crate::cmd::{command, output, run};
use crate::paths::which;
use crate::say;

/// Releases whose cloud kernels are tried, with the newest one's updates.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];
/// Where a kernel's package has the [`MODULES`].
const MODULE_FILES: [&str; MODULES.len()] = [
    "net/llc/llc",
    "net/802/stp",
    "net/bridge/bridge",
    "drivers/net/veth",
    "net/sched/sch_ingress",
    "net/sched/cls_bpf",
];
/// The archive's keys, where a machine has them as a package.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Reads what the archive has.
    pub fn open(dir: PathBuf) -> Result<Self> {
        if which("apt-get").is_none() || ARCH != "x86_64" {
            bail!("kernels come from Debian's archive by apt-get, and for x86-64");
        }
        let archive = Self { dir };
        for made in ["sources", "lists/partial", "archives/partial"] {
            fs::create_dir_all(archive.dir.join(made))
                .with_context(|| format!("cannot make {}", archive.dir.display()))?;
        }
        fs::write(archive.dir.join("apt.conf"), archive.settings())?;
        fs::write(archive.dir.join("sources/kernels.sources"), sources(&address()?))?;
        // apt fails for a release that has left the archive. Its kernel is then not available.
        if let Err(error) = run(archive.apt("apt-get").args(["update", "-qq"])) {
            say::note(&format!("some package lists could not be read: {error:#}"));
        }
        Ok(archive)
    }

    fn settings(&self) -> String {
        let dir = self.dir.display();
        format!(
            "Dir::Etc::SourceList \"/dev/null\";\nDir::Etc::SourceParts \"{dir}/sources\";\n\
             Dir::State::Lists \"{dir}/lists\";\nDir::Cache \"{dir}\";\nDebug::NoLocking \"1\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        )
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = command(program);
        apt.env("APT_CONFIG", self.dir.join("apt.conf"));
        apt
    }

    /// Every cloud kernel there is.
    pub fn kernels(&self) -> Result<Vec<Version>> {
        let names = output(self.apt("apt-cache").args(["pkgnames", "linux-image-"]))?;
        Ok(names.lines().filter_map(Version::of_package).collect())
    }

    /// The kernel with its modules. Versions vanish from the archive, so a fetched one is kept.
    pub fn fetch(&self, kernel: &Version) -> Result<Fetched> {
        let file = self.dir.join(format!("vmlinuz-{}", kernel.text));
        let modules = self.dir.join(format!("modules-{}", kernel.text));
        if !file.is_file() || !modules.is_dir() {
            self.fetch_into(kernel, &file, &modules)?;
        }
        let found = MODULES.map(|name| (modules.join(format!("{name}.ko")), format!("modules/{name}.ko")));
        Ok(Fetched { kernel: file, modules: found.into_iter().filter(|(file, _)| file.is_file()).collect() })
    }

    fn fetch_into(&self, kernel: &Version, file: &Path, modules: &Path) -> Result<()> {
        // The kernel and its modules are in packages of their own since 7.3.
        let split = ["binary", "modules"].map(|part| format!("linux-{part}-{}", kernel.text));
        let is_there = |package: &String| output(self.apt("apt-cache").args(["show", package])).is_ok();
        let split: Vec<String> = split.into_iter().filter(is_there).collect();
        let packages = if split.is_empty() { vec![format!("linux-image-{}", kernel.text)] } else { split };
        let unpacked = self.dir.join("unpacked");
        fs::create_dir_all(&unpacked)?;
        for package in packages {
            say::note(&format!("fetching {package}"));
            run(self.apt("apt-get").args(["download", "-qq", &package]).current_dir(&unpacked))?;
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
}

/// A kernel in files.
pub struct Fetched {
    pub kernel: PathBuf,
    /// Modules that are not built in, each with its path in the guest, in the order in which they are loaded.
    pub modules: Vec<(PathBuf, String)>,
}

/// The address of the machine's Debian archive.
fn address() -> Result<String> {
    let format = "$(ORIGIN) $(CODENAME) $(REPO_URI)";
    let known = output(command("apt-get").args(["indextargets", "--format", format, "Identifier: Packages"]))?;
    let address = main_archive(&known).context("apt has no list of a Debian release: run `apt-get update` as root")?;
    Ok(address.to_owned())
}

/// Skips the archive of security updates.
fn main_archive(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        ["Debian", codename, address] if !codename.contains('-') => Some(address),
        _ => None,
    })
}

fn sources(address: &str) -> String {
    let keys = if Path::new(KEYS).is_file() { format!("Signed-By: {KEYS}\n") } else { String::new() };
    SUITES.map(|suite| format!("Types: deb\nURIs: {address}\nSuites: {suite}\nComponents: main\n{keys}")).join("\n")
}

/// Unpacks the packages of one directory into another without installing them.
pub fn unpack_all(packages: &Path, into: &Path) -> Result<()> {
    for entry in fs::read_dir(packages)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            run(command("dpkg-deb").arg("--extract").arg(&file).arg(into))?;
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_the_one_of_a_release() {
        let targets =
            "Debian bookworm-security a://b/security/\nOther bookworm a://c/\nDebian bookworm a://b/debian/\n";
        assert_eq!(main_archive(targets), Some("a://b/debian/"));
        assert_eq!(main_archive(""), None);
        assert_eq!(sources("a://b/").matches("URIs: a://b/\n").count(), SUITES.len());
    }
}
