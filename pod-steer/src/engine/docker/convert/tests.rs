use super::{
    super::answers::{Actor, Config, OurLabels},
    *,
};
use crate::engine::ends;

/// A full id.
fn id(end: &str) -> String {
    format!("{end:0>64}")
}

#[test]
fn times_of_engines() {
    assert_eq!(unix_milliseconds("1970-01-01T00:00:01.5Z"), Some(1500));
    assert_eq!(unix_milliseconds("2024-02-29T12:00:00.123456789Z"), Some(1_709_208_000_123));
    assert_eq!(unix_milliseconds("2024-02-29T13:00:00+01:00"), Some(1_709_208_000_000));
    assert_eq!(unix_nanoseconds("2024-02-29T12:00:00.123456789Z"), Some(1_709_208_000_123_456_789));
    assert_eq!(unix_nanoseconds("0001-01-01T00:00:00Z"), None, "never");
    for nonsense in ["", "T", "2024-02-29", "yesterday", "x-y-zT::Z"] {
        assert_eq!(unix_milliseconds(nonsense), None, "{nonsense}");
    }
}

#[test]
fn signals_by_name_and_number() {
    assert_eq!(signal("15"), Some(15));
    assert_eq!(signal("SIGTERM"), Some(15));
    assert_eq!(signal("RTMIN+3"), Some(37));
    for (name, number) in [("sigquit", 3), ("SIGRTMIN", 34), ("SIGRTMIN+3", 37), ("RTMAX-2", 62), ("RTMAX", 64)] {
        assert_eq!(signal(name), Some(number), "{name}");
    }
    for nonsense in ["nonsense", "", "0", "-1", "65", "RTMIN+x", "SIG"] {
        assert_eq!(signal(nonsense), None, "{nonsense}");
    }
}

#[test]
fn only_a_stop_signal_asks_to_stop() {
    for stop_signal in [None, Some(libc::SIGQUIT), signal("SIGRTMIN+3")] {
        for ending in [libc::SIGTERM, libc::SIGKILL] {
            assert!(ends(ending, stop_signal), "{ending}");
        }
        for other in [libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH] {
            assert!(!ends(other, stop_signal), "{other}");
        }
    }
    assert!(ends(libc::SIGQUIT, Some(libc::SIGQUIT)) && !ends(libc::SIGQUIT, None));
    assert!(ends(37, signal("SIGRTMIN+3")) && ends(37, signal("37")) && !ends(38, signal("37")));
}

#[test]
fn events_with_our_labels() {
    let attributes = BTreeMap::from([
        ("name".to_owned(), "web-1".to_owned()),
        ("image".to_owned(), "shop:v2".to_owned()),
        ("pod-steer.service".to_owned(), "web".to_owned()),
        ("other".to_owned(), "x".to_owned()),
    ]);
    let event = |action: &str| Event {
        action: Some(action.to_owned()),
        actor: Some(Actor { id: Some(id("abc")), attributes: Some(attributes.clone()) }),
        ..Event::default()
    };
    let seen = happened("e", event("create")).expect("it is understood");
    let mine = seen.mine.expect("it has our label");
    assert_eq!((mine.name.as_str(), mine.image.as_str(), mine.labels.len()), ("web-1", "shop:v2", 1));
    let change = |action: &str| happened("e", event(action)).map(|seen| seen.change);
    assert_eq!(change("health_status: unhealthy"), Some(Change::Health(Health::Unhealthy)));
    assert_eq!(change("health_status"), Some(Change::HealthUnknown), "Podman's");
    assert_eq!(change("health_status: reset"), Some(Change::HealthUnknown));
    assert_eq!(change("died"), Some(Change::Died));
    assert_eq!(change("exec_start: sh"), None);
}

/// As Podman sends them: the result is in a field that Docker's API does not have.
#[test]
fn podmans_health_events() {
    let change = |line: &str| {
        let line = line.replace("\"c0\"", &format!("{:?}", id("c0")));
        let event: Event = serde_json::from_str(&line).expect("it is an event");
        happened("e", event).map(|seen| seen.change)
    };
    for line in [
        // 4.3 and 5.4, with the fields of Docker before 25.
        r#"{"status":"health_status","id":"c0","from":"localhost/a:1","Type":"container","Action":"health_status",
            "Actor":{"ID":"c0","Attributes":{"containerExitCode":"0","image":"localhost/a:1","name":"one","podId":"",
            "pod-steer.service":"web"}},"scope":"local","time":1764110000,"timeNano":1764110000123456789,
            "HealthStatus":"healthy"}"#,
        // 5.8 and 6.1 to a client of API 1.52.
        r#"{"Type":"container","Action":"health_status","Actor":{"ID":"c0","Attributes":{"image":"localhost/a:1",
            "name":"one","podId":""}},"scope":"local","time":1764110000,"timeNano":1764110000123456789,
            "HealthStatus":"unhealthy"}"#,
    ] {
        assert_eq!(change(line), Some(Change::HealthUnknown), "{line}");
    }
    let in_attributes = r#"{"Type":"container","Action":"health_status","Actor":{"ID":"c0","Attributes":
        {"health_status":"healthy"}}}"#;
    assert_eq!(change(in_attributes), Some(Change::Health(Health::Healthy)));
}

/// As Docker 20.10 and Podman 4.3 send them: the subject is the network in the former, the container in the latter.
#[test]
fn events_of_networks() {
    let (network, container) = (id("d0"), id("c0"));
    let change = |line: &str| {
        let line = line.replace("\"d0\"", &format!("{network:?}")).replace("\"c0\"", &format!("{container:?}"));
        happened("e", serde_json::from_str(&line).expect("it is an event"))
    };
    for action in ["connect", "disconnect"] {
        for line in [
            r#"{"Type":"network","Action":"ACTION","Actor":{"ID":"d0","Attributes":{"container":"c0","name":"bridge",
                "type":"bridge"}},"scope":"local","time":1764110000,"timeNano":1764110000123456789}"#,
            r#"{"Type":"network","Action":"ACTION","Actor":{"ID":"c0","Attributes":{"name":"web-1"}}}"#,
        ] {
            let seen = change(&line.replace("ACTION", action)).expect("it is understood");
            assert_eq!((seen.id, seen.change), (container.clone(), Change::NetworkChanged), "{line}");
            assert!(seen.mine.is_none());
        }
    }
    for other in [
        r#"{"Type":"network","Action":"create","Actor":{"ID":"d0","Attributes":{"name":"web","type":"bridge"}}}"#,
        r#"{"Type":"network","Action":"destroy","Actor":{"ID":"d0","Attributes":{"name":"web","type":"bridge"}}}"#,
        r#"{"Type":"network","Action":"connect","Actor":{"ID":"d0","Attributes":{"container":"web"}}}"#,
        r#"{"Type":"container","Action":"connect","Actor":{"ID":"c0"}}"#,
        r#"{"Action":"connect"}"#,
    ] {
        assert!(change(other).is_none(), "{other}");
    }
}

#[test]
fn names_can_be_shown_and_ids_are_ids() {
    let attributes = |name: &str| {
        BTreeMap::from([("name".to_owned(), name.to_owned()), ("pod-steer.service".to_owned(), "web".to_owned())])
    };
    let event = |id: &str, name: &str| Event {
        action: Some("create".to_owned()),
        actor: Some(Actor { id: Some(id.to_owned()), attributes: Some(attributes(name)) }),
        ..Event::default()
    };
    let name = |given: &str| happened("e", event(&id("1"), given)).and_then(|seen| seen.mine).map(|mine| mine.name);
    assert_eq!(name("web-1"), Some("web-1".to_owned()));
    assert_eq!(name("a\x1b[2J\nb"), Some("a\\u{1b}[2J\\nb".to_owned()));
    assert_eq!(name(&"x".repeat(1_900_000)).map(|name| name.chars().count()), Some(129));
    for wrong in ["", "abc", "exec-12-0", "../../x", &"g".repeat(64), &"a".repeat(65)] {
        assert!(happened("e", event(wrong, "x")).is_none(), "{wrong}");
        let details = Details {
            id: Some(wrong.to_owned()),
            config: Some(Config { labels: Some(OurLabels(attributes("x"))), ..Config::default() }),
            ..Details::default()
        };
        assert_eq!(container("e", details), None, "{wrong}");
    }
}

#[test]
fn a_signal_beyond_the_last_one_is_none() {
    for name in ["RTMIN+2147483647", "SIGRTMAX+1", "RTMAX-2147483648", "RTMIN-1", "RTMAX-31", "0", "65", "-1"] {
        assert_eq!(signal(name), None, "{name}");
    }
    for (name, number) in [("RTMIN", 34), ("SIGRTMIN+30", 64), ("sigrtmax-30", 34), ("64", 64)] {
        assert_eq!(signal(name), Some(number), "{name}");
    }
}
