//! The options of a service, each declared once. Labels, tables of the configuration, requests, `status` and the reference follow from
//! the declarations at the end of this file. Pure.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::declare::{Declaration, service_options};
use crate::{duration, rollout::Policy};

/// Longest slow start.
const SLOW_START_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What becomes of a new connection when a service has no backend left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// The client is refused at once.
    #[default]
    Refuse,
    /// The kernel's own lookup decides, as if the service did not exist.
    Pass,
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
            "unknown value; use refuse (clients are refused at once when no backend is left) or pass (the kernel decides as if there were \
             no service)"
                .to_owned()
        })
    }
}

fn rollout(text: &str) -> Result<Policy, String> {
    [Policy::Balance, Policy::Latest, Policy::Manual].into_iter().find(|known| known.to_string() == text).ok_or_else(
        || {
            "unknown value; use balance (all versions share), latest (a new version takes over when it is ready) or manual (a new version \
             waits for a command)"
                .to_owned()
        },
    )
}

fn slow_start(text: &str) -> Result<u64, String> {
    let time = duration::parse(text).map_err(|error| error.to_string())?;
    if time > SLOW_START_MAX {
        return Err(format!("it is too long; write {} at the most", duration::Written(SLOW_START_MAX)));
    }
    u64::try_from(time.as_millis()).map_err(|error| error.to_string())
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim_end();
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("it is not a whole number; write a percent, 0 to 100".to_owned());
    }
    let percent = number.parse().ok().filter(|percent| *percent <= 100);
    percent.ok_or_else(|| "it is too large; write 100 at the most".to_owned())
}

service_options! {
    fallback: Fallback {
        key: "fallback",
        values: "`refuse`, `pass`",
        default: Fallback::Refuse,
        doc: "What happens to a new connection when no backend is left: `refuse` the client at once, or `pass` to the kernel's own lookup.",
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
        doc: "How long the share of a new backend grows to its full size. The API has it in milliseconds.",
        read: slow_start,
        write: |ms| duration::show_ms(*ms),
    }
    panic_percent: u8 {
        key: "panic-threshold",
        values: "percent, `0` to `100`",
        default: 1,
        doc: "If a smaller part of the backends passes their checks, the last ones that passed serve on; `0` for never.",
        read: percent,
        write: ToString::to_string,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let given = GivenOptions {
            fallback: Some(Fallback::Pass),
            rollout: Some(Policy::Manual),
            slow_start_ms: Some(90_000),
            panic_percent: Some(50),
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
    fn what_is_given_comes_first() {
        let given = GivenOptions { slow_start_ms: Some(1), ..GivenOptions::default() };
        let weaker = GivenOptions { slow_start_ms: Some(2), panic_percent: Some(3), ..GivenOptions::default() };
        let all = given.or(&weaker).or_defaults();
        assert_eq!(all, ServiceOptions { slow_start_ms: 1, panic_percent: 3, ..ServiceOptions::default() });
        assert_eq!(GivenOptions::default().or_defaults(), ServiceOptions::default());
    }

    #[test]
    fn every_option_is_described() {
        for Declaration { key, values, default, doc } in declarations() {
            assert!(!values.is_empty() && default.len() > 2 && doc.ends_with('.'), "{key}");
        }
    }
}
