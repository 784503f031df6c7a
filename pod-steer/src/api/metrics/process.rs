//! The resources of the daemon's own process, under the names that every exporter has for them.
#![forbid(unsafe_code)]

use std::{fs, io, num::NonZeroU64};

use super::page::Page;

/// Ticks of `/proc/PID/stat` in a second (`USER_HZ`): 100 on every architecture that pod-steer is built for.
const TICKS_PER_S: f64 = 100.0;

/// The resources of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Time on processors, in seconds.
    pub cpu_s: f64,
    /// When it was started, in seconds since 1970.
    pub started_s: f64,
    /// Open file descriptors.
    pub open_files: u64,
}

impl Usage {
    /// The resources of this process.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        let (stat, kernel) = (fs::read_to_string("/proc/self/stat")?, fs::read_to_string("/proc/stat")?);
        let status = fs::read_to_string("/proc/self/status")?;
        let open_files = fs::read_dir("/proc/self/fd")?.count() as u64;
        parse(&stat, &status, &kernel, open_files).ok_or_else(|| io::Error::other("/proc has another form"))
    }

    pub(super) fn add_to(self, page: &mut Page) {
        page.gauge("process_resident_memory_bytes", "Resident memory of the daemon.", self.resident_bytes as f64);
        page.gauge("process_start_time_seconds", "When the daemon was started, since 1970.", self.started_s);
        page.gauge("process_open_fds", "File descriptors that the daemon has open.", self.open_files as f64);
        page.seconds("process_cpu_seconds", "Time of the daemon on processors.", self.cpu_s);
    }
}

/// Fields of `/proc/PID/stat` behind the name in parentheses, counted from 0 (proc_pid_stat(5) counts from 3).
const USER_TICKS: usize = 11;
const KERNEL_TICKS: usize = 12;
const START_TICKS: usize = 19;

fn parse(stat: &str, status: &str, kernel: &str, open_files: u64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |number: usize| Some(fields.get(number)?.parse::<u64>().ok()? as f64 / TICKS_PER_S);
    let boot: f64 = kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    Some(Usage {
        resident_bytes: resident.trim().parse::<NonZeroU64>().ok()?.get() * 1024,
        cpu_s: seconds(USER_TICKS)? + seconds(KERNEL_TICKS)?,
        started_s: boot + seconds(START_TICKS)?,
        open_files,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_usage_of_this_process_is_plausible() {
        let own = Usage::own().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(own.resident_bytes > 100_000 && own.open_files >= 3, "{own:?}");
        assert!(own.started_s <= now + 1.0 && now - own.started_s < 86_400.0, "{own:?}");
    }

    #[test]
    fn a_name_may_have_spaces_and_parentheses() {
        let fields: Vec<String> = (0..40).map(|number| (number * 100).to_string()).collect();
        let stat = format!("1 (a) b (c)) {}", fields.join(" "));
        let usage = parse(&stat, "Name:\ta\nVmRSS:\t    8 kB\n", "cpu 1\nbtime 1000\n", 4).unwrap();
        assert_eq!(usage, Usage { resident_bytes: 8192, cpu_s: 23.0, started_s: 1019.0, open_files: 4 });
        assert_eq!(parse("1 (a) S", "VmRSS:\t8 kB\n", "btime 1000\n", 4), None);
    }
}
