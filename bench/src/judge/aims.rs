//! The aims of the benchmarks, as data. `verdict` judges a report by them.

/// The number of cores for which the aims are meant. With another number, clients and servers share the cores differently.
pub const CORES: &str = "2";

/// 1 MiB of slab over 10,000 connections: the kernel's use varies by as much without any connection.
pub const IDLE_RESOLUTION_B: f64 = 105.0;

/// One aim: a figure, or a figure divided by another row's, within a bound.
pub struct Aim {
    pub measure: &'static str,
    pub section: &'static str,
    pub row: &'static str,
    pub key: &'static str,
    /// The row of the same section by which it is divided.
    pub over: Option<&'static str>,
    pub unit: &'static str,
    pub bound: Bound,
    /// A remark for the case that it is missed.
    pub why: Option<&'static str>,
}

/// The bound of an aim.
#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// Zero. Values closer to zero than this cannot be told from it.
    Zero {
        resolution: f64,
    },
    /// No failure at all, in a number of tries (the key of their count, and the least number).
    NoneIn(&'static str, f64),
}

const fn aim(
    measure: &'static str,
    (section, row, key): (&'static str, &'static str, &'static str),
    over: Option<&'static str>,
    unit: &'static str,
    bound: Bound,
) -> Aim {
    Aim { measure, section, row, key, over, unit, bound, why: None }
}

/// The aims, for a machine with [`CORES`] cores.
pub static AIMS: [Aim; 19] = [
    aim(
        "new connections/s, pod-steer ÷ the kernel's own SO_REUSEPORT",
        ("new-connections-pair", "pod-steer", "requests_per_s"),
        Some("reuseport"),
        "",
        Bound::AtLeast(0.98),
    ),
    aim(
        "keep-alive requests/s, pod-steer with one listener ÷ direct",
        ("keep-alive-pair", "pod-steer-one", "requests_per_s"),
        Some("direct"),
        "",
        Bound::AtLeast(0.99),
    ),
    aim(
        "keep-alive p99, pod-steer with one listener ÷ direct",
        ("keep-alive-pair", "pod-steer-one", "p99_us"),
        Some("direct"),
        "",
        Bound::AtMost(1.02),
    ),
    aim(
        "new connections/s, pod-steer ÷ nginx stream",
        ("new-connections", "pod-steer", "requests_per_s"),
        Some("nginx-stream"),
        "",
        Bound::AtLeast(1.6),
    ),
    aim(
        "new connections/s, pod-steer ÷ HAProxy",
        ("new-connections", "pod-steer", "requests_per_s"),
        Some("haproxy"),
        "",
        Bound::AtLeast(1.6),
    ),
    aim(
        "new connections/s, pod-steer to containers behind a bridge ÷ iptables DNAT",
        ("new-connections-bridge-pair", "pod-steer-bridge", "requests_per_s"),
        Some("dnat"),
        "",
        Bound::AtLeast(1.05),
    ),
    aim(
        "new connections/s, the same with `via=peer` ÷ iptables DNAT",
        ("new-connections-peer-pair", "pod-steer-bridge-peer", "requests_per_s"),
        Some("dnat"),
        "",
        Bound::AtLeast(1.15),
    ),
    aim(
        "new connections/s, while a canary compares versions ÷ without",
        ("new-connections-judged-pair", "pod-steer-judged", "requests_per_s"),
        Some("pod-steer"),
        "",
        Bound::AtLeast(0.97),
    ),
    aim(
        "keep-alive requests/s, while a canary compares versions ÷ without",
        ("keep-alive-judged-pair", "pod-steer-judged", "requests_per_s"),
        Some("pod-steer"),
        "",
        Bound::AtLeast(0.99),
    ),
    aim(
        "memory per idle connection beyond the server's own",
        ("idle", "pod-steer", "own_b"),
        None,
        " B",
        Bound::Zero { resolution: IDLE_RESOLUTION_B },
    ),
    Aim {
        why: Some(
            "The absolute time depends on the machine: the same program takes longer while other guests of the host are busy. \
             Compare the other aims.",
        ),
        ..aim(
            "program run, 10,000 services",
            ("program", "services-10000", "run_ns"),
            None,
            " ns",
            Bound::AtMost(100.0),
        )
    },
    aim(
        "program run, 10,000 services ÷ 1 service",
        ("program", "services-10000", "run_ns"),
        Some("services-1"),
        "",
        Bound::AtMost(1.3),
    ),
    aim(
        "listen() to steered under churn, p99",
        ("control-plane", "churn", "steered_p99_ms"),
        None,
        " ms",
        Bound::AtMost(2.0),
    ),
    aim(
        "listen() to steered beside 260 listeners for 1,024 ports of another service, p99",
        ("control-plane", "noisy-ports", "steered_p99_ms"),
        None,
        " ms",
        Bound::AtMost(10.0),
    ),
    aim(
        "listen() to steered beside a loop of listen() and close(), p99",
        ("control-plane", "noisy-loop", "steered_p99_ms"),
        None,
        " ms",
        Bound::AtMost(10.0),
    ),
    aim(
        "one change among 1,000 backends: event to switch in effect",
        ("control-plane", "backends-1000", "switch_ms"),
        None,
        " ms",
        Bound::AtMost(5.0),
    ),
    aim(
        "daemon memory with 1,000 backends",
        ("control-plane", "backends-1000", "daemon_mib"),
        None,
        " MiB",
        Bound::AtMost(20.0),
    ),
    aim(
        "daemon CPU when nothing changes",
        ("control-plane", "backends-1000", "idle_cpu_pct"),
        None,
        "%",
        // One tick of the kernel's clock in ten seconds.
        Bound::Zero { resolution: 0.1 },
    ),
    aim(
        "failed requests in 100 swaps under load",
        ("hot-swap", "pod-steer", "failed"),
        None,
        "",
        Bound::NoneIn("swaps", 100.0),
    ),
];

impl Aim {
    /// `≥ 0.98`, `≤ 5 ms`, `0 (± 0.1%)`.
    pub fn bound(&self) -> String {
        match self.bound {
            Bound::AtLeast(least) => format!("≥ {least}{}", self.unit),
            Bound::AtMost(most) => format!("≤ {most}{}", self.unit),
            Bound::Zero { resolution } => format!("0 (± {resolution}{})", self.unit),
            Bound::NoneIn(..) => "0".to_owned(),
        }
    }

    /// Whether it applies to other machines too: ratios and counts do, times and sizes do not.
    pub fn holds_elsewhere(&self) -> bool {
        self.over.is_some() || self.is_count()
    }

    /// Whether it bounds something that must not happen.
    pub fn is_count(&self) -> bool {
        matches!(self.bound, Bound::NoneIn(..))
    }
}

impl Bound {
    /// Whether a figure is within it.
    pub fn allows(&self, figure: f64) -> bool {
        match *self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
            Self::Zero { resolution } => figure.abs() <= resolution,
            Self::NoneIn(..) => figure == 0.0,
        }
    }

    /// Whether the bound lies within a range, so that a part of the range meets it and a part does not.
    pub fn divides(&self, low: f64, high: f64) -> bool {
        let inside = |bound: f64| low < high && low <= bound && bound <= high;
        match *self {
            Self::AtLeast(bound) | Self::AtMost(bound) => inside(bound),
            Self::Zero { resolution } => inside(resolution) || inside(-resolution),
            Self::NoneIn(..) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_have_two_sides_where_nothing_is_wanted() {
        let nothing = Bound::Zero { resolution: 5.0 };
        assert_eq!([-6.0, -5.0, 0.0, 5.0, 6.0].map(|figure| nothing.allows(figure)), [false, true, true, true, false]);
        assert!(nothing.divides(-9.0, 0.0) && nothing.divides(-9.0, 9.0) && !nothing.divides(-4.0, 4.0));
        let least = Bound::AtLeast(1.0);
        assert!(least.divides(0.9, 1.1) && !least.divides(1.1, 1.2) && !least.divides(1.0, 1.0));
    }
}
