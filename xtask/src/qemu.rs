//! QEMU, by plain emulation: slow, but the same on every machine, virtual machines included.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::archive::unpack_all;
use crate::cmd::{command, run};
use crate::paths::which;
use crate::say;

/// A boot takes 3 s on an idle machine, and the scenes a minute; another architecture takes twice as long. Beside a build, the newest kernel
/// took more than ten minutes.
const RUN_MAX: Duration = Duration::from_secs(1_200);
/// The kernel passes this to the init program, which is xtask and needs the repository's directory.
const ENVIRONMENT: &str = "CARGO_MANIFEST_DIR=/xtask";

pub struct Qemu {
    arch: Arch,
    program: PathBuf,
    /// The directory of its libraries, if it is unpacked and not installed.
    libraries: Vec<PathBuf>,
}

impl Qemu {
    /// The machine's own QEMU, or Debian's unpacked into `dir`, since installing it may conflict with the machine's packages.
    pub fn get(arch: Arch, dir: &Path) -> Result<Self> {
        let name = format!("qemu-system-{}", arch.name());
        if let Some(program) = which(&name) {
            return Ok(Self { arch, program, libraries: Vec::new() });
        }
        let package = match arch {
            Arch::X86_64 => "qemu-system-x86",
            Arch::Aarch64 => "qemu-system-arm",
        };
        let program = dir.join("usr/bin").join(name);
        if !program.is_file() {
            say::note(&format!("fetching {package}"));
            let packages = dir.join("packages");
            fs::create_dir_all(packages.join("partial"))?;
            let mut archives = std::ffi::OsString::from("Dir::Cache::archives=");
            archives.push(&packages);
            run(command("apt-get")
                .args(["install", "-qq", "-y", "--download-only", "--no-install-recommends", package])
                .args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root", "-o"])
                .arg(archives))?;
            unpack_all(&packages, dir)?;
        }
        let libraries = format!("{}-linux-gnu", std::env::consts::ARCH);
        let libraries = ["usr/lib", "lib"].map(|lib| dir.join(lib).join(&libraries)).to_vec();
        Ok(Self { arch, program, libraries })
    }

    /// Boots, passes on each line of the guest's console, and returns when the guest is off.
    pub fn boot(&self, kernel: &Path, image: &Path, init: &str, mut line: impl FnMut(&str)) -> Result<()> {
        // The guest's console always counts as a terminal.
        let colours = if say::in_colours() { "" } else { "NO_COLOR=1" };
        let mut qemu = self.machine(kernel, image, &format!("quiet panic=-1 {ENVIRONMENT} {colours} -- {init}"))?;
        // Everywhere the same, also on machines without hardware virtualization.
        qemu.args(["-accel", "tcg", "-m", "1024", "-serial", "stdio"]);
        watch(qemu, RUN_MAX, &mut line)
    }

    /// A machine with two processors that boots this kernel and stays off after its end. Its accelerator, its memory and its console are
    /// still to be said.
    pub fn machine(&self, kernel: &Path, initrd: &Path, append: &str) -> Result<Command> {
        let mut qemu = command(&self.program);
        let (machine, cpu, console) = match self.arch {
            Arch::X86_64 => ("q35", "max", "ttyS0"),
            // The newest one that is emulated without pointer authentication, which takes most of the time.
            Arch::Aarch64 => ("virt", "neoverse-n1", "ttyAMA0"),
        };
        qemu.args(["-machine", machine, "-cpu", cpu, "-smp", "2"])
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", &format!("console={console} {append}")]);
        if !self.libraries.is_empty() {
            qemu.env("LD_LIBRARY_PATH", std::env::join_paths(&self.libraries)?);
        }
        Ok(qemu)
    }
}

/// Runs a machine whose console is stdout, passes on each line, and returns when it is off.
pub fn watch(qemu: Command, max: Duration, line: &mut dyn FnMut(&str)) -> Result<()> {
    let program = qemu.get_program().to_owned();
    let mut running = Running::start(qemu)?;
    let start = Instant::now();
    loop {
        match running.lines.recv_timeout(max.saturating_sub(start.elapsed())) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) => bail!("the guest did not end within {}", say::elapsed(max)),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = running.process.wait()?;
    if !status.success() {
        bail!("{} failed: {status}", program.display());
    }
    Ok(())
}

/// A QEMU that ends with this value.
struct Running {
    process: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(mut qemu: Command) -> Result<Self> {
        let mut process = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", qemu.get_program().display()))?;
        let console = process.stdout.take().context("its console is piped")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Not always UTF-8: the firmware prints too.
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { process, lines })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
