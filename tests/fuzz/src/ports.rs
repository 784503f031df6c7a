//! Lists of ports, durations and networks: what is accepted reads the same when it is written out.

use std::time::Duration;

use pod_steer::{
    duration,
    labels::default_version,
    ports::{self, PORTS_MAX, Port, PortMap},
    settings::PortPolicy,
};

use crate::assert_one_line;

/// Most bytes of a message about one item.
const MESSAGE_BYTES_MAX: usize = 2_000;

pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match ports::parse_all(&text) {
        Ok(list) => check(&text, &list),
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= PORTS_MAX + 1);
            for error in errors {
                let message = error.to_string();
                assert_one_line(&message);
                assert!(message.len() <= MESSAGE_BYTES_MAX, "{} bytes: {message}", message.len());
            }
        }
    }
    if let Some(policy) = PortPolicy::parse(&text) {
        assert!(policy.0.iter().all(|range| *range.start() > 0 && policy.allows(Port::tcp(*range.end()))));
    }
    if let Ok(duration) = duration::parse(&text) {
        round_trip(duration);
    }
    assert!(!default_version(&text, "").is_empty());
}

fn check(text: &str, list: &[PortMap]) {
    assert!(!list.is_empty() && list.len() <= PORTS_MAX);
    for map in list {
        assert_eq!(ports::parse(&map.to_string()).as_deref(), Ok(&[*map][..]));
        assert!(map.port > 0 && map.target > 0);
    }
    let compact = ports::compact(list);
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    assert_eq!(ports::parse(&compact), Ok(sorted), "{compact}");
    let ranges = ports::ranges(text);
    assert!(ranges.iter().all(|range| range.len() > 1 && range.end <= list.len()), "{ranges:?} of {}", list.len());
}

fn round_trip(duration: Duration) {
    let written = duration::Written(duration).to_string();
    assert_eq!(duration::parse(&written).ok(), Some(duration), "{written}");
}
