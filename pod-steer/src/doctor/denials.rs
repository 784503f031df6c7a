//! What AppArmor or SELinux has denied to pod-steer, from the kernel's log. A denied system call fails like any other with `EACCES`, and only
//! the log names the cause.
#![forbid(unsafe_code)]

use std::{fs, io, path::Path};

use rustix::fs::{Mode, OFlags};

use super::Finding;
use crate::text::shown;

const WHAT: &str = "security module";
/// A record of `/dev/kmsg` is not longer (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES_MAX: usize = 8192;
/// More records than a log buffer holds: a log that is written meanwhile must end too.
const RECORDS_MAX: usize = 1 << 18;
/// Maximum length of a denial that is shown.
const SHOWN_CHARS_MAX: usize = 200;

/// The denials of one module.
#[derive(Debug, Default, PartialEq, Eq)]
struct Denials {
    count: usize,
    /// The last one, as the module describes it.
    last: String,
}

impl Denials {
    fn add(&mut self, told: &str) {
        self.count += 1;
        told.clone_into(&mut self.last);
    }
}

/// Whether a security module confines programs on this machine, and what it has denied to this one.
pub(super) fn finding() -> Finding {
    let is_on = |path: &str| fs::read_to_string(path).is_ok_and(|text| text.starts_with('Y'));
    let modules: Vec<&str> = [
        ("AppArmor", is_on("/sys/module/apparmor/parameters/enabled")),
        ("SELinux", Path::new("/sys/fs/selinux/enforce").exists()),
    ]
    .into_iter()
    .filter_map(|(name, is_on)| is_on.then_some(name))
    .collect();
    if modules.is_empty() {
        return Finding::good(WHAT, "neither AppArmor nor SELinux is on");
    }
    judge(&modules.join(" and "), records().as_deref())
}

fn judge(modules: &str, records: Result<&[String], &io::Error>) -> Finding {
    let records = match records {
        Ok(records) => records,
        Err(error) => {
            return Finding::good(
                WHAT,
                format!("{modules}; denials are not known: the kernel's log cannot be read: {error}"),
            );
        }
    };
    let mut denials = Denials::default();
    records.iter().filter_map(|record| denial(record)).for_each(|told| denials.add(told));
    let Denials { count, last } = denials;
    let last_shown = shown(&last, SHOWN_CHARS_MAX);
    let found = match count {
        0 => return Finding::good(WHAT, format!("{modules}; the kernel's log has no denial of pod-steer")),
        1 => format!("{modules}; the kernel's log has a denial of pod-steer: {last_shown}"),
        _ => format!("{modules}; the kernel's log has {count} denials of pod-steer, the last one: {last_shown}"),
    };
    Finding::advice(WHAT, found, remedy(&last))
}

/// The part of a record of the kernel's log that describes a denial, if it is one of pod-steer.
fn denial(record: &str) -> Option<&str> {
    if let Some((_, told)) = record.split_once("apparmor=\"DENIED\" ") {
        let is_ours = told.contains(" profile=\"pod-steer") || told.contains(" comm=\"pod-steer\"");
        return is_ours.then_some(told.trim_end());
    }
    let (_, told) = record.split_once("avc:  denied  ")?;
    let is_ours = told.contains(":pod_steer_t:") || told.contains(" comm=\"pod-steer\"");
    // With `permissive=1` the kernel reports what it would have denied.
    (is_ours && !told.contains("permissive=1")).then_some(told.trim_end())
}

fn remedy(denied: &str) -> &'static str {
    if denied.starts_with("operation=\"ptrace\"") {
        "the container's own profile forbids it: run the daemon without a profile, or see \"AppArmor\" in docs/security.md"
    } else if denied.starts_with("operation=") {
        "allow it in /etc/apparmor.d/local/pod-steer, or in the profile that is named here"
    } else {
        "allow it with audit2allow(1), or see \"SELinux\" in docs/security.md"
    }
}

/// The records of the kernel's log.
fn records() -> io::Result<Vec<String>> {
    let log = rustix::fs::open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let (mut records, mut buffer) = (Vec::new(), vec![0; RECORD_BYTES_MAX]);
    for _ in 0..RECORDS_MAX {
        match rustix::io::read(&log, &mut buffer) {
            // Only lines that may be denials: a log may have megabytes.
            Ok(length) => {
                let record = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                if record.contains("apparmor=") || record.contains("avc:") {
                    records.push(record.into_owned());
                }
            }
            // The record was overwritten meanwhile; the next read continues with the oldest.
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTRACE: &str = "5,901,77,-;audit: type=1400 audit(1.2:3): apparmor=\"DENIED\" operation=\"ptrace\" class=\"ptrace\" \
                          profile=\"pod-steer\" pid=7 comm=\"pod-steer\" requested_mask=\"read\" denied_mask=\"read\" \
                          peer=\"docker-default\"\n";
    const AVC: &str = "5,902,78,-;audit: type=1400 audit(1.2:4): avc:  denied  { prog_load } for  pid=7 comm=\"pod-steer\" \
                       scontext=system_u:system_r:init_t:s0 tclass=bpf permissive=0\n";

    fn judged(records: &[&str]) -> Finding {
        judge("AppArmor", Ok(&records.iter().map(|record| (*record).to_owned()).collect::<Vec<_>>()))
    }

    #[test]
    fn a_denial_is_named_with_its_remedy() {
        let finding = judged(&[AVC, PTRACE]);
        assert!(!finding.ok && !finding.required);
        assert!(
            finding.found.contains("operation=\"ptrace\"") && finding.found.contains("docker-default"),
            "{finding}"
        );
        assert!(finding.remedy.contains("container's own profile"), "{finding}");
        let finding = judged(&[AVC]);
        assert!(
            finding.found.contains("a denial of pod-steer: { prog_load }") && finding.remedy.contains("audit2allow"),
            "{finding}"
        );
        let file = PTRACE.replace("operation=\"ptrace\"", "operation=\"open\"");
        assert!(judged(&[&file]).remedy.contains("/etc/apparmor.d/local/pod-steer"));
    }

    #[test]
    fn denials_of_other_programs_and_of_a_permissive_domain_do_not_count() {
        let other = PTRACE.replace("pod-steer", "other");
        let permissive = AVC.replace("permissive=0", "permissive=1");
        let finding = judged(&[&other, &permissive, "6,1,1,-;something else\n"]);
        assert!(finding.ok && finding.found.contains("no denial"), "{finding}");
        let unreadable = judge("AppArmor", Err(&io::Error::other("no")));
        assert!(unreadable.ok && unreadable.found.ends_with("cannot be read: no"), "{unreadable}");
    }

    #[test]
    fn the_log_of_this_machine_is_read_to_its_end() {
        // Without the privilege it is an error; with it, every record that is kept may be a denial.
        if let Ok(records) = records() {
            assert!(records.iter().all(|record| record.contains("apparmor=") || record.contains("avc:")));
        }
    }
}
