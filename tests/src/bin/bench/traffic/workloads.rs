//! What clients do, and how it is read.

use std::time::Duration;

use pod_steer_tests::measures::{Better, Column};

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
                connection stands: making it shows in the throughput.",
        tls: false,
        close: true,
        path: SMALL,
        rounds: 7,
        throughput: REQUESTS,
    },
    Workload {
        name: "keep-alive",
        title: "Connections that are kept alive",
        about: "Every connection carries one request after the other.",
        tls: false,
        close: false,
        path: SMALL,
        rounds: 7,
        throughput: REQUESTS,
    },
    Workload {
        name: "tls",
        title: "A TLS handshake for each request",
        about: "Each request comes on a connection of its own with a full handshake (ECDSA P-256, no session is resumed), \
                which the servers terminate. wrk's latency begins when the connection stands: making it shows in the \
                throughput.",
        tls: true,
        close: true,
        path: SMALL,
        rounds: 5,
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
        throughput: ("mib_per_s", "MiB/s"),
    },
];

/// How long each turn is.
pub const TIME: Duration = Duration::from_secs(1);

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
            (ERRORS, "errors", Lower),
        ];
        columns.map(|(key, title, better)| Column { key: key.into(), title: title.into(), better }).into()
    }

    /// What was done, for people.
    pub fn about(&self, rounds: usize) -> String {
        format!(
            "{} wrk, {} connections at a time by {} threads, {rounds} rounds of {} s for each contestant, one \
             after the other within a round. All are on one host with Docker's firewall rules, connection tracking, \
             and pod-steer's program, which sees new connections of all of them. Own processes are those beyond \
             client and servers.",
            self.about,
            wrk::CONNECTIONS,
            wrk::THREADS,
            TIME.as_secs()
        )
    }
}
