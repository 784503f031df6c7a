//! The reference of labels, of keys of the configuration and of conditions: `docs/reference.md`, as `pod-steer reference` prints it. Pure.
#![forbid(unsafe_code)]

use super::{declare::Declaration, options};
use crate::{
    condition::{Reason, Severity},
    text::PREFIX,
};

/// Labels that say what one container serves.
pub(crate) static OF_BACKEND: [Declaration; 5] = [
    Declaration::new(
        "service",
        "a name",
        "required",
        "Name of the service. Containers with the same name share its ports.",
    ),
    Declaration::new(
        "ports",
        "`[ip:]port[-port][:container-port[-port]]`, a list",
        "required",
        "The ports that clients connect to, and the ports that the container listens on, in the syntax of `docker run -p`.",
    ),
    Declaration::new(
        "version",
        "a version",
        "the image's tag, else its short id",
        "Version of the service that the container runs.",
    ),
    Declaration::new(
        "weight",
        "`0` to `65535`",
        "`1`",
        "Share of new connections, relative to the other backends; `0` for none.",
    ),
    Declaration::new(
        "via",
        "`auto`, `socket`, `forward`, `peer`",
        "`auto`",
        "How clients reach the container: `socket` by its sockets, which must be where clients arrive (the host's network, or a pod), \
         `forward` by forwarding their packets to its own network namespace behind a bridge, `peer` by handing them over past the host's firewall. `auto` is `socket` on the host's network and in \
         pods, else `forward`.",
    ),
];

/// Labels, and keys of a service's table, that say how a backend is checked.
pub(crate) static HEALTH: [Declaration; 10] = [
    Declaration::new(
        "health",
        "`tcp`, `http`, `exec`, `none`",
        "`none`",
        "The kind of check: `tcp` connects, `http` sends a request, `exec` runs a command in the container. In a table, `health.kind`.",
    )
    .sample("\"http\""),
    Declaration::new(
        "health.port",
        "a port",
        "the container's first one",
        "The port to connect to; for `tcp` and `http`.",
    )
    .sample("8080"),
    Declaration::new("health.path", "a path", "`/`", "The path to request; for `http`."),
    Declaration::new(
        "health.status",
        "a status code or a range of them",
        "`200-399`",
        "The status codes that pass; for `http`.",
    ),
    Declaration::new(
        "health.host",
        "a host, with or without a port",
        "the address of the socket",
        "The `Host` of the request; for `http`.",
    )
    .sample("\"example.org\""),
    Declaration::new(
        "health.command",
        "a command",
        "required",
        "The command: a line for the container's shell, or a list as in `[\"/check\", \"--fast\"]`; for `exec`.",
    )
    .sample("[\"/check\", \"--fast\"]"),
    Declaration::new("health.interval", "a time, `10ms` to `24h`", "`5s`", "Interval between checks."),
    Declaration::new(
        "health.timeout",
        "a time, `10ms` to `24h`",
        "`2s`",
        "Time limit of a check; a check that takes longer fails.",
    ),
    Declaration::new(
        "health.healthy",
        "`1` to `1000`",
        "`1`",
        "Successes in a row after which a backend counts as healthy.",
    ),
    Declaration::new(
        "health.unhealthy",
        "`1` to `1000`",
        "`3`",
        "Failures in a row after which a backend counts as unhealthy.",
    ),
];

/// Keys of a check that are valid only for some kinds. All others are valid for every kind.
const OF_KIND: [(&str, &[&str]); 5] = [
    ("health.port", &["tcp", "http"]),
    ("health.path", &["http"]),
    ("health.status", &["http"]),
    ("health.host", &["http"]),
    ("health.command", &["exec"]),
];

/// The kinds of check that use a key.
pub(crate) fn kinds(key: &str) -> &'static [&'static str] {
    OF_KIND.into_iter().find(|(of, _)| *of == key).map_or(&["tcp", "http", "exec"], |(_, kinds)| kinds)
}

/// Keys of a service's table that no label sets.
pub(crate) static RESTRICTIONS: [Declaration; 3] = [
    Declaration::new(
        "allow-ports",
        "ports and ranges, as in `\"80,443,8000-8999\"`",
        "all",
        "The ports that the service may claim. The daemon-wide `allow-ports`, outside of the tables, must allow them too.",
    )
    .sample("\"80,443,8000-8999\""),
    Declaration::new(
        "allow-images",
        "a list, as in `[\"nginx:*\", \"registry.example/team/**\", \"sha256:…\"]`",
        "all",
        "The images that its containers may have. Processes (`exec`, `register`) have no image and are refused.",
    )
    .sample("[\"nginx:*\", \"registry.example/team/**\"]"),
    Declaration::new(
        "allow-users",
        "a list, as in `[\"www-data\", 1000]`",
        "all",
        "The users that its listening sockets may belong to.",
    )
    .sample("[\"www-data\", 1000]"),
];

/// Every key that a label may have, in the order of the reference.
pub(crate) fn label_keys() -> impl Iterator<Item = &'static str> {
    keys(&OF_BACKEND).chain(options::KEYS.iter().copied()).chain(keys(&HEALTH))
}

/// Every key that a service's table may have, in the order of the reference.
pub fn table_keys() -> impl Iterator<Item = &'static str> {
    options::KEYS.iter().copied().chain(keys(&HEALTH)).chain(keys(&RESTRICTIONS))
}

fn keys(of: &'static [Declaration]) -> impl Iterator<Item = &'static str> {
    of.iter().map(|declared| declared.key)
}

const HEAD: &str = "\
# Labels, configuration keys and conditions

`pod-steer reference` prints this page from the declarations in `pod-steer-model/src/settings` and `condition/reason.rs`; do not edit it
by hand.

A label is a key with the prefix `pod-steer.`. In the file `/etc/pod-steer.toml`, keys are set in the table of a service:

```toml
[service.web]
slow-start = \"30s\"

[service.web.health]
kind = \"http\"
path = \"/ready\"

[service.\"*\"]
rollout = \"latest\"
```

## What a container serves

These are labels only, set for each container.
";

const OF_SERVICE: &str = "
## How a service behaves

Labels and keys. Every service has one value of each option, and `status -o json` shows it. The value comes from the first of these that sets
the option:

1. the labels of the service's newest backend (the one that pod-steer discovered last, even if it has stopped);
2. the table of the service, `[service.NAME]`;
3. the table of all services, `[service.\"*\"]`;
4. the default.

`exec` and `register` have flags of the same names instead of labels, as in `--slow-start 30s` and `--drain-close-idle 1s`. If the labels of another running backend would
give another value, the service has the condition `options-disagree`.
";

const OF_HEALTH: &str = "
## Health checks

Labels and keys. The check of a backend comes from its labels, else from the table of its service, else from the table of all services. It is
taken as a whole: a label `pod-steer.health` replaces the check of a table with all of its keys.
";

const OF_RESTRICTIONS: &str = "
## What restricts a service

Keys only; no label can set them. If the table of a service does not have a key, the one of `[service.\"*\"]` applies.
";

const OF_CONDITIONS: &str = "
## Conditions

A condition says what is wrong with a backend, a service, an engine or the daemon, or which feature a backend lacks. `status` shows its message
and its remedy. In JSON it has a `reason` and a `severity` as well; programs compare the reason, which keeps its name when the
texts change. `warning`: an operator has to act, or clients are affected. `info`: the backend serves, and lacks a feature.

| reason | severity | meaning |
|---|---|---|
";

/// The page.
pub fn page() -> String {
    let label = |key: &str| format!("`{PREFIX}{key}`");
    let key = |key: &str| format!("`{key}`");
    let parts = [
        (HEAD, "label", table(&OF_BACKEND, label)),
        (OF_SERVICE, "label and key", table(&options::declarations(), label)),
        (OF_HEALTH, "label and key", table(&HEALTH, label)),
        (OF_RESTRICTIONS, "key", table(&RESTRICTIONS, key)),
    ];
    let parts = parts.map(|(text, title, rows)| {
        format!("{text}\n| {title} | values | default | meaning |\n|---|---|---|---|\n{rows}")
    });
    let conditions = Reason::ALL.iter().map(|reason| {
        let severity = match reason.severity() {
            Severity::Warning => "`warning`",
            Severity::Info => "`info`",
        };
        format!("| `{reason}` | {severity} | {} |\n", reason.meaning())
    });
    parts.concat() + OF_CONDITIONS + &conditions.collect::<String>()
}

fn table(declared: &[Declaration], name: impl Fn(&str) -> String) -> String {
    let row = |declared: &Declaration| {
        let Declaration { key, values, default, doc, sample: _ } = declared;
        format!("| {} | {values} | {default} | {doc} |\n", name(key))
    };
    declared.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{
        check::{CheckKind, CheckSpec},
        duration,
        weight::{WEIGHT_DEFAULT, WEIGHT_MAX},
    };

    #[test]
    fn the_defaults_are_those_of_the_code() {
        let check = CheckSpec::new(CheckKind::Tcp);
        for (key, default) in [
            ("health.interval", duration::show_ms(check.interval_ms)),
            ("health.timeout", duration::show_ms(check.timeout_ms)),
            ("health.healthy", check.healthy.to_string()),
            ("health.unhealthy", check.unhealthy.to_string()),
            ("weight", WEIGHT_DEFAULT.to_string()),
        ] {
            let declared = HEALTH.iter().chain(&OF_BACKEND).find(|declared| declared.key == key).expect(key);
            assert_eq!(declared.default, format!("`{default}`"), "{key}");
        }
        let weight = OF_BACKEND.iter().find(|declared| declared.key == "weight").expect("it is declared");
        assert!(weight.values.contains(&format!("`{WEIGHT_MAX}`")));
    }

    #[test]
    fn the_page_in_docs_is_this_one() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
        let committed = fs::read_to_string(file).unwrap_or_default();
        assert!(committed == page(), "`cargo run -p pod-steer -- reference > docs/reference.md` writes it anew");
    }

    #[test]
    fn every_reason_is_in_the_reference() {
        let page = page();
        for reason in Reason::ALL {
            assert_eq!(page.matches(&format!("\n| `{reason}` | ")).count(), 1, "{reason}");
        }
    }

    #[test]
    fn no_key_is_declared_twice() {
        for mut keys in [label_keys().collect::<Vec<_>>(), table_keys().collect()] {
            let all = keys.len();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), all);
        }
    }
}
