//! The keys of the configuration that restrict a service.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::reader::Reader;
use crate::settings::{Allowed, PortPolicy};

pub(super) fn read(reader: &mut Reader, values: &BTreeMap<&str, &str>) -> Allowed {
    Allowed { ports: values.get("allow-ports").and_then(|text| ports(reader, text)) }
}

fn ports(reader: &mut Reader, text: &str) -> Option<PortPolicy> {
    let ports = PortPolicy::parse(text);
    if ports.is_none() {
        reader.refuse("allow-ports", text, "it is not a list of ports; write it as in \"80,443,8000-8099\"");
    }
    ports
}
