//! Parses a container's labels to a [`Spec`], or to the list of all errors. Pure.
//!
//! Flags of the command line and requests of API clients pass the same checks ([`spec_from_flags`], [`check_spec`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

pub use crate::{
    settings::Spec,
    text::PREFIX,
    weight::{WEIGHT_DEFAULT, WEIGHT_MAX},
};
pub use error::{Field, LabelError};
pub use settings::from_table;

use crate::{
    ports,
    settings::{GivenOptions, Via, reference::label_keys},
    text::Name,
};
use error::Origin;
use reader::Reader;

mod allowed;
mod error;
mod reader;
mod settings;

/// Hexadecimal digits of a short image id, as `docker images` prints them.
const SHORT_ID_CHARS: usize = 12;
/// Checks a spec that came from a client.
pub fn check_spec(spec: &Spec) -> Result<(), Vec<LabelError>> {
    // Write the ports out and parse them again, so that only the parser defines what a list of ports may be.
    let ports = ports::compact(&spec.ports);
    spec_from_flags(&spec.service, &ports, &spec.version, spec.weight, spec.options).map(drop)
}

/// Parses the labels of a container. `None` if it has no pod-steer label; otherwise the spec, or every error.
///
/// `default_version` stands in for a missing `pod-steer.version`; see [`default_version`].
pub fn parse<'a>(
    labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    default_version: &str,
) -> Option<Result<Spec, Vec<LabelError>>> {
    // Sorted, so that the same labels always give the same list of errors.
    let ours: BTreeMap<&str, &str> =
        labels.into_iter().filter_map(|(label, value)| Some((label.strip_prefix(PREFIX)?, value))).collect();
    if ours.is_empty() {
        return None;
    }
    let mut reader = Reader::new(Origin::Label);
    for key in ours.keys().filter(|key| !label_keys().any(|known| known == **key)) {
        reader.unknown(key);
    }
    let spec = Spec {
        service: match ours.get("service") {
            Some(name) => reader.service(name),
            None => reader.missing("service", "give the service a name, as in pod-steer.service=web"),
        },
        ports: match ours.get("ports") {
            Some(list) => reader.ports(list),
            None => reader.missing("ports", "add the ports of the service, as in pod-steer.ports=80:8080"),
        },
        ranges: ours.get("ports").map(|list| ports::ranges(list)).unwrap_or_default(),
        version: reader.version(ours.get("version").unwrap_or(&default_version)),
        weight: ours.get("weight").map_or(WEIGHT_DEFAULT, |weight| reader.weight(weight)),
        via: ours.get("via").map_or(Via::default(), |via| reader.via(via)),
        options: reader.options(&ours),
        check: settings::check(&mut reader, &ours),
    };
    Some(reader.finish(spec))
}

/// Checks the flags of a command like labels. The errors name the flags.
pub fn spec_from_flags(
    service: &str,
    ports: &str,
    version: &str,
    weight: u32,
    options: GivenOptions,
) -> Result<Spec, Vec<LabelError>> {
    let mut reader = Reader::new(Origin::Flag);
    // Write the options out and parse them again, so that only the parser defines which values an option may have.
    let written = options.written();
    reader.options(&written.iter().map(|(key, text)| (*key, text.as_str())).collect());
    let spec = Spec {
        service: reader.service(service),
        ports: reader.ports(ports),
        ranges: ports::ranges(ports),
        version: reader.version(version),
        weight: reader.weight(&weight.to_string()),
        via: Via::default(),
        options,
        check: None,
    };
    reader.finish(spec)
}

/// The default version of a container: its image's tag, or the image's short id. For the tag `latest` it is the id, because two images
/// that have this tag one after the other are two versions.
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
