//! How much worse than the committed ratio a ratio may be before `--check` says that something got slower. One place for
//! all of them, each with its reason.

/// The tolerance of some measures.
pub struct Tolerance {
    /// What they have in common, for people.
    pub kind: &'static str,
    /// Their keys.
    keys: &'static [&'static str],
    /// By what part the ratio may be worse, in a full run.
    full: f64,
    /// The same in a quick one, which has fewer and shorter rounds.
    quick: f64,
    /// Why it is so wide.
    pub why: &'static str,
}

/// A full run has several rounds, and one that was disturbed does not move its median. A quick one may have a single
/// round of a second, in which whatever else the machine does is seen in full.
pub const TOLERANCES: [Tolerance; 7] = [
    Tolerance {
        kind: "throughput",
        keys: &["requests_per_s", "mib_per_s"],
        full: 0.06,
        quick: 0.30,
        why: "clients and servers share the cores, and one round differs from the next in who gets which",
    },
    Tolerance {
        kind: "median latency",
        keys: &["p50_us"],
        full: 0.12,
        quick: 0.50,
        why: "it is the throughput's other side, and of a part of the requests only",
    },
    Tolerance {
        kind: "p99",
        keys: &["p99_us"],
        full: 0.30,
        quick: 1.00,
        why: "what the scheduler does to one request in a hundred",
    },
    Tolerance {
        kind: "p99.9",
        keys: &["p999_us"],
        full: 0.75,
        quick: 2.00,
        why: "few requests, and any other work of the machine is in it",
    },
    Tolerance {
        kind: "CPU",
        keys: &["cpu_s", "own_cpu_s"],
        full: 0.10,
        quick: 0.40,
        why: "counted in ticks, and all of the machine's own work is in it",
    },
    Tolerance {
        kind: "memory",
        keys: &["memory_mib", "own_b", "total_b"],
        full: 0.15,
        quick: 0.30,
        why: "allocators and the kernel's slabs grow in steps",
    },
    Tolerance {
        kind: "ns of the program alone",
        keys: &["run_ns", "other_ns", "load_ns"],
        full: 0.20,
        quick: 0.40,
        why: "so little is a matter of cache misses, and the cache is shared with whatever else runs",
    },
];

/// Counts that may not grow at all, and need no ratio.
pub const COUNTS: [&str; 2] = ["failed", "errors"];

impl Tolerance {
    /// That of a measure, if it is one that is compared.
    pub fn of(key: &str) -> Option<&'static Self> {
        TOLERANCES.iter().find(|tolerance| tolerance.keys.contains(&key))
    }

    /// The part by which a ratio may be worse.
    pub fn part(&self, quick: bool) -> f64 {
        if quick { self.quick } else { self.full }
    }
}
