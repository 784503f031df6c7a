//! Labels of a container: the image on the first line, then one `key=value` a line, without the prefix.

use pod_steer::{
    labels::{self, PREFIX, Spec},
    settings::ServiceTables,
    slots::build,
};

use crate::{assert_one_line, plan, slots};

pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (image, labels) = text.split_once('\n').unwrap_or((&text, ""));
    let labels = labels.lines().filter_map(|line| line.split_once('='));
    let labels: Vec<(String, &str)> = labels.map(|(key, value)| (format!("{PREFIX}{key}"), value)).collect();
    let labels = labels.iter().map(|(key, value)| (key.as_str(), *value));
    check(labels, &labels::default_version(image, "sha256:0123456789abcdef"));
}

/// Reads labels; what is accepted can be planned.
pub fn check<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>, version: &str) {
    match labels::parse(labels, version) {
        None => {}
        Some(Ok(spec)) => check_spec(spec),
        Some(Err(errors)) => {
            assert!(!errors.is_empty());
            errors.iter().for_each(|error| assert_one_line(&error.to_string()));
        }
    }
}

/// What holds of every spec that was accepted.
pub fn check_spec(spec: Spec) {
    assert_eq!(labels::check_spec(&spec), Ok(()), "{spec:?}");
    let stored = serde_json::to_string(&spec).expect("a spec can be stored");
    assert_eq!(serde_json::from_str::<Spec>(&stored).expect("what was stored can be read"), spec);
    let options = ServiceTables::default().options(&spec.service, &spec.options);
    assert!(options.panic_percent <= 100);
    let plan = plan::check(&mut plan::world([spec]));
    // One of them: it takes as long as all the rest.
    if let Some(table) = plan.rules.values().find_map(|rule| rule.table.as_ref()) {
        slots::check_table(&build(&table.members));
    }
}
