//! How much worse than the committed ratio a ratio may be before `--check` fails: the differences between two runs of the same code that
//! the rounds of one run do not show. Differences between rounds are in the ratio's interval (`ratio`).

/// The tolerance of a ratio.
pub struct Margin {
    /// The part by which it may be worse.
    pub part: f64,
    /// The reason for its width.
    pub why: &'static str,
}

/// The tolerance of some measures' ratios to their base.
pub struct Tolerance {
    /// Their common name, for people.
    pub kind: &'static str,
    /// Their keys.
    pub keys: &'static [&'static str],
    pub margin: Margin,
}

/// Ratios to a base.
pub const TOLERANCES: [Tolerance; 8] = [
    Tolerance {
        kind: "throughput",
        keys: &["requests_per_s", "mib_per_s"],
        margin: Margin { part: 0.06, why: "clients and servers share the cores, and each run places them anew" },
    },
    Tolerance {
        kind: "median latency",
        keys: &["p50_us"],
        margin: Margin { part: 0.12, why: "as for throughput, from a part of the requests" },
    },
    Tolerance {
        kind: "p99",
        keys: &["p99_us"],
        margin: Margin { part: 0.30, why: "the scheduler delays one request in a hundred" },
    },
    Tolerance {
        kind: "p99.9",
        keys: &["p999_us"],
        margin: Margin { part: 0.75, why: "few requests, which any other work of the machine affects" },
    },
    Tolerance {
        kind: "CPU",
        keys: &["cpu_s"],
        margin: Margin { part: 0.10, why: "counted in clock ticks, together with all other work of the machine" },
    },
    Tolerance {
        kind: "memory of a connection",
        keys: &["total_b"],
        margin: Margin { part: 0.15, why: "the kernel's slabs and the servers' heaps grow in steps" },
    },
    Tolerance {
        kind: "ns of the program alone",
        keys: &["run_ns", "other_ns", "load_ns"],
        margin: Margin { part: 0.20, why: "depends on cache misses, and all other work shares the cache" },
    },
    Tolerance {
        kind: "time to publish",
        keys: &["publish_ms"],
        margin: Margin {
            part: 1.50,
            why: "one short change in each round: 8 to 20 times the base in runs of one build",
        },
    },
];

/// Failures, which need no ratio: how many more than in the committed report there may be.
pub const COUNTS: [(&str, f64); 3] = [("failed", 0.0), ("errors", 0.0), ("lost_syns", 10.0)];

impl Tolerance {
    /// The tolerance of a measure, if it is compared.
    pub fn of(key: &str) -> Option<&'static Self> {
        TOLERANCES.iter().find(|tolerance| tolerance.keys.contains(&key))
    }
}
