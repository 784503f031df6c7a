//! Checks of this machine's requirements. Each missing feature is reported with its minimum kernel version and the remedy. `pod-steer
//! doctor` prints all checks; `pod-steer run` makes the same ones and fails with the same messages.

mod denials;

use std::{fmt, fs, path::Path};

use crate::{bpffs, caps, cgroups, config::RunConfig, engine, kernel};

/// Oldest kernel that is supported: the first whose bind hook may set `SO_REUSEPORT`.
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// One requirement, and whether it is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The requirement.
    pub what: String,
    /// Whether it is met.
    pub ok: bool,
    /// Whether the daemon can run without it.
    pub required: bool,
    /// The result of the check.
    pub found: String,
    /// The remedy if it is not met.
    pub remedy: String,
}

impl Finding {
    fn good(what: &str, found: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: true, required: true, found: found.into(), remedy: String::new() }
    }

    fn bad(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: false, required: true, found: found.into(), remedy: remedy.into() }
    }

    fn advice(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { required: false, ..Self::bad(what, found, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.found)?;
        if !self.ok { write!(f, "; {}", self.remedy) } else { Ok(()) }
    }
}

/// The checks that are quick, and that `run` makes before it changes anything.
pub fn required(bpffs_dir: &Path) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![kernel_version(&release), capabilities(), btf(), cgroup2(), bpffs(bpffs_dir)]
}

/// Every check of what these settings need.
pub fn examine(config: &RunConfig) -> Vec<Finding> {
    let mut findings = required(&config.bpffs);
    if findings.iter().all(|finding| finding.ok) {
        findings.extend(programs());
        findings.push(trace());
        findings.push(judge());
        findings.push(peer());
        findings.push(hook());
    }
    findings.extend(settings());
    findings.push(denials::finding());
    findings.extend(engines(&config.engines));
    findings
}

/// Checks the kernel version. A program that loads proves nothing: 5.10 loads a migrate program and does not migrate.
fn kernel_version(release: &str) -> Finding {
    const WHAT: &str = "kernel";
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    let (min_major, min_minor) = KERNEL_MIN;
    match version {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => Finding::good(WHAT, release),
        (Some(_), Some(_)) => Finding::bad(
            WHAT,
            format!("{release} is unsupported: its bind hook cannot set SO_REUSEPORT"),
            format!("boot Linux {min_major}.{min_minor} or later"),
        ),
        _ => Finding::bad(WHAT, format!("cannot parse the kernel version `{release}`"), "report this"),
    }
}

fn capabilities() -> Finding {
    const WHAT: &str = "capabilities";
    match caps::missing() {
        Ok(missing) if missing.is_empty() => Finding::good(WHAT, "all that are needed"),
        Ok(missing) => {
            let list: Vec<String> = missing.iter().map(|(name, purpose)| format!("{name} ({purpose})")).collect();
            Finding::bad(WHAT, format!("missing {}", list.join(", ")), "run this as root, or grant them")
        }
        Err(error) => Finding::bad(WHAT, format!("cannot be read: {error}"), "run this as root"),
    }
}

fn btf() -> Finding {
    const WHAT: &str = "BTF";
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(PATH).exists() {
        return Finding::good(WHAT, PATH);
    }
    Finding::bad(WHAT, format!("{PATH} is missing"), "boot a kernel with CONFIG_DEBUG_INFO_BTF=y (Linux 5.2)")
}

fn cgroup2() -> Finding {
    const WHAT: &str = "cgroup v2";
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match cgroups::mount_point(&mountinfo) {
        Some(at) => Finding::good(WHAT, format!("mounted at {}", at.display())),
        None => Finding::bad(WHAT, "not mounted", "mount it: mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

fn bpffs(dir: &Path) -> Finding {
    const WHAT: &str = "bpffs";
    match bpffs::check(dir) {
        Ok(mount) => Finding::good(WHAT, format!("{}, on the one mounted at {}", dir.display(), mount.display())),
        Err(error) => Finding::bad(WHAT, error.found(), error.remedy()),
    }
}

fn programs() -> Vec<Finding> {
    let needs = |name| match name {
        "steer" => "sk_lookup (Linux 5.9)",
        "migrate" => "sk_reuseport/migrate (Linux 5.14)",
        "bind4" => "cgroup/bind4 with SO_REUSEPORT (Linux 6.1)",
        "bind6" => "cgroup/bind6 with SO_REUSEPORT (Linux 6.1)",
        kernel::TABLES => "inner maps of any size (Linux 5.10)",
        "getsockname4" => "cgroup/getsockname4 (Linux 5.8)",
        "post_bind4" => "cgroup/post_bind4 (Linux 4.17)",
        "post_bind6" => "cgroup/post_bind6 (Linux 4.17)",
        "getsockname6" => "cgroup/getsockname6 (Linux 5.8)",
        "refuse_mptcp" => "cgroup/sock_create (Linux 4.10)",
        "from_wire" | "from_bridge" | "from_tunnel" | "to_wire" | "to_tunnel" | "from_pair" => {
            "sched_cls with bpf_skc_lookup_tcp and bpf_loop (Linux 5.17)"
        }
        _ => "sockops with bpf_get_netns_cookie (Linux 5.15)",
    };
    let what = |name: &str| if name == kernel::TABLES { name.to_owned() } else { format!("program {name}") };
    match kernel::probe() {
        Ok(probed) => probed
            .into_iter()
            .map(|program| match (what(program.name), program.result) {
                (what, Ok(())) => Finding::good(&what, needs(program.name)),
                (what, Err(error)) => {
                    let found = crate::chain(&error);
                    let remedy = format!("it needs {}", needs(program.name));
                    // Only containers behind a bridge need these.
                    if kernel::FORWARDERS.contains(&program.name) {
                        Finding::advice(&what, found, remedy)
                    } else {
                        Finding::bad(&what, found, remedy)
                    }
                }
            })
            .collect(),
        Err(error) => vec![Finding::bad("kernel programs", crate::chain(&error), "fix the cause shown here")],
    }
}

/// Only one command needs these.
fn trace() -> Finding {
    const WHAT: &str = "programs of trace";
    match kernel::trace::probe() {
        Ok(()) => Finding::good(WHAT, "sk_lookup and sched_cls with bpf_skc_to_tcp_sock (Linux 5.11)"),
        Err(error) => Finding::advice(WHAT, crate::chain(&error), "without them `pod-steer trace` does not run"),
    }
}

/// Only a canary that compares versions needs these.
fn judge() -> Finding {
    const WHAT: &str = "programs of canary --judge";
    match kernel::observer::probe() {
        Ok(()) => Finding::good(WHAT, "cgroup_skb with bpf_sk_storage_get (Linux 5.2)"),
        Err(error) => {
            Finding::advice(WHAT, crate::chain(&error), "without them `pod-steer canary` does not compare versions")
        }
    }
}

/// Only containers that ask for it need this.
fn peer() -> Finding {
    const WHAT: &str = "pod-steer.via=peer";
    match kernel::peer_refused() {
        None => Finding::good(WHAT, "the kernel has the fix of CVE-2025-37959"),
        Some(why) => Finding::advice(WHAT, why, "boot a kernel with the fix; until then packets are forwarded"),
    }
}

fn settings() -> Vec<Finding> {
    let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).map(|text| text.trim().to_owned());
    let mut findings = Vec::new();
    if let Ok(jit) = sysctl("net/core/bpf_jit_enable") {
        findings.push(if jit == "0" {
            Finding::advice("BPF JIT", "off: every decision takes longer", "sysctl -w net.core.bpf_jit_enable=1")
        } else {
            Finding::good("BPF JIT", "on")
        });
    }
    findings
}

/// How programs are attached to network devices, for containers that ask for forwarding.
fn hook() -> Finding {
    let hook = kernel::Hook::of_kernel();
    let found = match hook {
        kernel::Hook::Tcx => format!("{hook} (Linux 6.6)"),
        kernel::Hook::Clsact => format!("{hook}, with filters at priority {} (TCX needs Linux 6.6)", kernel::PRIORITY),
    };
    Finding::good("device hook", found)
}

/// Whether the engines' sockets can be connected to, with the capabilities that the daemon keeps.
fn engines(engines: &[String]) -> Vec<Finding> {
    const WHAT: &str = "container engine";
    if engines.is_empty() {
        let remedy = "name an engine's socket with `run --engine`, or use `exec` without one";
        return vec![Finding::advice(WHAT, "none is followed", remedy)];
    }
    let look = |engine: &String| {
        let reached = std::thread::scope(|scope| {
            // Capabilities are per thread, so drop them on a new one.
            let reached = scope.spawn(|| caps::drop_for_this_thread().and_then(|()| engine::reach(engine)));
            reached.join().unwrap_or_else(|_| Err(std::io::Error::other("the attempt failed")))
        });
        match reached {
            Ok(()) => Finding::good(WHAT, engine::name(engine)),
            Err(cause) => {
                let why = engine::unreachable(engine, &cause);
                let (found, remedy) = why.split_once("; ").unwrap_or((&why, "start the engine"));
                Finding::advice(WHAT, found, remedy)
            }
        }
    };
    engines.iter().map(look).collect()
}

/// Formats the findings, with the remedy of each missing requirement on its own line.
pub fn render(findings: &[Finding], colours: bool) -> String {
    let paint = |code: &str, text: &str| if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
    let mut text = String::new();
    for finding in findings {
        let mark = match (finding.ok, finding.required) {
            (true, _) => paint("32", "ok  "),
            (false, true) => paint("1;31", "FAIL"),
            (false, false) => paint("33", "note"),
        };
        text.push_str(&format!("{mark}  {:<width$}  {}\n", finding.what, finding.found));
        if !finding.ok {
            text.push_str(&format!("      {:<width$}  -> {}\n", "", finding.remedy));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_with_the_reason() {
        for good in ["6.1.0-44-cloud-amd64", "6.12.9", "7.3.1-rc1", "10.0"] {
            assert!(kernel_version(good).ok, "{good}");
        }
        for old in ["5.10.0-30-amd64", "6.0.19", "4.4"] {
            let finding = kernel_version(old);
            assert!(!finding.ok && finding.to_string().contains("boot Linux 6.1"), "{finding}");
        }
        assert!(!kernel_version("").ok);
    }

    #[test]
    fn a_missing_requirement_comes_with_its_remedy() {
        let text = render(&[Finding::good("a", "there"), Finding::bad("long name", "gone", "bring it")], false);
        assert_eq!(text, "ok    a          there\nFAIL  long name  gone\n                 -> bring it\n");
    }
}
