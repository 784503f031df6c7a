//! The daemon pins in the configured directory only, and refuses one that other users could change.

use std::{fs, process::Output};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    host::Host,
    process::{output, run},
    require, tools, wait,
};

/// Runs a shell script in the host, in a mount namespace of its own; `$0` is pod-steer.
fn script(host: &Host, script: &str) -> Result<Output> {
    let mut command = host.command("unshare")?;
    command.args(["--mount", "sh", "-ec", script]).arg(tools::pod_steer()?).env("NO_COLOR", "1");
    output(&mut command)
}

fn said(outcome: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr))
}

/// Shell commands that make a directory unfit, the directory, and parts of the error.
const UNFIT: [(&str, &str, &[&str]); 6] = [
    (
        // A bpffs that another program has mounted elsewhere is not used.
        "umount /sys/fs/bpf && mkdir -p /run/other && mount -t bpf bpf /run/other",
        "/sys/fs/bpf/pod-steer",
        &["`/sys/fs/bpf/pod-steer` is not on a BPF file system", "mount -t bpf bpf /sys/fs/bpf"],
    ),
    (
        "mkdir -p /run/other/bpf && mount -t bpf bpf /run/other/bpf && chown 1000 /run/other",
        "/run/other/bpf/pod-steer",
        &["`/run/other` belongs to user 1000", "--bpffs"],
    ),
    (
        // The kernel's default mode lets any user create it first.
        "mkdir /sys/fs/bpf/pod-steer && chown 1000 /sys/fs/bpf/pod-steer",
        "/sys/fs/bpf/pod-steer",
        &["`/sys/fs/bpf/pod-steer` belongs to user 1000", "chown root /sys/fs/bpf/pod-steer"],
    ),
    (
        "mkdir /sys/fs/bpf/pod-steer && chmod 777 /sys/fs/bpf/pod-steer",
        "/sys/fs/bpf/pod-steer",
        &["`/sys/fs/bpf/pod-steer` is writable by other users (mode 0777)", "chmod go-w /sys/fs/bpf/pod-steer"],
    ),
    (
        "chmod 0777 /sys/fs/bpf",
        "/sys/fs/bpf/pod-steer",
        &["`/sys/fs/bpf` is writable by other users (mode 0777)", "chmod go-w /sys/fs/bpf"],
    ),
    (
        "mkdir /sys/fs/bpf/real && ln -s /sys/fs/bpf/real /sys/fs/bpf/pod-steer",
        "/sys/fs/bpf/pod-steer",
        &["`/sys/fs/bpf/pod-steer` is not a directory"],
    ),
];

#[test]
fn a_directory_that_others_could_change_is_refused() -> Result<()> {
    require!(tools::root_and(&["unshare", "ip", "mount"]));
    for (prepare, bpffs, wanted) in UNFIT {
        for command in ["doctor --engine none", "run --engine none --runtime-dir /run/pod-steer --state-dir /run/state"]
        {
            let host = Host::new()?;
            let outcome = script(&host, &format!("{prepare}; exec \"$0\" {command} --bpffs {bpffs}"))?;
            let said = said(&outcome);
            assert_eq!(outcome.status.code(), Some(1), "{prepare}; {command}: {said}");
            ensure!(wanted.iter().all(|wanted| said.contains(wanted)), "{prepare}; {command}: {said}");
            ensure!(!host.path("/run/pod-steer/api.sock").exists(), "nothing was begun");
        }
    }
    Ok(())
}

#[test]
fn doctor_names_the_configured_directory() -> Result<()> {
    require!(tools::root_and(&["unshare", "ip", "mount"]));
    let host = Host::new()?;
    let settings = host.dir().join("settings.toml");
    fs::write(&settings, "bpffs = '/run/bpf/pins'\nengine = ['none']\n")?;
    run(host.command("sh")?.args(["-c", "mkdir /run/bpf && mount -t bpf bpf /run/bpf"]))?;
    for (how, wanted) in [
        ("doctor --engine none".to_owned(), "/sys/fs/bpf/pod-steer, on the one mounted at /sys/fs/bpf"),
        (format!("doctor --config {}", settings.display()), "/run/bpf/pins, on the one mounted at /run/bpf"),
    ] {
        let outcome = script(&host, &format!("exec \"$0\" {how}"))?;
        ensure!(outcome.status.success() && said(&outcome).contains(wanted), "{how}: {}", said(&outcome));
    }
    Ok(())
}

#[test]
fn unload_takes_the_directory_of_the_settings_and_no_other() -> Result<()> {
    require!(tools::root_and(&["ip", "mount"]));
    let host = Host::new()?;
    run(host.command("sh")?.args(["-c", "mkdir /run/bpf && mount -t bpf bpf /run/bpf"]))?;
    let settings = host.dir().join("settings.toml");
    let state = host.dir().join("state");
    let text = format!(
        "bpffs = '/run/bpf/pins'\nruntime-dir = '/run/elsewhere'\nstate-dir = '{}'\nengine = ['none']\n",
        state.display()
    );
    fs::write(&settings, text)?;
    let mut command = host.command(tools::pod_steer()?)?;
    let mut daemon = host.start("daemon", command.args(["run", "--config"]).arg(&settings))?;
    wait::until_ok("the daemon to be ready", || {
        ensure!(!daemon.has_ended()?, "{}", daemon.stderr());
        let mut status = host.command(tools::pod_steer()?)?;
        let answer = output(status.args(["status", "--socket", "/run/elsewhere/api.sock"]))?;
        Ok(answer.status.success().then_some(()))
    })?;
    daemon.kill()?;
    ensure!(host.path("/run/bpf/pins/maps").exists(), "it pins in the configured directory");
    run(host.command(tools::pod_steer()?)?.args(["unload", "--config"]).arg(&settings))?;
    for left in ["/run/bpf/pins", "/run/elsewhere"] {
        ensure!(!host.path(left).exists(), "{left} is left");
    }
    ensure!(!state.exists(), "the decisions are left");

    // Ordinary files with the names of pins.
    let files = host.dir().join("files");
    fs::create_dir_all(files.join("netns"))?;
    fs::write(files.join("netns/4026531840"), "")?;
    let refused = output(host.command(tools::pod_steer()?)?.args(["unload", "--bpffs"]).arg(&files))?;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    ensure!(said(&refused).contains("is not on a BPF file system"), "{refused:?}");
    ensure!(files.join("netns/4026531840").exists(), "nothing was removed");
    Ok(())
}
