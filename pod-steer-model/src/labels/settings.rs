//! Parses a service's table in the configuration, and the health check of a table or a container. A value that would have no effect is an
//! error.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, time::Duration};

use super::{LabelError, allowed, error::Origin, reader::Reader};
use crate::{
    check::{CheckKind, CheckSpec, HEALTHY_DEFAULT, StatusRange, UNHEALTHY_DEFAULT},
    duration,
    settings::{
        Settings,
        reference::{HEALTH, kinds, table_keys},
    },
};

/// Longest time of a check.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest interval and time limit of a check, so that checks do not load the server.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Longest path, host or command.
const CHARS_MAX: usize = 1_024;
/// Maximum number of results in a row.
const STREAK_MAX: u32 = 1_000;

/// Reads one table of the configuration, `[service.NAME]`. `user_id` looks up a user by name.
pub fn from_table(
    service: &str,
    values: &BTreeMap<String, String>,
    user_id: &dyn Fn(&str) -> Option<u32>,
) -> Result<Settings, Vec<LabelError>> {
    let mut reader = Reader::new(Origin::Table(service.to_owned()));
    let values: BTreeMap<&str, &str> = values.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    for key in values.keys().filter(|key| !table_keys().any(|known| known == **key)) {
        reader.unknown(key);
    }
    let settings = Settings {
        options: reader.options(&values),
        check: check(&mut reader, &values),
        allowed: allowed::read(&mut reader, &values, user_id),
    };
    reader.finish(settings)
}

fn time(reader: &mut Reader, key: &'static str, text: &str) -> Option<u64> {
    match duration::parse(text) {
        Err(error) => reader.refuse(key, text, error.to_string()),
        Ok(time) if time < INTERVAL_MIN => {
            reader.refuse(key, text, format!("it is too short; the minimum is {}", duration::Written(INTERVAL_MIN)));
        }
        Ok(time) if time > DAY => {
            reader.refuse(key, text, format!("it is too long; the maximum is {}", duration::Written(DAY)));
        }
        Ok(time) => return u64::try_from(time.as_millis()).ok(),
    }
    None
}

pub(super) fn check(reader: &mut Reader, values: &BTreeMap<&str, &str>) -> Option<CheckSpec> {
    let details = HEALTH.iter().map(|declared| declared.key).filter(|key| *key != "health" && values.contains_key(key));
    let Some(&kind) = values.get("health") else {
        for key in details {
            let wrong = format!("there is no health check; add {}=tcp, http or exec", reader.field("health"));
            reader.refuse(key, values[key], wrong);
        }
        return None;
    };
    if !["none", "tcp", "http", "exec"].contains(&kind) {
        let wrong = "unknown value; use tcp, http, exec or none";
        reader.refuse("health", kind, wrong);
        return None;
    }
    for key in details {
        let kinds = kinds(key);
        if !kinds.contains(&kind) {
            let wrong = format!(
                "a check of kind {kind} does not use it; remove it, or write {}={}",
                reader.field("health"),
                kinds[0]
            );
            reader.refuse(key, values[key], wrong);
        }
    }
    let mut check = CheckSpec::new(match kind {
        "tcp" => CheckKind::Tcp,
        "http" => http(reader, values),
        "exec" => exec(reader, values.get("health.command").copied()),
        _ => CheckKind::None,
    });
    if let Some(text) = values.get("health.port") {
        let port = reader.number("health.port", text, 1..=65_535, "the maximum is 65535", "write a port, 1 to 65535");
        check.port = port.and_then(|port| u16::try_from(port).ok());
    }
    if let Some(ms) = values.get("health.interval").and_then(|text| time(reader, "health.interval", text)) {
        check.interval_ms = ms;
    }
    if let Some(ms) = values.get("health.timeout").and_then(|text| time(reader, "health.timeout", text)) {
        check.timeout_ms = ms;
    }
    check.healthy = streak(reader, values, "health.healthy", HEALTHY_DEFAULT);
    check.unhealthy = streak(reader, values, "health.unhealthy", UNHEALTHY_DEFAULT);
    Some(check)
}

fn streak(reader: &mut Reader, values: &BTreeMap<&str, &str>, key: &'static str, default: u32) -> u32 {
    let range = format!("write a number of results in a row, 1 to {STREAK_MAX}");
    let most = format!("the maximum is {STREAK_MAX}");
    let read = values.get(key).map(|text| reader.number(key, text, 1..=STREAK_MAX, &most, &range));
    read.flatten().unwrap_or(default)
}

fn http(reader: &mut Reader, values: &BTreeMap<&str, &str>) -> CheckKind {
    let path = values.get("health.path").copied().unwrap_or("/");
    if !path.starts_with('/') || !plain(path) || path.contains('#') {
        let wrong =
            format!("it is not a path; write printable ASCII that begins with /, at most {CHARS_MAX} characters");
        reader.refuse("health.path", path, wrong);
    }
    let host = values.get("health.host").copied();
    if let Some(host) = host.filter(|host| host.is_empty() || !plain(host) || host.contains(['/', '@', '?', '#'])) {
        reader.refuse("health.host", host, "it is not a host; write a name, as in example.org or example.org:8080");
    }
    let status = values.get("health.status").and_then(|text| status(reader, text));
    CheckKind::Http { path: path.to_owned(), host: host.map(str::to_owned), status: status.unwrap_or_default() }
}

/// Printable ASCII without spaces, of a length that fits in a request.
fn plain(text: &str) -> bool {
    text.len() <= CHARS_MAX && text.bytes().all(|b| b.is_ascii_graphic())
}

fn status(reader: &mut Reader, text: &str) -> Option<StatusRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let code = |text: &str| text.parse::<u16>().ok().filter(|code| (100..=599).contains(code) && text.len() == 3);
    match (code(first), code(last)) {
        (Some(first), Some(last)) if first <= last => Some(StatusRange { first, last }),
        _ => {
            let wrong = "it is not a status or a range of them; write numbers from 100 to 599, as in 200 or 200-399";
            reader.refuse("health.status", text, wrong);
            None
        }
    }
}

/// Parses a command. A JSON list is run as it is, anything else by the container's shell, as in Docker.
fn exec(reader: &mut Reader, text: Option<&str>) -> CheckKind {
    let Some(text) = text else {
        let remedy = "add the command of the check, as in curl -fs localhost:8080 or [\"/check\", \"--fast\"]";
        return CheckKind::Exec { command: reader.missing("health.command", remedy) };
    };
    let list = text.trim_start().starts_with('[');
    let command = if list {
        serde_json::from_str(text).unwrap_or_default()
    } else {
        vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]
    };
    if text.trim().is_empty() {
        reader.refuse("health.command", text, "it is empty; write a command, as in curl -fs localhost:8080");
    } else if text.len() > CHARS_MAX {
        reader.refuse("health.command", text, format!("it has more than {CHARS_MAX} characters; put it into a script"));
    } else if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
        let wrong = "it is not a list of words; write it as JSON has it, as in [\"/check\", \"--fast\"]";
        reader.refuse("health.command", text, wrong);
    }
    CheckKind::Exec { command }
}
