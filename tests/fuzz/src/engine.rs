//! What container engines answer: one JSON value a line, each read as a container, as a sandbox, as a list and as an event.

use pod_steer::{
    engine::{Change, Container, SandboxState, ends},
    fuzzing,
    labels::{PREFIX, default_version},
};

use crate::{assert_one_line, labels};

/// Numbers of signals.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

pub fn run(input: &[u8]) {
    for answer in input.split(|byte| *byte == b'\n') {
        if let Some(container) = fuzzing::engine_container(answer) {
            check(&container);
        }
        if let Some(sandbox) = fuzzing::engine_sandbox(answer)
            && let SandboxState::Running(pid) = sandbox.state
        {
            assert!(pid > 0, "{sandbox:?}");
        }
        for id in fuzzing::engine_list(answer).unwrap_or_default() {
            assert!(id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id:?} is no id");
        }
        if let Some(happened) = fuzzing::engine_event(answer) {
            if let Change::Signalled(signal) = happened.change {
                assert!(SIGNALS.contains(&signal), "there is no signal {signal}");
                ends(signal, None);
            }
            if let Some(container) = happened.mine {
                assert_eq!(container.id, happened.id);
                check(&container);
            }
        }
    }
}

fn check(container: &Container) {
    assert!(!container.labels.is_empty() && container.labels.keys().all(|key| key.starts_with(PREFIX)));
    assert!(container.pid.is_none_or(|pid| pid > 0), "{container:?}");
    assert!(container.stop_signal.is_none_or(|signal| SIGNALS.contains(&signal)), "{:?}", container.stop_signal);
    if let Some(failure) = &container.health_failure {
        assert_one_line(failure);
        assert!(failure.chars().count() < 400, "{failure}");
    }
    let version = default_version(&container.image, &container.image_id);
    assert!(!version.is_empty());
    labels::check(container.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())), &version);
}
