//! The tables `[service.NAME]` of the configuration, in the words of the labels.

use std::collections::BTreeMap;

use toml::Value;

use crate::{
    labels::{self, LabelError},
    settings::{ServiceTables, Settings, names::bare_or_quoted, reference::table_keys},
    text::Name,
};

/// The name of the table for every service.
const EVERY: &str = "*";

/// An error in a table.
#[derive(Debug)]
pub(super) struct Fault {
    /// The key, a part for each table that it is in.
    pub key: Vec<String>,
    /// What is wrong, and the remedy; it names the key.
    pub message: String,
}

/// Reads the tables, or returns every error. `user_id` looks up a user by name.
pub(super) fn read(
    tables: &BTreeMap<String, toml::Table>,
    user_id: &dyn Fn(&str) -> Option<u32>,
) -> Result<ServiceTables, Vec<Fault>> {
    let mut services = ServiceTables::default();
    let mut errors = Vec::new();
    for (name, table) in tables {
        match one(name, table, user_id) {
            Ok(settings) if name == EVERY => services.others = settings,
            Ok(settings) => drop(services.named.insert(name.clone(), settings)),
            Err(wrong) => errors.extend(wrong),
        }
    }
    if errors.is_empty() { Ok(services) } else { Err(errors) }
}

fn one(name: &str, table: &toml::Table, user_id: &dyn Fn(&str) -> Option<u32>) -> Result<Settings, Vec<Fault>> {
    let table_key = ["service".to_owned(), name.to_owned()];
    if name != EVERY
        && let Some(error) = Name::Service.fault(name)
    {
        return Err(vec![Fault { key: table_key.into(), message: format!("service.{name:?} is refused: {error}") }]);
    }
    let mut values = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) if is_table(key) => {
                for (inner, value) in inner {
                    // The key `kind` is the label `health` itself.
                    let is_kind = key == "health" && inner == "kind";
                    values.insert(if is_kind { key.clone() } else { format!("{key}.{inner}") }, text(value));
                }
            }
            // `health = "tcp"` stands for a table with `kind = "tcp"` only.
            value => drop(values.insert(key.clone(), text(value))),
        }
    }
    let prefix = format!("service.{}.", bare_or_quoted(name));
    let fault = |error: &LabelError| {
        let key = error.name();
        let key = key.strip_prefix(&prefix).unwrap_or_default();
        let parts = match key.split_once('.').filter(|(table, _)| is_table(table)) {
            Some((table, key)) => vec![table.to_owned(), key.to_owned()],
            None => vec![key.to_owned()],
        };
        Fault { key: table_key.iter().cloned().chain(parts).collect(), message: error.to_string() }
    };
    labels::from_table(name, &values, user_id).map_err(|errors| errors.iter().map(fault).collect())
}

/// Whether the labels with this first part are the keys of a table within that of the service.
fn is_table(part: &str) -> bool {
    table_keys().any(|key| key.strip_prefix(part).is_some_and(|rest| rest.starts_with('.')))
}

/// A value as the text of a label: a number as it is, a list (a command) as JSON.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => serde_json::to_string(value).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::{CheckKind, CheckSpec, StatusRange},
        rollout::Policy,
        settings::{Fallback, GivenOptions, PortPolicy},
    };

    fn parse(text: &str) -> Result<ServiceTables, Vec<Fault>> {
        let user_id = |name: &str| (name == "root").then_some(0);
        read(&toml::from_str::<BTreeMap<String, toml::Table>>(text).expect("it is TOML"), &user_id)
    }

    #[test]
    fn keys_are_those_of_the_labels() {
        let services = parse(
            "[web]\nfallback = 'pass'\nrollout = 'latest'\nslow-start = '30s'\npanic-threshold = 50\n\
             [web.health]\nkind = 'http'\npath = '/ready'\nstatus = 204\nunhealthy = 2\ninterval = '1s'\n\
             [web.drain]\nclose-idle = '2s'\n\
             ['*']\nhealth = 'tcp'\n\
             [job.health]\nkind = 'exec'\ncommand = ['/check', 'it']\n",
        )
        .expect("all of it is known");
        let web = &services.named["web"];
        let given = GivenOptions {
            fallback: Some(Fallback::Pass),
            rollout: Some(Policy::Latest),
            slow_start_ms: Some(30_000),
            panic_percent: Some(50),
            drain_close_idle_ms: Some(2_000),
            ..GivenOptions::default()
        };
        assert_eq!(web.options, given);
        assert_eq!(parse("[web]\nallow-ports = 80").unwrap().named["web"].allowed.ports, PortPolicy::parse("80"));
        let users = &parse("[web]\nallow-users = ['root', 1000, '1001']").unwrap().named["web"].allowed.users;
        assert_eq!(*users, Some([0, 1000, 1001].into()));
        let status = StatusRange { first: 204, last: 204 };
        let kind = CheckKind::Http { path: "/ready".into(), host: None, status };
        assert_eq!(web.check, Some(CheckSpec { interval_ms: 1000, unhealthy: 2, ..CheckSpec::new(kind) }));
        assert_eq!(services.others.check, Some(CheckSpec::new(CheckKind::Tcp)));
        let command = vec!["/check".to_owned(), "it".to_owned()];
        assert_eq!(services.named["job"].check, Some(CheckSpec::new(CheckKind::Exec { command })));
    }

    #[test]
    fn each_error_names_the_key() {
        for (text, expected) in [
            ("[web]\nrolout = 'latest'", "service.web.rolout is unknown; did you mean rollout?"),
            ("[web]\nslow-start = 30", "service.web.slow-start=\"30\" is refused: it has no unit"),
            ("['*']\npanic-threshold = 101", "service.\"*\".panic-threshold=\"101\" is refused: it is too large"),
            (
                "[web.health]\npath = '/'",
                "service.web.health.path=\"/\" is refused: there is no health check; add service.web.health.kind=",
            ),
            ("[web.health]\nkind = 'tpc'", "service.web.health.kind=\"tpc\" is refused: unknown value; use tcp"),
            (
                "[web.health]\nkind = 'tcp'\npath = '/'",
                "service.web.health.path=\"/\" is refused: a check of kind tcp does not use it",
            ),
            ("[web.drain]\nclose-idl = '1s'", "service.web.drain.close-idl is unknown; did you mean drain.close-idle?"),
            ("['a b']", "service.\"a b\" is refused: \" \" is not allowed in a name"),
            (
                "[web]\nallow-ports = '80-'",
                "service.web.allow-ports=\"80-\" is refused: it is not a list of ports; write",
            ),
            (
                "[web]\nallow-ports = [80, 443]",
                "service.web.allow-ports=\"[80,443]\" is refused: it is not a list of ports",
            ),
            ("[web]\nallow-port = '80'", "service.web.allow-port is unknown; did you mean allow-ports?"),
            (
                "[web]\nallow-images = 'nginx'",
                "service.web.allow-images=\"nginx\" is refused: it is not a list; write it as in",
            ),
            ("[web]\nallow-images = []", "service.web.allow-images=\"[]\" is refused: it is empty; write at least one"),
            (
                "[web]\nallow-images = ['ok', 'a b']",
                "service.web.allow-images=\"a b\" is refused: it is not the name of an image",
            ),
            (
                "[web]\nallow-images = ['sha256:0a']",
                "service.web.allow-images=\"sha256:0a\" is refused: an id is sha256:",
            ),
            ("[web]\nallow-images = [7]", "service.web.allow-images=\"7\" is refused: it is not a string"),
            (
                "[web]\nallow-users = 'root'",
                "service.web.allow-users=\"root\" is refused: it is not a list; write it as in",
            ),
            ("[web]\nallow-users = []", "service.web.allow-users=\"[]\" is refused: it is empty; write at least one"),
            (
                "[web]\nallow-users = ['root', 'rot']",
                "service.web.allow-users=\"rot\" is refused: there is no such user; write",
            ),
            ("[web]\nallow-users = [-1]", "service.web.allow-users=\"-1\" is refused: there is no such user"),
            (
                "[web]\nallow-users = [4294967295]",
                "service.web.allow-users=\"4294967295\" is refused: there is no such user",
            ),
            ("[web]\nallow-users = [1.5]", "service.web.allow-users=\"1.5\" is refused: there is no such user"),
            (
                "[web]\nweight = 2",
                "service.web.weight is unknown; remove it, or use one of fallback, rollout, slow-start",
            ),
        ] {
            let errors = parse(text).expect_err(text);
            assert_eq!(errors.len(), 1, "{errors:?}");
            let Fault { key, message } = &errors[0];
            assert!(message.contains(expected), "{text}\n said: {message}\n  not: {expected}");
            assert!(key[0] == "service" && ["web", "*", "a b"].contains(&key[1].as_str()), "{key:?}");
            assert!(key.get(2).is_none_or(|key| text.contains(key)), "{key:?}");
        }
    }
}
