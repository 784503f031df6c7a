//! The workloads: the behaviour of clients, and the columns.

use std::time::Duration;

use crate::report::{Better, Column};

use super::{
    servers::{LARGE, SMALL},
    ways::Way,
    wrk,
};

/// The behaviour of clients.
pub struct Workload {
    /// The section's name.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// Its special property.
    pub about: &'static str,
    /// By TLS, with wrk as the client.
    pub tls: bool,
    /// A new connection for each request.
    pub close: bool,
    /// The requested path.
    pub path: &'static str,
    /// How long each turn is.
    pub time: Duration,
    /// How many rounds there are, each with two turns for each contestant.
    pub rounds: Rounds,
    /// Only these contestants: the base and pod-steer.
    pub pair: Option<[&'static str; 2]>,
    /// For a pair: a full run continues until the ratio is known within this part.
    pub within: f64,
    /// Whether a turn has enough requests, about 10,000, for the 99.9th percentile.
    pub has_p999: bool,
    /// Key and title of the throughput.
    pub throughput: (&'static str, &'static str),
}

/// How many rounds there are.
pub struct Rounds {
    pub full: usize,
    /// With fewer than six, ratios are not judged.
    pub quick: usize,
    /// For a full run of a pair.
    pub most: usize,
}

const REQUESTS: (&str, &str) = ("requests_per_s", "requests/s");
/// Short enough that the machine's speed hardly changes, and long enough for thousands of requests.
const SHORT: Duration = Duration::from_millis(150);

const NEW_CONNECTIONS: Workload = Workload {
    name: "new-connections",
    title: "A new connection for each request",
    about: "Each request comes on a connection of its own (`Connection: close`); its latency includes connecting.",
    tls: false,
    close: true,
    path: SMALL,
    time: SHORT,
    rounds: Rounds { full: 25, quick: 10, most: 25 },
    pair: None,
    within: 0.0,
    has_p999: false,
    throughput: REQUESTS,
};

const KEEP_ALIVE: Workload = Workload {
    name: "keep-alive",
    title: "Connections that are kept alive",
    about: "Every connection carries one request after the other. Each turn opens new ones.",
    close: false,
    has_p999: true,
    ..NEW_CONNECTIONS
};

/// Differences of one percent must be visible.
const PAIR: Rounds = Rounds { full: 200, quick: 20, most: 400 };

/// Everything with load, in the order of the report.
pub const WORKLOADS: [Workload; 10] = [
    Workload {
        name: "new-connections-pair",
        title: "New connections, side by side with SO_REUSEPORT",
        about: "The workload `new-connections` with two contestants alone, so that their turns follow each other at once.",
        rounds: PAIR,
        pair: Some(["reuseport", "pod-steer"]),
        within: 0.01,
        ..NEW_CONNECTIONS
    },
    Workload {
        name: "keep-alive-pair",
        title: "Kept connections, side by side with one listener",
        about: "The workload `keep-alive` with two contestants alone, so that their turns follow each other at once.",
        rounds: PAIR,
        pair: Some(["direct", "pod-steer-one"]),
        within: 0.01,
        has_p999: false,
        ..KEEP_ALIVE
    },
    Workload {
        name: "new-connections-bridge-pair",
        title: "New connections to containers behind a bridge, side by side with iptables DNAT",
        about: "The workload `new-connections` with two contestants alone, so that their turns follow each other at once.",
        rounds: PAIR,
        pair: Some(["dnat", "pod-steer-bridge"]),
        within: 0.01,
        ..NEW_CONNECTIONS
    },
    Workload {
        name: "new-connections-peer-pair",
        title: "New connections to containers behind a bridge with `via=peer`, side by side with iptables DNAT",
        about: "The workload `new-connections` with two contestants alone, so that their turns follow each other at once.",
        rounds: PAIR,
        pair: Some(["dnat", "pod-steer-bridge-peer"]),
        within: 0.01,
        ..NEW_CONNECTIONS
    },
    Workload {
        name: "new-connections-judged-pair",
        title: "New connections, with and without a judgement",
        about: "The workload `new-connections` with two contestants alone, so that their turns follow each other at once.",
        rounds: PAIR,
        pair: Some(["pod-steer", "pod-steer-judged"]),
        within: 0.01,
        ..NEW_CONNECTIONS
    },
    Workload {
        name: "keep-alive-judged-pair",
        title: "Kept connections, with and without a judgement",
        about: "The workload `keep-alive` with two contestants alone, so that their turns follow each other at once.",
        rounds: PAIR,
        pair: Some(["pod-steer", "pod-steer-judged"]),
        within: 0.01,
        has_p999: false,
        ..KEEP_ALIVE
    },
    NEW_CONNECTIONS,
    KEEP_ALIVE,
    Workload {
        name: "tls",
        title: "A TLS handshake for each request",
        about: "Each request comes on a connection of its own with a full handshake (ECDSA P-256, no session is resumed), \
                which the servers terminate. wrk is the client: its latency begins when the handshake is done, so it hides \
                most of the work. The throughput is the measure of the whole.",
        tls: true,
        time: Duration::from_secs(1),
        rounds: Rounds { full: 6, quick: 1, most: 6 },
        ..NEW_CONNECTIONS
    },
    Workload {
        name: "large",
        title: "Answers of 1 MiB",
        about: "Every connection carries one request after the other, each for 1 MiB.",
        path: LARGE,
        rounds: Rounds { full: 15, quick: 1, most: 15 },
        has_p999: false,
        throughput: ("mib_per_s", "MiB/s"),
        ..KEEP_ALIVE
    },
];

/// Key of the SYNs that were lost.
pub const LOST_SYNS: &str = "lost_syns";
/// Key of the errors.
pub const ERRORS: &str = "errors";

impl Workload {
    /// Whether a contestant takes part.
    pub fn has(&self, way: &Way) -> bool {
        self.pair.is_none_or(|pair| pair.contains(&way.name))
    }

    /// The base of a contestant's ratios.
    pub fn base(&self, way: &Way) -> Option<&'static str> {
        match self.pair {
            Some([base, ours]) => (way.name == ours).then_some(base),
            None => way.base,
        }
    }

    /// The measures, in the order of the columns.
    pub fn columns(&self) -> Vec<Column> {
        use Better::{Higher, Lower};
        let (key, title) = self.throughput;
        let pair = self.pair.is_some();
        let columns = [
            (key, title, Higher, true),
            ("p50_us", "p50, µs", Lower, !pair),
            ("p99_us", "p99, µs", Lower, true),
            ("p999_us", "p99.9, µs", Lower, self.has_p999),
            ("cpu_s", "CPU s per 100,000 requests, whole machine", Lower, true),
            ("own_cpu_s", "CPU s per 100,000 requests, own processes", Lower, !pair),
            ("memory_mib", "memory of own processes, MiB", Lower, !pair),
            (LOST_SYNS, "SYNs sent again or dropped", Lower, !pair),
            (ERRORS, "errors", Lower, true),
        ];
        let columns = columns.into_iter().filter(|(.., wanted)| *wanted);
        columns.map(|(key, title, better, _)| Column { key: key.into(), title: title.into(), better }).collect()
    }

    /// A description for people.
    pub fn about(&self, rounds: usize) -> String {
        let start = format!(
            "{} {} connections at a time from {} threads, {rounds} rounds. In each, every contestant has two turns of {} s, \
             in a random order and then in the reverse, and the round's figure is their mean. It is a closed loop: a \
             connection asks again when it has been answered, so a slow server is asked less.",
            self.about,
            wrk::CONNECTIONS,
            wrk::THREADS,
            self.time.as_secs_f64()
        );
        match self.pair {
            Some(_) => start,
            None => start + " " + SURROUNDINGS,
        }
    }
}

const SURROUNDINGS: &str = "All are on one host with Docker's firewall rules and connection tracking. New connections of all \
    of them, `direct`, `reuseport` and the proxies too, pass pod-steer's program, which finds nothing to do for those that \
    are not steered. While containers behind a bridge are forwarded to, each packet of all of them passes a program at its device too. Two listeners can beat the one queue that `direct`'s workers share, as `reuseport` shows: compare \
    pod-steer with that row too. The kernel program counted what it steered in each round: at least as many connections as \
    there must have been. Clients do not see a lost SYN, so the kernel's counters of them have a column. Own processes are \
    those beyond client and servers; pod-steer's work is done in the kernel, so it is in the whole machine's column.";
