//! What clients do, and how it is read.

use std::time::Duration;

use crate::report::{Better, Column};

use super::{
    servers::{LARGE, SMALL},
    wrk,
};

/// What clients do.
pub struct Workload {
    /// The section's name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is special about it.
    pub about: &'static str,
    /// By TLS.
    pub tls: bool,
    /// A new connection for each request.
    pub close: bool,
    /// What is asked for.
    pub path: &'static str,
    /// How often each contestant has its turn; those whose aims are a hundredth apart need more.
    pub rounds: usize,
    /// Whether a round has enough requests, some 10,000, to say anything of the slowest in a thousand.
    pub has_p999: bool,
    /// Key and title of the throughput.
    pub throughput: (&'static str, &'static str),
}

const REQUESTS: (&str, &str) = ("requests_per_s", "requests/s");

/// All that wrk does.
pub const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "new-connections",
        title: "A new connection for each request",
        about: "Each request comes on a connection of its own (`Connection: close`). wrk's latency begins when the \
                connection stands. So it hides connecting, but not that of a proxy to its server: the ratio of latencies \
                is in favour of those without a proxy. The throughput is the measure of the whole.",
        tls: false,
        close: true,
        path: SMALL,
        rounds: 15,
        has_p999: true,
        throughput: REQUESTS,
    },
    Workload {
        name: "keep-alive",
        title: "Connections that are kept alive",
        about: "Every connection carries one request after the other.",
        tls: false,
        close: false,
        path: SMALL,
        rounds: 15,
        has_p999: true,
        throughput: REQUESTS,
    },
    Workload {
        name: "tls",
        title: "A TLS handshake for each request",
        about: "Each request comes on a connection of its own with a full handshake (ECDSA P-256, no session is resumed), \
                which the servers terminate. wrk's latency begins when the handshake is done, so it hides most of the \
                work. The throughput is the measure of the whole.",
        tls: true,
        close: true,
        path: SMALL,
        rounds: 5,
        has_p999: false,
        throughput: REQUESTS,
    },
    Workload {
        name: "large",
        title: "Answers of 1 MiB",
        about: "Every connection carries one request after the other, each for 1 MiB.",
        tls: false,
        close: false,
        path: LARGE,
        rounds: 5,
        has_p999: false,
        throughput: ("mib_per_s", "MiB/s"),
    },
];

/// How long each turn is.
pub const TIME: Duration = Duration::from_secs(1);

/// Key of the SYNs that were lost.
pub const LOST_SYNS: &str = "lost_syns";
/// Key of what went wrong.
pub const ERRORS: &str = "errors";

impl Workload {
    /// What is measured, in the order of the columns.
    pub fn columns(&self) -> Vec<Column> {
        use Better::{Higher, Lower};
        let (key, title) = self.throughput;
        let columns = [
            (key, title, Higher),
            ("p50_us", "p50, µs", Lower),
            ("p99_us", "p99, µs", Lower),
            ("p999_us", "p99.9, µs", Lower),
            ("cpu_s", "CPU s per 100,000 requests, whole machine", Lower),
            ("own_cpu_s", "CPU s per 100,000 requests, own processes", Lower),
            ("memory_mib", "memory of own processes, MiB", Lower),
            (LOST_SYNS, "SYNs sent again or dropped", Lower),
            (ERRORS, "errors", Lower),
        ];
        let columns = columns.into_iter().filter(|(key, ..)| self.has_p999 || *key != "p999_us");
        columns.map(|(key, title, better)| Column { key: key.into(), title: title.into(), better }).collect()
    }

    /// What was done, for people.
    pub fn about(&self, rounds: usize) -> String {
        format!(
            "{} wrk, {} connections at a time by {} threads, {rounds} rounds of {} s for each contestant, one \
             after the other, in another order in each round. It is a closed loop: a connection asks again when it has \
             been answered, so who is slow is asked less. All are on one host with Docker's firewall rules and \
             connection tracking. New connections of all of them, `direct`, `reuseport` and the proxies too, pass \
             pod-steer's program, which finds nothing to do for those that are not steered. Two listeners can beat the \
             one queue that `direct`'s workers share, as `reuseport` shows: compare pod-steer with that row too. What \
             is steered was counted by the kernel program in each round: at least as many connections as there must \
             have been. wrk does not see a SYN that is lost, so the kernel's counters of them have a column. Own \
             processes are those beyond client and servers; pod-steer's work is done in the kernel, so it is in the \
             whole machine's column.",
            self.about,
            wrk::CONNECTIONS,
            wrk::THREADS,
            TIME.as_secs()
        )
    }
}
