//! `cargo xtask vm`: a Debian in QEMU with its own kernel, systemd, Docker and this build of pod-steer (`disk`). Its console plays the demo
//! (`tour.sh`) and is a shell afterwards. What is written to the disk ends with the machine; the Debian is kept below `target/vm`.

mod disk;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::cmd::shown;
use crate::qemu::{Qemu, watch};
use crate::{build, paths, say};

/// The line of the console that tells how the demo has ended.
const VERDICT: &str = "verdict of the machine: ";
/// The word on the kernel's command line that has the machine switched off after the demo.
const CHECK: &str = "pod-steer.check";
/// With plain emulation, the boot takes one to two minutes, and the demo as long.
const CHECK_MAX: Duration = Duration::from_secs(1_200);

/// The `vm` task.
pub fn vm(check: bool, kvm: bool) -> Result<ExitCode> {
    let arch = Arch::own().context("there is no machine for this architecture")?;
    let dir = paths::target().join("vm");
    say::heading("building static programs");
    let programs = [("pod-steer", "pod-steer"), ("pod-steer-tests", "named-server"), ("xtask", "xtask")];
    let built = build::static_programs(&programs)?;
    let debian = disk::debian(arch, &dir)?;
    let qemu = Qemu::get(arch, &dir.join("qemu"))?;
    say::heading("writing the disk");
    let image = disk::write(&debian, &built, &dir)?;
    say::heading("booting");
    let mut machine = qemu.machine(&debian.kernel, &debian.initrd, if check { CHECK } else { "quiet" })?;
    with_devices(&mut machine, &image, kvm);
    if check { checked(machine) } else { used(machine) }
}

/// The disk, whose changes are dropped, and a network with nothing but this machine's own way out.
fn with_devices(machine: &mut Command, image: &Path, kvm: bool) {
    if !kvm {
        say::note("the processor is emulated; --kvm is ten times faster where it works");
    }
    let drive = format!("if=virtio,format=raw,snapshot=on,file={}", image.display());
    machine.args(["-accel", if kvm { "kvm" } else { "tcg" }, "-m", "2048", "-drive", &drive]).args([
        "-netdev",
        "user,id=net",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ]);
}

/// Its console is this terminal.
fn used(mut machine: Command) -> Result<ExitCode> {
    say::note("`poweroff` ends the machine, and Ctrl-A X at once");
    machine.args(["-serial", "mon:stdio"]);
    let status = machine.status().with_context(|| format!("cannot start `{}`", shown(&machine)))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows its console, and takes the verdict of the demo.
fn checked(mut machine: Command) -> Result<ExitCode> {
    machine.args(["-serial", "stdio"]);
    let mut verdict = None;
    watch(machine, CHECK_MAX, &mut |line| match line.strip_prefix(VERDICT) {
        Some(said) => verdict = Some(said.to_owned()),
        None => println!("{line}"),
    })?;
    match verdict.as_deref() {
        Some("ok") => Ok(ExitCode::SUCCESS),
        Some(said) => bail!("in the machine: {said}"),
        None => bail!("the machine ended without a verdict"),
    }
}
