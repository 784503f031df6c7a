//! Debian's archive, read with an apt configuration of our own: nothing is installed, and the machine's sources are not changed. The
//! address is that of the machine's own configuration.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::version::Version;
use crate::cmd::{command, output, run};
use crate::paths::which;
use crate::say;

/// Releases whose cloud kernels are tried, with the newest one's updates.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];
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

    /// The kernel image. Versions vanish from the archive, so a fetched one is kept.
    pub fn fetch(&self, kernel: &Version) -> Result<PathBuf> {
        let file = self.dir.join(format!("vmlinuz-{}", kernel.text));
        if file.is_file() {
            return Ok(file);
        }
        // The file is in a package of its own since 7.3.
        let binary = format!("linux-binary-{}", kernel.text);
        let split = output(self.apt("apt-cache").args(["show", &binary])).is_ok();
        let package = if split { binary } else { format!("linux-image-{}", kernel.text) };
        say::note(&format!("fetching {package}"));
        let unpacked = self.dir.join("unpacked");
        fs::create_dir_all(&unpacked)?;
        run(self.apt("apt-get").args(["download", "-qq", &package]).current_dir(&unpacked))?;
        unpack_all(&unpacked, &unpacked)?;
        let inside = [format!("boot/vmlinuz-{}", kernel.text), format!("usr/lib/modules/{}/vmlinuz", kernel.text)];
        let found = inside.iter().map(|name| unpacked.join(name)).find(|file| file.is_file());
        fs::rename(found.with_context(|| format!("{package} has no vmlinuz"))?, &file)?;
        fs::remove_dir_all(&unpacked)?;
        Ok(file)
    }
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
