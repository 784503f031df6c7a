//! The options of a service, each declared once. Labels, tables of the configuration, requests, `status` and the reference follow from
//! the declarations at the end of this file. Pure.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use super::declare::{Declaration, service_options};
use crate::{duration, rollout::Policy};

/// Longest time without a connection before a service sleeps, and longest time for which its clients are held when it wakes.
const IDLE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Longest time for which a connection is idle before it is closed in a drain.
const CLOSE_IDLE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest age at which connections are closed.
const MAX_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Maximum slow start.
const SLOW_START_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What happens to a new connection when a service has no backend left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// The client is refused at once.
    #[default]
    Refuse,
    /// The kernel's own lookup decides, as if the service did not exist.
    Pass,
}

/// What is read of the connections of a service while its versions are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Observe {
    /// Their beginnings, ends and times.
    #[default]
    Connections,
    /// Also the first line of each answer by HTTP/1 in plain text.
    Http,
}

impl fmt::Display for Observe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections",
            Self::Http => "http",
        })
    }
}

impl FromStr for Observe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Connections, Self::Http].into_iter().find(|known| known.to_string() == text).ok_or_else(|| {
            "unknown value; use connections (beginnings, ends and times of connections are observed) or http (also the status of each answer \
             by HTTP/1 in plain text)"
                .to_owned()
        })
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Pass => "pass",
        })
    }
}

impl FromStr for Fallback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Refuse, Self::Pass].into_iter().find(|known| known.to_string() == text).ok_or_else(|| {
            "unknown value; use refuse (when no backend is left, refuse clients at once) or pass (the kernel's own lookup decides, as if \
             there were no service)"
                .to_owned()
        })
    }
}

/// How the backend of a new connection is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Affinity {
    /// Addresses and ports of the connection.
    #[default]
    Connection,
    /// The client's address alone, or so many of its leading bits.
    Client {
        /// Leading bits of an IPv4 address, 1 to 32.
        bits_v4: u8,
        /// Leading bits of an IPv6 address, 1 to 128.
        bits_v6: u8,
    },
}

impl Affinity {
    /// Leading bits of a client's IPv4 and IPv6 address that choose its backend; 0 if addresses and ports of the connection do.
    pub fn client_bits(self) -> (u8, u8) {
        match self {
            Self::Connection => (0, 0),
            Self::Client { bits_v4, bits_v6 } => (bits_v4, bits_v6),
        }
    }

    /// A prefix length above 32 is one of IPv6. For a family without a prefix length the whole address counts.
    fn of_prefixes(prefixes: &str) -> Option<Self> {
        let bits = |text: &str, most: u8| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|bits| is_number && (1..=most).contains(bits))
        };
        let (bits_v4, bits_v6) = match prefixes.split_once(',') {
            Some((v4, v6)) => (bits(v4, 32)?, bits(v6, 128)?),
            None => match bits(prefixes, 128)? {
                v4 @ ..=32 => (v4, 128),
                v6 => (32, v6),
            },
        };
        Some(Self::Client { bits_v4, bits_v6 })
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection => f.write_str("connection"),
            Self::Client { bits_v4: 32, bits_v6: 128 } => f.write_str("client"),
            Self::Client { bits_v4, bits_v6: 128 } => write!(f, "client/{bits_v4}"),
            Self::Client { bits_v4: 32, bits_v6: bits @ 33.. } => write!(f, "client/{bits}"),
            Self::Client { bits_v4, bits_v6 } => write!(f, "client/{bits_v4},{bits_v6}"),
        }
    }
}

impl FromStr for Affinity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = match text {
            "connection" => Some(Self::Connection),
            "client" => Some(Self::Client { bits_v4: 32, bits_v6: 128 }),
            _ => text.strip_prefix("client/").and_then(Self::of_prefixes),
        };
        known.ok_or_else(|| {
            "unknown value; use connection or client, or a prefix of the client's address, 1 to 32 bits of IPv4 or 1 to 128 of IPv6, as in \
             client/24, client/64 or client/24,64"
                .to_owned()
        })
    }
}

impl TryFrom<String> for Affinity {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Affinity> for String {
    fn from(affinity: Affinity) -> Self {
        affinity.to_string()
    }
}

impl PartialSchema for Affinity {
    fn schema() -> RefOr<Schema> {
        let text =
            ObjectBuilder::new().schema_type(Type::String).pattern(Some("^(connection|client(/[0-9]+(,[0-9]+)?)?)$"));
        text.description(Some("`connection` or `client`, also with prefixes, as in `client/24,64`.")).into()
    }
}

impl ToSchema for Affinity {}

fn rollout(text: &str) -> Result<Policy, String> {
    [Policy::Balance, Policy::Latest, Policy::Manual].into_iter().find(|known| known.to_string() == text).ok_or_else(
        || {
            "unknown value; use balance (all versions share), latest (a new version takes over when it is ready) or manual (a new version \
             waits for a command)"
                .to_owned()
        },
    )
}

fn time(text: &str, max: Duration) -> Result<u64, String> {
    let time = duration::parse(text).map_err(|error| error.to_string())?;
    if time > max {
        return Err(format!("it is too long; the maximum is {}", duration::Written(max)));
    }
    u64::try_from(time.as_millis()).map_err(|error| error.to_string())
}

/// A time for which clients are held.
fn some_time(text: &str) -> Result<u64, String> {
    match time(text, IDLE_MAX)? {
        0 => Err("clients would be held for no time at all; give a longer one, as in 30s".to_owned()),
        ms => Ok(ms),
    }
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("it is not a whole number; write a percent, 0 to 100".to_owned());
    }
    let percent = number.parse().ok().filter(|percent| *percent <= 100);
    percent.ok_or_else(|| "it is too large; the maximum is 100".to_owned())
}

service_options! {
    fallback: Fallback {
        key: "fallback",
        values: "`refuse`, `pass`",
        default: Fallback::Refuse,
        doc: "What happens to a new connection when no backend can serve: `refuse` the client at once, or `pass` it to the kernel's own lookup.",
        read: str::parse,
        write: ToString::to_string,
    }
    rollout: Policy {
        key: "rollout",
        values: "`balance`, `latest`, `manual`",
        default: Policy::Balance,
        doc: "What happens when a new version appears: `balance` (all versions share), `latest` (it takes over when it is ready), `manual` \
              (it waits for a command).",
        read: rollout,
        write: ToString::to_string,
    }
    slow_start_ms: u64 {
        key: "slow-start",
        values: "a time up to `24h`, as in `30s`",
        default: 0,
        doc: "Time in which the share of a new backend grows to its full size. The API gives it in milliseconds.",
        read: |text| time(text, SLOW_START_MAX),
        write: |ms| duration::show_ms(*ms),
    }
    panic_percent: u8 {
        key: "panic-threshold",
        values: "percent, `0` to `100`",
        default: 1,
        doc: "If a smaller part of the backends passes its checks, the last ones that passed keep serving; `0` disables this.",
        read: percent,
        write: ToString::to_string,
    }
    affinity: Affinity {
        key: "affinity",
        values: "`connection`, `client`, `client/24`, `client/64`, `client/24,64`",
        default: Affinity::Connection,
        doc: "How the backend of a new connection is chosen: by the addresses and ports of the connection, or by the client's address alone. \
              Prefix lengths make clients of one network one client: `client/24` for IPv4, `client/64` for IPv6 (any length above 32), \
              `client/24,64` for both. Without a prefix length the whole address counts.",
        read: str::parse,
        write: ToString::to_string,
    }
    idle_ms: u64 {
        key: "idle",
        values: "a time up to `720h`, as in `15m`",
        default: 0,
        doc: "Time without a connection after which the service's containers are stopped. The next client is held, the containers are \
              started, and the client is served. `0s` disables this. The API gives it in milliseconds.",
        read: |text| time(text, IDLE_MAX),
        write: |ms| duration::show_ms(*ms),
    }
    idle_max_hold_ms: u64 {
        key: "idle-max-hold",
        values: "a time above `0s`, up to `720h`, as in `1m`",
        default: 60_000,
        doc: "Time for which clients are held at most while the containers of a service that sleeps are started; then they are refused. \
              The API gives it in milliseconds.",
        read: some_time,
        write: |ms| duration::show_ms(*ms),
    }
    drain_close_idle_ms: u64 {
        key: "drain.close-idle",
        values: "a time up to `24h`, as in `1s`",
        default: 0,
        doc: "Time for which a connection of an old version or a drained backend has been idle when its own server is made to close it: while a \
              `deploy` or `drain` waits for connections, unless that gives `--close-idle`. `0s` disables this. The API gives it in milliseconds.",
        read: |text| time(text, CLOSE_IDLE_MAX),
        write: |ms| duration::show_ms(*ms),
    }
    drain_max_age_ms: u64 {
        key: "drain.max-age",
        values: "a time up to `720h`, as in `1h`",
        default: 0,
        doc: "Time for which a connection of an old version or a drained backend has been open when its own server is made to close it between two \
              requests, though it is never idle for long: while a `deploy` or `drain` waits for connections, unless that gives `--max-age`. `0s` \
              disables this. The API gives it in milliseconds.",
        read: |text| time(text, MAX_AGE_MAX),
        write: |ms| duration::show_ms(*ms),
    }
    observe: Observe {
        key: "observe",
        values: "`connections`, `http`",
        default: Observe::Connections,
        doc: "What a canary compares of the versions: how their `connections` begin and end, and when their answers begin; with `http` also \
              the class of the status of each answer by HTTP/1 in plain text (2xx to 5xx), which the kernel program reads from its first line.",
        read: str::parse,
        write: ToString::to_string,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_values_are_read_back() {
        let given = GivenOptions {
            fallback: Some(Fallback::Pass),
            rollout: Some(Policy::Manual),
            slow_start_ms: Some(90_000),
            panic_percent: Some(50),
            affinity: Some(Affinity::Client { bits_v4: 24, bits_v6: 64 }),
            idle_ms: Some(900_000),
            idle_max_hold_ms: Some(30_000),
            drain_close_idle_ms: Some(1_000),
            drain_max_age_ms: Some(3_600_000),
            observe: Some(Observe::Http),
        };
        let written = given.written();
        let keys: Vec<&str> = written.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, KEYS, "every option is in this test");
        let texts = written.iter().map(|(key, text)| (*key, text.as_str())).collect();
        let read = GivenOptions::read(&texts, |key, text, wrong| panic!("{key}={text}: {wrong}"));
        assert_eq!(read, given);
        let json = serde_json::to_string(&given).unwrap();
        assert_eq!(serde_json::from_str::<GivenOptions>(&json).unwrap(), given);
        assert_eq!(serde_json::to_string(&GivenOptions::default()).unwrap(), "{}");
    }

    #[test]
    fn prefixes_of_affinity() {
        for (text, bits, written) in [
            ("connection", (0, 0), "connection"),
            ("client", (32, 128), "client"),
            ("client/24", (24, 128), "client/24"),
            ("client/32", (32, 128), "client"),
            ("client/64", (32, 64), "client/64"),
            ("client/24,64", (24, 64), "client/24,64"),
            ("client/32,20", (32, 20), "client/32,20"),
            ("client/8,128", (8, 128), "client/8"),
        ] {
            let affinity: Affinity = text.parse().unwrap();
            assert_eq!((affinity.client_bits(), affinity.to_string().as_str()), (bits, written), "{text}");
            assert_eq!(written.parse(), Ok(affinity), "{text}");
        }
        for text in [
            "",
            "Client",
            "client/",
            "client/0",
            "client/129",
            "client/33,64",
            "client/24,0",
            "client/+1",
            "client/24, 64",
        ] {
            assert!(text.parse::<Affinity>().is_err(), "{text}");
        }
    }

    #[test]
    fn given_options_override_weaker_ones() {
        let given = GivenOptions { slow_start_ms: Some(1), ..GivenOptions::default() };
        let weaker = GivenOptions { slow_start_ms: Some(2), panic_percent: Some(3), ..GivenOptions::default() };
        let all = given.or(&weaker).or_defaults();
        assert_eq!(all, ServiceOptions { slow_start_ms: 1, panic_percent: 3, ..ServiceOptions::default() });
        assert_eq!(GivenOptions::default().or_defaults(), ServiceOptions::default());
    }

    #[test]
    fn every_option_is_described() {
        for Declaration { key, values, default, doc, .. } in declarations() {
            assert!(!values.is_empty() && default.len() > 2 && doc.ends_with('.'), "{key}");
        }
    }
}
