//! Debian's archive, read with an apt configuration of our own: nothing is installed, and the machine's sources are not changed. The
//! address is that of the machine's own configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::cmd::{command, output, run};
use crate::paths::which;
use crate::say;

/// The archive's keys, where a machine has them as a package.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Reads what these releases have for the machine. The archive's files are kept in a directory of its own.
    pub fn open(dir: PathBuf, suites: &[&str]) -> Result<Self> {
        Self::open_for(Arch::own().unwrap_or(Arch::X86_64), dir, suites)
    }

    /// The same for another architecture.
    pub fn open_for(arch: Arch, dir: PathBuf, suites: &[&str]) -> Result<Self> {
        if which("apt-get").is_none() {
            bail!("packages come from Debian's archive, by apt-get");
        }
        let archive = Self { dir };
        // An earlier xtask may have left other sources there.
        let _ = fs::remove_dir_all(archive.dir.join("sources"));
        for made in ["sources", "lists/partial", "archives/partial"] {
            fs::create_dir_all(archive.dir.join(made))
                .with_context(|| format!("cannot make {}", archive.dir.display()))?;
        }
        fs::write(archive.dir.join("apt.conf"), archive.settings(arch))?;
        fs::write(archive.dir.join("sources/suites.sources"), sources(&address()?, suites))?;
        // No package counts as installed.
        fs::write(archive.dir.join("status"), "")?;
        // apt fails for a release that has left the archive. Its packages are then not available.
        if let Err(error) = run(archive.apt("apt-get").args(["update", "-qq"])) {
            say::note(&format!("some package lists could not be read: {error:#}"));
        }
        Ok(archive)
    }

    fn settings(&self, arch: Arch) -> String {
        let (dir, arch) = (self.dir.display(), arch.debian());
        format!(
            "APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n\
             Dir::Etc::SourceList \"/dev/null\";\nDir::Etc::SourceParts \"{dir}/sources\";\n\
             Dir::State::Lists \"{dir}/lists\";\nDir::State::status \"{dir}/status\";\nDir::Cache \"{dir}\";\nDebug::NoLocking \"1\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        )
    }

    /// A program of apt that reads this archive.
    pub fn apt(&self, program: &str) -> Command {
        let mut apt = command(program);
        apt.env("APT_CONFIG", self.dir.join("apt.conf"));
        apt
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Downloads packages with all that they depend on, and unpacks them into a directory.
    pub fn unpack_with_dependencies(&self, packages: &[&str], into: &Path) -> Result<()> {
        let fetch = ["install", "-qq", "-y", "--download-only", "--no-install-recommends"];
        run(self.apt("apt-get").args(fetch).args(packages).stdout(Stdio::null()))?;
        unpack_all(&self.dir.join("archives"), into)
    }
}

/// The address of the machine's Debian archive.
pub fn address() -> Result<String> {
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

fn sources(address: &str, suites: &[&str]) -> String {
    let keys = if Path::new(KEYS).is_file() { format!("Signed-By: {KEYS}\n") } else { String::new() };
    let source = |suite| format!("Types: deb\nURIs: {address}\nSuites: {suite}\nComponents: main\n{keys}");
    suites.iter().map(source).collect::<Vec<_>>().join("\n")
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
        assert_eq!(sources("a://b/", &["one", "two"]).matches("URIs: a://b/\n").count(), 2);
    }
}
