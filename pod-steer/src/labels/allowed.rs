//! The keys of the configuration that restrict a service.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde_json::Value;

use super::reader::Reader;
use crate::settings::{Allowed, ImagePattern, PortPolicy};

pub(super) fn read(reader: &mut Reader, values: &BTreeMap<&str, &str>) -> Allowed {
    Allowed {
        ports: values.get("allow-ports").and_then(|text| ports(reader, text)),
        images: values.get("allow-images").and_then(|text| images(reader, text)),
    }
}

fn ports(reader: &mut Reader, text: &str) -> Option<PortPolicy> {
    let ports = PortPolicy::parse(text);
    if ports.is_none() {
        reader.refuse("allow-ports", text, "it is not a list of ports; write it as in \"80,443,8000-8099\"");
    }
    ports
}

fn images(reader: &mut Reader, text: &str) -> Option<Vec<ImagePattern>> {
    const KEY: &str = "allow-images";
    let items = list(reader, KEY, text, r#"["nginx", "registry.example/web:*"]"#)?;
    let read = items.iter().filter_map(|item| {
        let read = item.as_str().ok_or_else(|| "it is no text; write the name of an image".to_owned());
        read.and_then(ImagePattern::parse).map_err(|wrong| reader.refuse(KEY, &written(item), wrong)).ok()
    });
    Some(read.collect())
}

/// The items of a list, of which there is at least one: none would allow nothing at all.
fn list(reader: &mut Reader, key: &'static str, text: &str, example: &str) -> Option<Vec<Value>> {
    match serde_json::from_str::<Vec<Value>>(text) {
        Ok(items) if items.is_empty() => {
            reader.refuse(key, text, format!("it is empty; write at least one, as in {example}, or remove the key"));
        }
        Ok(items) => return Some(items),
        Err(_) => reader.refuse(key, text, format!("it is no list; write it as in {example}")),
    }
    None
}

/// An item of a list, without quotes.
fn written(item: &Value) -> String {
    item.as_str().map_or_else(|| item.to_string(), str::to_owned)
}
