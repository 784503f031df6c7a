//! What a container's labels ask for. Pure: labels in, a [`Spec`] or everything that is wrong with them out.
//!
//! The command line asks in flags for what labels ask, and an API client in JSON; they pass the same checks
//! ([`spec_from_flags`], [`Spec::check`]).
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt, ops::Range, str::FromStr};

use serde::{Deserialize, Serialize};

pub use error::{Field, LabelError};
pub(crate) use error::{distance, table_name};
pub use settings::from_table;

use crate::{
    health::CheckSpec,
    ports::{self, PortMap},
    rollout::Policy,
    text::Name,
};
use error::Origin;
use reader::Reader;

mod allowed;
mod error;
mod reader;
mod settings;

/// What every label of this project begins with. A container without one is none of our business.
pub const PREFIX: &str = "pod-steer.";
/// Largest weight.
pub const WEIGHT_MAX: u32 = 65_535;
/// Weight of a container that names none.
pub const WEIGHT_DEFAULT: u32 = 1;

/// Hexadecimal digits of a short image id, as `docker images` prints them.
const SHORT_ID_CHARS: usize = 12;
/// Keys without the prefix, in the order in which the documentation has them.
const KEYS: [&str; 18] = [
    "service",
    "ports",
    "version",
    "weight",
    "fallback",
    "rollout",
    "slow-start",
    "panic-threshold",
    "health",
    "health.port",
    "health.path",
    "health.status",
    "health.host",
    "health.command",
    "health.interval",
    "health.timeout",
    "health.healthy",
    "health.unhealthy",
];

/// What becomes of a new connection when a service has no backend left.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
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

/// The text is neither `refuse` nor `pass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write refuse or pass")]
pub struct NotAFallback;

impl FromStr for Fallback {
    type Err = NotAFallback;

    fn from_str(text: &str) -> Result<Self, NotAFallback> {
        [Self::Refuse, Self::Pass].into_iter().find(|known| known.to_string() == text).ok_or(NotAFallback)
    }
}

/// What a container asks for: to be a backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name of the service.
    pub service: String,
    /// Which version of the service the container is.
    pub version: String,
    /// The container's share of new connections relative to the other backends'; 0 is none.
    pub weight: u32,
    /// Ports of the service and where the container listens for them.
    pub ports: Vec<PortMap>,
    /// Which of these ports were written as a range: their places in the list.
    #[serde(default)]
    pub ranges: Vec<Range<usize>>,
    /// What happens when no backend is left.
    pub fallback: Fallback,
    /// What happens when a new version appears; nothing: as configured.
    #[serde(default)]
    pub rollout: Option<Policy>,
    /// How long the container's share grows to its full size, in milliseconds; nothing: as configured.
    #[serde(default)]
    pub slow_start_ms: Option<u64>,
    /// If fewer than so many percent of the backends pass their checks, those that last did stay; nothing: as
    /// configured.
    #[serde(default)]
    pub panic_percent: Option<u8>,
    /// The health check; nothing: as configured.
    #[serde(default)]
    pub check: Option<CheckSpec>,
}

impl Spec {
    /// Checks a spec that was not made here, but came from a client.
    pub fn check(&self) -> Result<(), Vec<LabelError>> {
        // Written out and read again: one place knows what a list of ports may be.
        let ports = ports::compact(&self.ports);
        spec_from_flags(&self.service, &ports, &self.version, self.weight, self.fallback).map(drop)
    }
}

/// Reads the labels of a container. `None` when none of them is ours; otherwise what they ask for, or every problem.
///
/// `default_version` stands in for a missing `pod-steer.version`; see [`default_version`].
pub fn parse<'a>(
    labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    default_version: &str,
) -> Option<Result<Spec, Vec<LabelError>>> {
    // Sorted: the same labels give the same list of problems, whatever map they come from.
    let ours: BTreeMap<&str, &str> =
        labels.into_iter().filter_map(|(label, value)| Some((label.strip_prefix(PREFIX)?, value))).collect();
    if ours.is_empty() {
        return None;
    }
    let mut reader = Reader::new(Origin::Label);
    for key in ours.keys().filter(|key| !KEYS.contains(key)) {
        reader.unknown(key);
    }
    let settings = settings::read(&mut reader, &ours);
    let spec = Spec {
        service: match ours.get("service") {
            Some(name) => reader.service(name),
            None => reader.missing("service", "give the service a name, as in pod-steer.service=web"),
        },
        ports: match ours.get("ports") {
            Some(list) => reader.ports(list),
            None => reader.missing("ports", "say which ports the service has, as in pod-steer.ports=80:8080"),
        },
        ranges: ours.get("ports").map(|list| ports::ranges(list)).unwrap_or_default(),
        version: reader.version(ours.get("version").unwrap_or(&default_version)),
        weight: ours.get("weight").map_or(WEIGHT_DEFAULT, |weight| reader.weight(weight)),
        fallback: ours.get("fallback").map_or(Fallback::default(), |fallback| reader.fallback(fallback)),
        rollout: settings.rollout,
        slow_start_ms: settings.slow_start_ms,
        panic_percent: settings.panic_percent,
        check: settings.check,
    };
    Some(reader.finish(spec))
}

/// What the flags of a command ask for, after the same checks as labels; the problems name the flags.
pub fn spec_from_flags(
    service: &str,
    ports: &str,
    version: &str,
    weight: u32,
    fallback: Fallback,
) -> Result<Spec, Vec<LabelError>> {
    let mut reader = Reader::new(Origin::Flag);
    let spec = Spec {
        service: reader.service(service),
        ports: reader.ports(ports),
        ranges: ports::ranges(ports),
        version: reader.version(version),
        weight: reader.weight(&weight.to_string()),
        fallback,
        rollout: None,
        slow_start_ms: None,
        panic_percent: None,
        check: None,
    };
    reader.finish(spec)
}

/// The version of a container that names none: its image's tag, or the image's short id. `latest` is a tag that says
/// nothing, and two images that bear it one after the other are two versions.
pub fn default_version(image: &str, image_id: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _digest)| name);
    // A colon before the last slash is the registry's port.
    let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
    let tag = last.split_once(':').filter(|(name, _)| *name != "sha256").map(|(_, tag)| tag);
    match tag {
        Some(tag) if tag != "latest" && Name::Version.fault(tag).is_none() => tag.to_owned(),
        _ => {
            let id = image_id.strip_prefix("sha256:").unwrap_or(image_id);
            let short: String = id.chars().take_while(char::is_ascii_hexdigit).take(SHORT_ID_CHARS).collect();
            if short.is_empty() { "unknown".to_owned() } else { short }
        }
    }
}

#[cfg(test)]
mod tests;
