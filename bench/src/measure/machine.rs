//! The machine of the measurements.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use pod_steer_tests::{process, tools};

use super::costs;

/// How long the machine is observed before the run.
const BUSY_TIME: Duration = Duration::from_secs(3);

/// The machine's properties, as (name, value). Unknown ones are left out.
pub fn describe() -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let cores = thread::available_parallelism().map(|cores| cores.to_string()).ok();
    let pod_steer = tools::pod_steer().ok().and_then(|path| version(&path.to_string_lossy(), "version"));
    let facts = [
        ("kernel", Some(read("/proc/sys/kernel/osrelease").trim().to_owned())),
        ("CPU", field(&cpuinfo, "model name")),
        ("virtual machine", Some(virtual_machine(&cpuinfo))),
        ("cores", cores),
        ("memory", field(&read("/proc/meminfo"), "MemTotal").as_deref().and_then(gibibytes)),
        ("system", field(&read("/etc/os-release").replace('=', ":"), "PRETTY_NAME")),
        ("pod-steer", pod_steer),
        ("nginx", version("nginx", "-v")),
        ("HAProxy", version("haproxy", "-v")),
        ("Docker", version("dockerd", "--version")),
        ("iptables", version("iptables", "--version")),
        ("wrk", version("wrk", "-v")),
        ("date", process::run(Command::new("date").args(["-u", "+%Y-%m-%d"])).ok().map(|date| date.trim().to_owned())),
    ];
    let known = facts.into_iter().filter_map(|(what, how)| Some((what.to_owned(), how?)));
    known.filter(|(_, how)| !how.is_empty()).collect()
}

/// The share of the processors that other work uses now.
pub fn busy_pct() -> Result<f64> {
    let (before, began) = (costs::machine_cpu_s()?, Instant::now());
    thread::sleep(BUSY_TIME);
    let (busy_s, time) = (costs::machine_cpu_s()? - before, began.elapsed());
    Ok(100.0 * busy_s / (time.as_secs_f64() * thread::available_parallelism()?.get() as f64))
}

/// The value of the first `name : value`, without quotes.
fn field(text: &str, name: &str) -> Option<String> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(key, _)| key.trim() == name)?;
    Some(value.trim().trim_matches('"').to_owned())
}

/// The kind of the virtual machine, or whether it is one, from the processor's flags.
fn virtual_machine(cpuinfo: &str) -> String {
    // Without --vm it would name the container that this may run in.
    let asked = process::output(Command::new("systemd-detect-virt").arg("--vm"));
    let kind = asked.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let is_virtual = field(cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    match kind.as_str() {
        "" | "none" => (if is_virtual { "yes" } else { "no" }).to_owned(),
        kind => format!("yes, {kind}"),
    }
}

/// `16318756 kB` for people.
fn gibibytes(kibibytes: &str) -> Option<String> {
    let number: f64 = kibibytes.strip_suffix(" kB")?.parse().ok()?;
    Some(format!("{:.1} GiB", number / 1024.0 / 1024.0))
}

/// The version in the first line of a program's output, whatever its exit code (that of wrk is 1).
fn version(program: &str, argument: &str) -> Option<String> {
    let output = process::output(Command::new(program).arg(argument)).ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    version_in(&String::from_utf8_lossy(&text))
}

/// The first word of the first line that has a digit in it: `nginx version: nginx/1.22.1`, `wrk debian/4.1.0-3 [epoll]`.
fn version_in(text: &str) -> Option<String> {
    let mut words = text.lines().next()?.split_whitespace();
    let word = words.find(|word| word.contains(|letter: char| letter.is_ascii_digit()))?;
    let version = word.rsplit_once('/').map_or(word, |(_, version)| version);
    Some(version.trim_start_matches('v').trim_end_matches(',').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let versions = [
            ("nginx version: nginx/1.22.1\n", "1.22.1"),
            ("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\nStatus", "2.6.12-1+deb12u4"),
            ("Docker version 28.2.2, build e6534b4", "28.2.2"),
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer", "4.1.0-3+b2"),
            ("iptables v1.8.9 (nf_tables)", "1.8.9"),
        ];
        for (printed, version) in versions {
            assert_eq!(version_in(printed).as_deref(), Some(version), "{printed}");
        }
        assert_eq!(version_in("nothing here"), None);
    }

    #[test]
    fn fields_are_read() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.9GHz\nmodel name\t: Another\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2.9GHz"));
        assert_eq!(field(text, "cores"), None);
        assert_eq!(gibibytes("16777216 kB").as_deref(), Some("16.0 GiB"));
        assert_eq!(gibibytes("much"), None);
    }
}
