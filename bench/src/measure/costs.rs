//! Resource usage of processes and of the machine, from the kernel.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result};
use pod_steer_tests::process::run;
use serde_json::Value;

/// CPU seconds in which the whole machine was busy since it started, interrupt handling included.
pub fn machine_cpu_s() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    Ok(busy_ticks(&stat).context("no cpu line in /proc/stat")? as f64 / ticks_per_s())
}

/// CPU seconds of some processes since they started.
pub fn processes_cpu_s(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = read(*pid, "stat")?;
        ticks += process_ticks(&stat).with_context(|| format!("no times in /proc/{pid}/stat"))?;
    }
    Ok(ticks as f64 / ticks_per_s())
}

/// Bytes of memory of some processes, with shared memory divided among its users (PSS).
pub fn memory_b(pids: &[u32]) -> Result<u64> {
    sum_of_rollups(pids, &["Pss"])
}

/// The part of it that they have allocated. Pages of files are left out: their share changes when another process of the same program
/// starts or ends.
pub fn own_memory_b(pids: &[u32]) -> Result<u64> {
    sum_of_rollups(pids, &["Pss_Anon", "Pss_Shmem"])
}

/// Bytes of all BPF maps of the kernel, including those of other programs.
pub fn kernel_maps_b() -> Result<u64> {
    let text = run(Command::new("bpftool").args(["--json", "map", "show"]))?;
    maps_b(&text).with_context(|| format!("no sizes in what bpftool says of maps: {text}"))
}

fn maps_b(text: &str) -> Option<u64> {
    let maps: Vec<Value> = serde_json::from_str(text).ok()?;
    maps.iter().map(|map| map["bytes_memlock"].as_u64()).sum()
}

fn sum_of_rollups(pids: &[u32], names: &[&str]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let rollup = read(*pid, "smaps_rollup")?;
        for name in names {
            sum += size_b(&rollup, name).with_context(|| format!("no {name} in /proc/{pid}/smaps_rollup"))?;
        }
    }
    Ok(sum)
}

/// A process and all that it has started, directly or not.
pub fn descendants(pid: u32) -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended since the directory was read has no parent here.
        if let Some(parent) = read(child, "stat").ok().as_deref().and_then(parent) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        found.extend(children.remove(parent).unwrap_or_default());
        next += 1;
    }
    Ok(found)
}

/// Those whose program has this name.
pub fn named(pids: &[u32], name: &str) -> Vec<u32> {
    let is_named = |pid: &u32| read(*pid, "comm").is_ok_and(|comm| comm.trim_end() == name);
    pids.iter().copied().filter(is_named).collect()
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

fn ticks_per_s() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// `cpu user nice system idle iowait irq softirq steal ...`: without idle, iowait and steal.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some([0, 1, 2, 5, 6].iter().filter_map(|field| ticks.get(*field)).sum())
}

/// Fields of `/proc/PID/stat` after the name, which may have spaces and brackets in it.
fn fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

fn process_ticks(stat: &str) -> Option<u64> {
    let fields = fields(stat)?;
    let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some(number(11)? + number(12)?)
}

fn parent(stat: &str) -> Option<u32> {
    fields(stat)?.get(1)?.parse().ok()
}

/// `Name:  120 kB` in bytes.
fn size_b(rollup: &str, name: &str) -> Option<u64> {
    let mut sizes = rollup.lines().filter_map(|line| line.split_once(':'));
    let (_, size) = sizes.find(|(key, _)| *key == name)?;
    Some(size.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found() {
        assert_eq!(busy_ticks("cpu  1 2 4 1000 2000 8 16 4000 0 0\ncpu0 1 1 1 1"), Some(31));
        assert_eq!(busy_ticks("intr 5"), None);
        let stat = "77 (a) b) S 42 77 77 0 -1 4194560 1 2 3 4 500 60 7 8 20 0 1 0 9";
        assert_eq!(process_ticks(stat), Some(560));
        assert_eq!(parent(stat), Some(42));
        assert_eq!(process_ticks("77 (a) S 42"), None);
    }

    #[test]
    fn maps_are_added_up() {
        let maps = r#"[{"id":1,"type":"hash","bytes_memlock":4096},{"id":2,"bytes_memlock":262144}]"#;
        assert_eq!(maps_b(maps), Some(266_240));
        assert_eq!(maps_b("[]"), Some(0));
        assert_eq!(maps_b(r#"[{"id":1}]"#), None);
    }

    #[test]
    fn memory_is_found() {
        let rollup = "5590-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  300 kB\nPss:     120 kB\nPss_Anon:  8 kB\n";
        assert_eq!(size_b(rollup, "Pss"), Some(120 * 1024));
        assert_eq!(size_b(rollup, "Pss_Anon"), Some(8 * 1024));
        assert_eq!(size_b(rollup, "Pss_Shmem"), None);
    }
}
