//! The scripts of a removal, in a directory instead of a machine: what they run and say for each state of that machine.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// Debian's script with what cargo-deb puts into it, and the argument of a removal.
const DEB: (&str, &str) = (include_str!("../debian/prerm"), "remove");
const RPM: (&str, &str) = (include_str!("../rpm/preun.sh"), "0");
/// As cargo-deb 3.8.0 writes it.
const DEBHELPER: &str =
    "if [ -d /run/systemd/system ] && [ \"$1\" = remove ]; then\n\tsystemctl stop pod-steer.service\nfi";
/// The directories whose files decide.
const SYSTEMD: &str = "run/systemd/system";
const PINS: &str = "sys/fs/bpf/pod-steer";
const UNIT: &str = "etc/systemd/system/pod-steer.service";

/// A machine: a directory with some files. Its commands write down their arguments.
struct Machine(PathBuf);

impl Machine {
    fn new(name: &str, paths: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("pod-steer-scripts-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for path in paths {
            match *path {
                SYSTEMD | PINS => fs::create_dir_all(dir.join(path)).unwrap(),
                file => write(&dir.join(file), ""),
            }
        }
        for command in ["pod-steer", "systemctl"] {
            write(&dir.join("commands").join(command), &format!("#!/bin/sh\necho {command} \"$@\"\n"));
        }
        Self(dir)
    }

    /// What a script prints.
    fn run(&self, (script, argument): (&str, &str)) -> String {
        let script = script.replace("#DEBHELPER#", DEBHELPER);
        let script = ["/run/", "/sys/", "/etc/", "/usr/local/"]
            .iter()
            .fold(script, |script, top| script.replace(top, &format!("{}{top}", self.0.display())));
        let path = format!("{}:/usr/bin:/bin", self.0.join("commands").display());
        let said = Command::new("sh").args(["-c", &script, "sh", argument]).env("PATH", path).output().unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8([said.stdout, said.stderr].concat()).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn removing_ends_steering() {
    let machine = Machine::new("plain", &[SYSTEMD, PINS]);
    for script in [DEB, RPM] {
        let said = machine.run(script);
        assert!(said.contains("systemctl stop pod-steer.service\npod-steer unload\n"), "{said}");
    }
    for (script, upgrade) in [(DEB.0, "upgrade"), (RPM.0, "1")] {
        assert_eq!(machine.run((script, upgrade)), "");
    }
    // A unit that is masked is not another one.
    fs::create_dir_all(machine.0.join(UNIT).parent().unwrap()).unwrap();
    symlink("/dev/null", machine.0.join(UNIT)).unwrap();
    for script in [DEB, RPM] {
        assert!(machine.run(script).contains("pod-steer unload\n"));
    }
}

#[test]
fn a_pod_steer_that_was_installed_by_hand_goes_on() {
    for (other, stops) in [(UNIT, false), ("usr/local/bin/pod-steer", true), ("usr/local/sbin/pod-steer", true)] {
        let machine = Machine::new("other", &[SYSTEMD, PINS, other]);
        for script in [DEB, RPM] {
            let said = machine.run(script);
            assert_eq!(said.contains("systemctl stop"), stops, "{other}: {said}");
            assert!(!said.contains("pod-steer unload\n") && said.contains("another pod-steer"), "{other}: {said}");
        }
    }
}

#[test]
fn steering_that_goes_on_without_systemd_is_reported() {
    let machine = Machine::new("chroot", &[PINS]);
    for script in [DEB, RPM] {
        let said = machine.run(script);
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("pod-steer: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains("restart the machine"), "{said}");
    }
    // Nothing is steered.
    let machine = Machine::new("empty", &[]);
    for script in [DEB, RPM] {
        assert!(!machine.run(script).contains("pod-steer: "));
    }
}
