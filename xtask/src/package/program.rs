//! The program as one static file: linked with musl, optimized as a whole, and with the list of its dependencies inside
//! (`cargo auditable`), which scanners read.
//!
//! Rust's own libraries are built with it, for size: the ones that rustup installs are built for speed, and have 3 kB of code for each type
//! that a program sorts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::elf::{DT_NEEDED, FileHeader64, PT_DYNAMIC, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Endianness, pod};

use super::dir;
use crate::arch::Arch;
use crate::cmd::{cargo, output, run};
use crate::{paths, say, setup};

/// The profile in Cargo.toml.
const PROFILE: &str = "dist";
/// The program is smaller than this.
const BYTES_MAX: u64 = 10_000_000;
const AUDITABLE_VERSION: &str = "0.7.7";
/// Rust's own libraries: built with the program, for size, and without the reader of debug information, of which the program has none.
const STD: [&str; 4] = ["-Z", "build-std=std,panic_unwind", "-Z", "build-std-features=optimize_for_size,panic-unwind"];
/// Has the linker keep one of several functions with the same instructions.
const ONE_OF_EACH: &str = "-Clink-arg=--icf=all";
/// The section in which `cargo auditable` puts its list.
const DEPENDENCIES: &str = ".dep-v0";

/// Builds the program for the machine, checks it, prints its size, and returns its path.
pub fn build() -> Result<PathBuf> {
    build_for(Arch::own().context("pod-steer is packaged on x86-64 and aarch64")?)
}

/// The same for another architecture.
pub fn build_for(arch: Arch) -> Result<PathBuf> {
    setup::ensure()?;
    let target = arch.musl();
    setup::ensure_target(&target)?;
    setup::ensure_tool(
        "cargo-auditable",
        AUDITABLE_VERSION,
        "it puts the list of dependencies into the program; takes half a minute, once",
    )?;
    let build = ["auditable", "build", "--locked", "--package", "pod-steer", "--profile", PROFILE, "--target", &target];
    // Building Rust's own libraries is an unstable feature of a stable compiler.
    let mut cargo = cargo();
    cargo.args(build).args(STD).env("RUSTC_BOOTSTRAP", "1").envs([arch.build_env()]);
    let flags: Vec<String> = short_paths()?.into_iter().chain([ONE_OF_EACH.to_owned()]).collect();
    run(cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")))?;
    let built = paths::target().join(&target).join(PROFILE).join("pod-steer");
    let contents = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let bytes = check(&contents).with_context(|| format!("{} is not to be shipped", built.display()))?;
    let name = if Arch::own() == Some(arch) { "pod-steer".to_owned() } else { format!("pod-steer-{}", arch.name()) };
    let program = dir()?.join(name);
    fs::copy(&built, &program).with_context(|| format!("cannot write {}", program.display()))?;
    say::note(&format!(
        "{}: {} bytes of {} allowed, static, with the list of its dependencies",
        shown(&program),
        say::thousands(bytes),
        say::thousands(BYTES_MAX)
    ));
    Ok(program)
}

/// Flags by which the program names source files without the directories of this machine. Their names take 40 kB otherwise.
fn short_paths() -> Result<Vec<String>> {
    let mut rustc = Command::new("rustc");
    let sysroot = output(rustc.args(["--print", "sysroot"]).current_dir(paths::root()))?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home =
        home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("neither CARGO_HOME nor HOME is set")?;
    let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let mut long: Vec<PathBuf> = registries.map(|entry| entry.path()).collect();
    long.push(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library"));
    Ok(long.into_iter().map(|from| format!("--remap-path-prefix={}=", from.display())).collect())
}

/// A path below the top of the repository, as a user would name it there.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(paths::root()).unwrap_or(path).display().to_string()
}

/// Checks the program, and returns its size.
fn check(program: &[u8]) -> Result<u64> {
    let bytes = program.len() as u64;
    if bytes >= BYTES_MAX {
        bail!("it has {} bytes; the limit is {}", say::thousands(bytes), say::thousands(BYTES_MAX));
    }
    let elf = Elf::parse(program)?;
    if elf.has_interpreter {
        bail!("it is not static: it names a dynamic linker");
    }
    if elf.needs_libraries {
        bail!("it is not static: it needs shared libraries");
    }
    if !elf.sections.iter().any(|name| name == DEPENDENCIES) {
        bail!("it lacks the list of its dependencies (the section {DEPENDENCIES})");
    }
    Ok(bytes)
}

/// What is read of the program's headers.
#[derive(Debug)]
struct Elf {
    has_interpreter: bool,
    needs_libraries: bool,
    sections: Vec<String>,
}

impl Elf {
    fn parse(program: &[u8]) -> Result<Self> {
        let read = "the program's ELF headers cannot be read";
        let (header, _) = pod::from_bytes::<FileHeader64<Endianness>>(program).ok().context(read)?;
        let endian = header.endian().context(read)?;
        let (mut has_interpreter, mut needs_libraries) = (false, false);
        for segment in header.program_headers(endian, program).context(read)? {
            has_interpreter |= segment.p_type(endian) == PT_INTERP;
            // A static program that may be loaded anywhere has this segment too, without names of libraries.
            if segment.p_type(endian) == PT_DYNAMIC {
                let entries = segment.dynamic(endian, program).context(read)?.unwrap_or_default();
                needs_libraries |= entries.iter().any(|entry| entry.d_tag.get(endian) == DT_NEEDED);
            }
        }
        let sections = header.sections(endian, program).context(read)?;
        let names = sections.iter().filter_map(|section| sections.section_name(endian, section).ok());
        let names = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        Ok(Self { has_interpreter, needs_libraries, sections: names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        // This test's own program.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&own).unwrap();
        assert!(
            elf.has_interpreter && elf.needs_libraries && elf.sections.iter().any(|name| name == ".text"),
            "{elf:?}"
        );
        assert!(Elf::parse(b"\x7fELF").is_err() && check(&[]).is_err());
        let long = vec![0; BYTES_MAX as usize];
        assert!(check(&long).unwrap_err().to_string().contains("10,000,000"));
    }
}
