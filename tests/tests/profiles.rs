//! The profiles of security modules: AppArmor's and SELinux's own compilers accept them. `cargo xtask kernels` runs the daemon below the
//! former.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use pod_steer_tests::{host::Host, process::output, require, tools};

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

#[test]
fn apparmor_accepts_its_profile() -> Result<()> {
    require!(tools::root_and(&["apparmor_parser"]));
    let mut parser = Command::new("apparmor_parser");
    // For the features of a kernel that has AppArmor, whichever runs here.
    parser.args(["--skip-kernel-load", "--skip-cache", "--warn=all", "-M", "/etc/apparmor.d/abi/3.0"]);
    let parsed = output(parser.arg(packaging().join("apparmor/pod-steer")))?;
    let said = String::from_utf8_lossy(&parsed.stderr);
    let warnings: Vec<&str> = said.lines().filter(|line| !line.starts_with("Cache read/write disabled")).collect();
    ensure!(parsed.status.success() && warnings.is_empty(), "{said}");
    Ok(())
}

#[test]
fn selinux_accepts_its_module() -> Result<()> {
    require!(tools::root_and(&["checkmodule", "semodule_package"]));
    let host = Host::new()?;
    let [module, package] = ["pod_steer.mod", "pod_steer.pp"].map(|name| host.dir().join(name));
    let source = packaging().join("selinux");
    for (program, arguments) in [
        ("checkmodule", vec!["-M".into(), "-m".into(), "-o".into(), module.clone(), source.join("pod_steer.te")]),
        (
            "semodule_package",
            vec!["-o".into(), package.clone(), "-m".into(), module, "-f".into(), source.join("pod_steer.fc")],
        ),
    ] {
        let done = output(Command::new(program).args(arguments))?;
        ensure!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    }
    ensure!(package.metadata()?.len() > 0, "the package is empty");
    Ok(())
}
