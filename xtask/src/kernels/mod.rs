//! `cargo xtask kernels`: boots the oldest supported kernel, newer ones, and one that must be refused in QEMU. The outer half fetches
//! (`fetch`, `version`), makes the guest's file system (`image`) and boots it in QEMU; the guest's half (`guest`) plays the demo there.
//! Nothing is installed, and all fetched files are below `target/kernels`. Not part of `cargo xtask test`, since it needs Debian's
//! archive, and minutes.

mod bridged;
mod confined;
mod engine;
mod fetch;
mod greedy;
mod guest;
mod image;
mod sizes;
mod users;
mod version;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::archive::Archive;
use crate::qemu::Qemu;
use crate::{build, paths, say};
use fetch::Fetched;
pub use guest::{Guest, guest};
use version::Version;

/// The directory of programs in the guest.
const BUSYBOX: &str = "bin/busybox";
const NAMED_SERVER: &str = "bin/named-server";
const POD_STEER: &str = "bin/pod-steer";
/// The modules that the guest loads, in this order, unless they are built in.
const MODULES: [&str; 6] = ["llc", "stp", "bridge", "veth", "sch_ingress", "cls_bpf"];
/// The start of the guest's last line.
const VERDICT: &str = "verdict of the guest: ";

/// A kernel to try: the newest of a series, or of all.
struct Wanted {
    name: &'static str,
    series: Option<&'static [u32]>,
    /// Too old: it must be refused.
    refused: bool,
}

const WANTED: [Wanted; 4] = [
    Wanted { name: "5.10", series: Some(&[5, 10]), refused: true },
    Wanted { name: "6.1", series: Some(&[6, 1]), refused: false },
    Wanted { name: "6.12", series: Some(&[6, 12]), refused: false },
    Wanted { name: "newest", series: None, refused: false },
];

/// The result of one kernel.
enum Outcome {
    Good,
    Failed(String),
    Skipped(String),
}

/// The `kernels` task.
pub fn kernels(arch: Arch, only: &[String]) -> Result<ExitCode> {
    if let Some(other) = only.iter().find(|name| WANTED.iter().all(|wanted| wanted.name != name.as_str())) {
        bail!("no kernel `{other}`: there are {}", WANTED.map(|wanted| wanted.name).join(", "));
    }
    let is_own = Arch::own() == Some(arch);
    let dir = paths::target().join(if is_own { "kernels".to_owned() } else { format!("kernels-{}", arch.name()) });
    say::heading("building static programs");
    let image = dir.join("guest.cpio");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let programs = [("pod-steer", "pod-steer"), ("pod-steer-tests", "named-server"), ("xtask", "xtask")];
    let built = build::static_programs_for(arch, &programs)?;
    let profile = confined::compile(&dir)?;
    say::heading("fetching QEMU and lists of kernels");
    let archive = Archive::open_for(arch, dir.join("archive"), &fetch::SUITES);
    let got = archive.and_then(|archive| {
        let busybox = fetch::program(&archive, "busybox-static", BUSYBOX)?;
        Ok((Qemu::get(arch, &dir.join("qemu"))?, Programs { built, busybox, profile }, archive))
    });
    let (qemu, programs, archive) = match got {
        Ok(got) => got,
        Err(error) => return Ok(close(&[("all".to_owned(), Outcome::Skipped(format!("{error:#}")))])),
    };
    let all = fetch::kernels(&archive, arch)?;
    let mut outcomes = Vec::new();
    for wanted in WANTED.into_iter().filter(|wanted| only.is_empty() || only.iter().any(|name| name == wanted.name)) {
        let Some(kernel) = Version::newest(&all, wanted.series) else {
            outcomes.push((wanted.name.to_owned(), Outcome::Skipped("the archive has none".to_owned())));
            continue;
        };
        say::heading(&kernel.text);
        let outcome = match fetch::fetch(&archive, kernel) {
            Ok(fetched) => {
                programs.write_image(&image, &fetched)?;
                boot(&qemu, &fetched.kernel, &image, wanted.refused)
            }
            Err(error) => Outcome::Skipped(format!("not available: {error:#}")),
        };
        outcomes.push((kernel.text.clone(), outcome));
    }
    Ok(close(&outcomes))
}

/// The guest's programs.
struct Programs {
    built: PathBuf,
    busybox: PathBuf,
    /// The daemon's AppArmor profile.
    profile: PathBuf,
}

impl Programs {
    /// Writes the guest's file system, with the modules of a kernel.
    fn write_image(&self, image: &Path, kernel: &Fetched) -> Result<()> {
        let [init, pod_steer, server] = ["xtask", "pod-steer", "named-server"].map(|name| self.built.join(name));
        let mut files: Vec<(&Path, &str)> =
            vec![(&init, "init"), (&pod_steer, POD_STEER), (&server, NAMED_SERVER), (&self.busybox, BUSYBOX)];
        files.push((&self.profile, confined::PROFILE));
        files.extend(kernel.modules.iter().map(|(file, name)| (file.as_path(), name.as_str())));
        image::write(image, &files)
    }
}

fn boot(qemu: &Qemu, kernel: &Path, image: &Path, refused: bool) -> Outcome {
    let start = Instant::now();
    let mut verdict = None;
    let init = if refused { "kernels-guest --refused" } else { "kernels-guest" };
    let booted = qemu.boot(kernel, image, init, |line| match line.strip_prefix(VERDICT) {
        Some(said) => verdict = Some(said.to_owned()),
        None => println!("{line}"),
    });
    say::note(&format!("took {}", say::elapsed(start.elapsed())));
    match (booted, verdict.as_deref()) {
        (Err(error), _) => Outcome::Failed(format!("{error:#}")),
        (Ok(()), Some("ok")) => Outcome::Good,
        (Ok(()), Some(said)) => Outcome::Failed(said.to_owned()),
        (Ok(()), None) => Outcome::Failed("the guest ended without a verdict".to_owned()),
    }
}

/// Prints the result. A kernel that could not be tried counts neither as a failure nor as a success.
fn close(outcomes: &[(String, Outcome)]) -> ExitCode {
    say::heading("kernels");
    for (kernel, outcome) in outcomes {
        match outcome {
            Outcome::Good => println!("   {} {kernel}", say::green("✓")),
            Outcome::Failed(why) => println!("   {} {kernel}: {why}", say::red("✗")),
            Outcome::Skipped(why) => println!("   - {kernel}: SKIPPED: {why}"),
        }
    }
    let count = |is: fn(&Outcome) -> bool| outcomes.iter().filter(|(_, outcome)| is(outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let good = count(|outcome| matches!(outcome, Outcome::Good));
    let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
    println!("\n{good} good, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
