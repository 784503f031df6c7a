//! How much worse than the committed ratio a ratio may be before `--check` says that something got slower. One place for
//! all of them, each with its reason.

/// How far a ratio may move.
pub struct Margin {
    /// By what part it may be worse, in a full run.
    pub full: f64,
    /// The same in a quick one, which has fewer and shorter rounds.
    pub quick: f64,
    /// Why it is so wide.
    pub why: &'static str,
}

/// The tolerance of some measures' ratios to their base.
pub struct Tolerance {
    /// What they have in common, for people.
    pub kind: &'static str,
    /// Their keys.
    pub keys: &'static [&'static str],
    pub margin: Margin,
}

/// A full run has several rounds, and one that was disturbed does not move its median. A quick one may have a single
/// round of a second, in which whatever else the machine does is seen in full.
pub const TOLERANCES: [Tolerance; 8] = [
    Tolerance {
        kind: "throughput",
        keys: &["requests_per_s", "mib_per_s"],
        margin: Margin {
            full: 0.06,
            quick: 0.30,
            why: "clients and servers share the cores, and one round differs from the next in who gets which",
        },
    },
    Tolerance {
        kind: "median latency",
        keys: &["p50_us"],
        margin: Margin {
            full: 0.12,
            quick: 0.50,
            why: "it is the throughput's other side, and of a part of the requests only",
        },
    },
    Tolerance {
        kind: "p99",
        keys: &["p99_us"],
        margin: Margin { full: 0.30, quick: 1.00, why: "what the scheduler does to one request in a hundred" },
    },
    Tolerance {
        kind: "p99.9",
        keys: &["p999_us"],
        margin: Margin { full: 0.75, quick: 2.00, why: "few requests, and any other work of the machine is in it" },
    },
    Tolerance {
        kind: "CPU",
        keys: &["cpu_s"],
        margin: Margin { full: 0.10, quick: 0.40, why: "counted in ticks, and all of the machine's own work is in it" },
    },
    Tolerance {
        kind: "memory of a connection",
        keys: &["total_b"],
        margin: Margin { full: 0.15, quick: 0.30, why: "the kernel's slabs and the servers' heaps grow in steps" },
    },
    Tolerance {
        kind: "ns of the program alone",
        keys: &["run_ns", "other_ns", "load_ns"],
        margin: Margin {
            full: 0.20,
            quick: 0.40,
            why: "so little is a matter of cache misses, and the cache is shared with whatever else runs",
        },
    },
    Tolerance {
        kind: "time to publish",
        keys: &["publish_ms"],
        margin: Margin {
            full: 0.50,
            quick: 1.00,
            why: "one change in each round, so short that whatever the machine does meanwhile is in it",
        },
    },
];

/// What went wrong, and needs no ratio: by how many it may be more than the committed report has.
pub const COUNTS: [(&str, f64); 3] = [("failed", 0.0), ("errors", 0.0), ("lost_syns", 10.0)];

impl Tolerance {
    /// That of a measure, if it is one that is compared.
    pub fn of(key: &str) -> Option<&'static Self> {
        TOLERANCES.iter().find(|tolerance| tolerance.keys.contains(&key))
    }
}

impl Margin {
    /// The part by which a ratio may be worse.
    pub fn part(&self, quick: bool) -> f64 {
        if quick { self.quick } else { self.full }
    }
}
