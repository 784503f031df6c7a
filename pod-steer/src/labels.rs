//! What a container's labels ask for. Pure: labels in, a [`Spec`] or everything that is wrong with them out.
//!
//! The command line asks in flags for what labels ask, and an API client in JSON; they pass the same checks
//! ([`spec_from_flags`], [`Spec::check`]).
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use error::{Field, LabelError};

use crate::ports::{self, PortMap, quoted};

mod error;

/// What every label of this project begins with. A container without one is none of our business.
pub const PREFIX: &str = "pod-steer.";
/// Most characters of a service's name.
pub const SERVICE_CHARS_MAX: usize = 63;
/// Most characters of a version, as of an image's tag.
pub const VERSION_CHARS_MAX: usize = 128;
/// Largest weight.
pub const WEIGHT_MAX: u32 = 65_535;
/// Weight of a container that names none.
pub const WEIGHT_DEFAULT: u32 = 1;

/// Hexadecimal digits of a short image id, as `docker images` prints them.
const SHORT_ID_CHARS: usize = 12;
/// Keys without the prefix, in the order in which the documentation has them.
const KEYS: [&str; 5] = ["service", "ports", "version", "weight", "fallback"];

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
    /// What happens when no backend is left.
    pub fallback: Fallback,
}

impl Spec {
    /// Ports on which the container listens.
    pub fn listening_ports(&self) -> Vec<u16> {
        self.ports.iter().map(|map| map.target).collect()
    }

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
    let mut check = Check { is_flag: false, errors: Vec::new() };
    check.errors.extend(ours.keys().filter(|key| !KEYS.contains(key)).map(|key| error::unknown(key)));
    let spec = Spec {
        service: match ours.get("service") {
            Some(name) => check.service(name),
            None => check.missing("service", "give the service a name, as in pod-steer.service=web"),
        },
        ports: match ours.get("ports") {
            Some(list) => check.ports(list),
            None => check.missing("ports", "say which ports the service has, as in pod-steer.ports=80:8080"),
        },
        version: check.version(ours.get("version").unwrap_or(&default_version)),
        weight: ours.get("weight").map_or(WEIGHT_DEFAULT, |weight| check.weight(weight)),
        fallback: ours.get("fallback").map_or(Fallback::default(), |fallback| check.fallback(fallback)),
    };
    Some(check.finish(spec))
}

/// What the flags of a command ask for, after the same checks as labels; the problems name the flags.
pub fn spec_from_flags(
    service: &str,
    ports: &str,
    version: &str,
    weight: u32,
    fallback: Fallback,
) -> Result<Spec, Vec<LabelError>> {
    let mut check = Check { is_flag: true, errors: Vec::new() };
    let spec = Spec {
        service: check.service(service),
        ports: check.ports(ports),
        version: check.version(version),
        weight: check.weight(&weight.to_string()),
        fallback,
    };
    check.finish(spec)
}

/// The version of a container that names none: its image's tag, or the image's short id. `latest` is a tag that says
/// nothing, and two images that bear it one after the other are two versions.
pub fn default_version(image: &str, image_id: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _digest)| name);
    // A colon before the last slash is the registry's port.
    let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
    let tag = last.split_once(':').filter(|(name, _)| *name != "sha256").map(|(_, tag)| tag);
    match tag {
        Some(tag) if tag != "latest" && version_fault(tag).is_none() => tag.to_owned(),
        _ => {
            let id = image_id.strip_prefix("sha256:").unwrap_or(image_id);
            let short: String = id.chars().take_while(char::is_ascii_hexdigit).take(SHORT_ID_CHARS).collect();
            if short.is_empty() { "unknown".to_owned() } else { short }
        }
    }
}

/// Reads one value after the other and collects what is wrong. A refused value reads as its type's default.
struct Check {
    is_flag: bool,
    errors: Vec<LabelError>,
}

impl Check {
    fn finish(self, spec: Spec) -> Result<Spec, Vec<LabelError>> {
        if self.errors.is_empty() { Ok(spec) } else { Err(self.errors) }
    }

    fn field(&self, key: &'static str) -> Field {
        Field::new(key, self.is_flag)
    }

    fn missing<T: Default>(&mut self, key: &'static str, remedy: &'static str) -> T {
        self.errors.push(LabelError::Missing { field: self.field(key), remedy });
        T::default()
    }

    fn refuse(&mut self, key: &'static str, value: &str, wrong: impl Into<String>) {
        let field = self.field(key);
        self.errors.push(LabelError::Value { field, value: quoted(value), wrong: wrong.into() });
    }

    fn service(&mut self, name: &str) -> String {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let count = name.chars().count();
        if name.is_empty() {
            self.refuse("service", name, "it is empty; write a name, as in web");
        } else if count > SERVICE_CHARS_MAX {
            let wrong = format!("it has {count} characters; write {SERVICE_CHARS_MAX} at the most");
            self.refuse("service", name, wrong);
        } else if let Some(c) = name.chars().find(|&c| !is_allowed(c)) {
            let wrong = format!("{} has no place in a name; write letters a-z, A-Z, digits, '.', '_', '-'", quote(c));
            self.refuse("service", name, wrong);
        } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            self.refuse("service", name, "it begins with a sign; begin with a letter or a digit, as in web");
        }
        name.to_owned()
    }

    fn ports(&mut self, list: &str) -> Vec<PortMap> {
        let field = self.field("ports");
        ports::parse_all(list).unwrap_or_else(|errors| {
            let error = |source| LabelError::Ports { field, value: quoted(list), source };
            self.errors.extend(errors.into_iter().map(error));
            Vec::new()
        })
    }

    fn version(&mut self, version: &str) -> String {
        if let Some(wrong) = version_fault(version) {
            self.refuse("version", version, wrong);
        }
        version.to_owned()
    }

    fn weight(&mut self, text: &str) -> u32 {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(weight) if is_number && weight <= WEIGHT_MAX => return weight,
            _ if is_number => self.refuse("weight", text, format!("it is too large; write {WEIGHT_MAX} at the most")),
            _ => {
                let wrong = format!("it is not a whole number; write one from 0 (no new connections) to {WEIGHT_MAX}");
                self.refuse("weight", text, wrong);
            }
        }
        WEIGHT_DEFAULT
    }

    fn fallback(&mut self, text: &str) -> Fallback {
        text.parse().unwrap_or_else(|NotAFallback| {
            let wrong = "it is neither refuse (clients are refused at once when no backend is left) nor pass \
                         (the kernel decides as if there were no service); write one of the two";
            self.refuse("fallback", text, wrong);
            Fallback::default()
        })
    }
}

/// What keeps a text from being a version.
fn version_fault(version: &str) -> Option<String> {
    let count = version.chars().count();
    if version.is_empty() {
        Some("it is empty; write a version, as in v1, or leave it out".to_owned())
    } else if count > VERSION_CHARS_MAX {
        Some(format!("it has {count} characters; write {VERSION_CHARS_MAX} at the most"))
    } else {
        let c = version.chars().find(|c| !c.is_ascii_graphic())?;
        Some(format!("{} has no place in a version; write printable ASCII without spaces, as in v1.2", quote(c)))
    }
}

fn quote(c: char) -> String {
    quoted(c.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests;
