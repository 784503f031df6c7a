//! Parses the keys of the configuration that restrict a service.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::reader::Reader;
use crate::settings::{Allowed, ImagePattern, PortPolicy};

/// `user_id` looks up a user by name.
pub(super) fn read(
    reader: &mut Reader,
    values: &BTreeMap<&str, &str>,
    user_id: &dyn Fn(&str) -> Option<u32>,
) -> Allowed {
    Allowed {
        ports: values.get("allow-ports").and_then(|text| ports(reader, text)),
        images: values.get("allow-images").and_then(|text| images(reader, text)),
        users: values.get("allow-users").and_then(|text| users(reader, text, user_id)),
    }
}

fn ports(reader: &mut Reader, text: &str) -> Option<PortPolicy> {
    let ports = PortPolicy::parse(text);
    if ports.is_none() {
        reader.refuse("allow-ports", text, "it is not a list of ports; write it as in \"80,443,8000-8999\"");
    }
    ports
}

fn images(reader: &mut Reader, text: &str) -> Option<Vec<ImagePattern>> {
    const KEY: &str = "allow-images";
    let items = list(reader, KEY, text, r#"["nginx", "registry.example/web:*"]"#)?;
    let read = items.iter().filter_map(|item| {
        let read = item.as_str().ok_or_else(|| "it is not a string; write the name of an image".to_owned());
        read.and_then(ImagePattern::parse).map_err(|wrong| reader.refuse(KEY, &written(item), wrong)).ok()
    });
    Some(read.collect())
}

fn users(reader: &mut Reader, text: &str, user_id: &dyn Fn(&str) -> Option<u32>) -> Option<BTreeSet<u32>> {
    const KEY: &str = "allow-users";
    let items = list(reader, KEY, text, r#"["www-data", 1000]"#)?;
    let read = items.iter().filter_map(|item| {
        let number = match item {
            Value::String(name) => name.parse().ok().or_else(|| user_id(name)),
            item => item.as_u64().and_then(|number| u32::try_from(number).ok()),
        };
        // The last number stands for no user.
        let number = number.filter(|number| *number != u32::MAX);
        if number.is_none() {
            reader.refuse(KEY, &written(item), "there is no such user; write a name from /etc/passwd, or a number");
        }
        number
    });
    Some(read.collect())
}

/// Parses a list of at least one item. An empty list would allow nothing at all.
fn list(reader: &mut Reader, key: &'static str, text: &str, example: &str) -> Option<Vec<Value>> {
    match serde_json::from_str::<Vec<Value>>(text) {
        Ok(items) if items.is_empty() => {
            reader.refuse(
                key,
                text,
                format!("it is empty; write at least one item, as in {example}, or remove the key"),
            );
        }
        Ok(items) => return Some(items),
        Err(_) => reader.refuse(key, text, format!("it is not a list; write it as in {example}")),
    }
    None
}

/// An item of a list, without quotes.
fn written(item: &Value) -> String {
    item.as_str().map_or_else(|| item.to_string(), str::to_owned)
}
