use proptest::prelude::*;

use super::*;
use crate::{
    check::{CheckKind, CheckSpec, StatusRange},
    near::distance,
    settings::Fallback,
};

fn read(labels: &[(&str, &str)]) -> Result<Spec, Vec<String>> {
    let result = parse(labels.iter().copied(), "v0").expect("there are labels of ours");
    let as_told = |error: &LabelError| {
        assert_eq!(error.condition().to_string(), error.to_string());
        error.to_string()
    };
    result.map_err(|errors| errors.iter().map(as_told).collect())
}

/// The only error of valid labels with this one added or changed.
fn error_with(label: &str, value: &str) -> String {
    let mut labels = BTreeMap::from([("pod-steer.service", "web"), ("pod-steer.ports", "80:8080")]);
    labels.insert(label, value);
    let labels: Vec<_> = labels.into_iter().collect();
    let errors = read(&labels).expect_err(value);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].clone()
}

#[test]
fn labels_without_the_prefix_are_ignored() {
    assert_eq!(parse([], "v0"), None);
    let others = [("com.docker.compose.service", "web"), ("pod-steer", "x"), ("x.pod-steer.service", "web")];
    assert_eq!(parse(others, "v0"), None);
}

#[test]
fn defaults_and_everything() {
    let ports = ports::parse("80:8080").unwrap();
    let least = Spec {
        service: "web".into(),
        version: "v0".into(),
        weight: 1,
        via: Default::default(),
        ports: ports.clone(),
        ranges: Vec::new(),
        options: GivenOptions::default(),
        check: None,
    };
    assert_eq!(
        read(&[("pod-steer.service", "web"), ("pod-steer.ports", "80:8080"), ("maintainer", "")]),
        Ok(least.clone())
    );
    let pass = GivenOptions { fallback: Some(Fallback::Pass), ..GivenOptions::default() };
    let all = Spec {
        service: "Web_2.x-y".into(),
        version: "2024-01-01+build/7".into(),
        weight: 0,
        via: Default::default(),
        ports,
        options: pass,
        ..least
    };
    let labels = [
        ("pod-steer.service", "Web_2.x-y"),
        ("pod-steer.ports", "80:8080/tcp"),
        ("pod-steer.version", "2024-01-01+build/7"),
        ("pod-steer.weight", "0"),
        ("pod-steer.fallback", "pass"),
    ];
    assert_eq!(read(&labels), Ok(all.clone()));
    assert_eq!(spec_from_flags("Web_2.x-y", "80:8080", "2024-01-01+build/7", 0, pass), Ok(all));
}

#[test]
fn values_at_the_limits_are_accepted_and_beyond_are_refused() {
    let longest = "x".repeat(63);
    assert!(read(&[("pod-steer.service", &longest), ("pod-steer.ports", "80")]).is_ok());
    let version = "x".repeat(128);
    assert!(spec_from_flags("9", "80", &version, 65_535, GivenOptions::default()).is_ok());
    let errors =
        spec_from_flags(&(longest + "x"), "80", &(version + "x"), 65_536, GivenOptions::default()).unwrap_err();
    let shown = format!("\"{}\"…", "x".repeat(60));
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            format!("--service={shown} is refused: it has 64 characters; the maximum is 63"),
            format!("--version={shown} is refused: it has 129 characters; the maximum is 128"),
            "--weight=\"65536\" is refused: it is too large; the maximum is 65535".to_owned(),
        ]
    );
}

#[test]
fn each_error_names_the_field_the_fault_and_the_remedy() {
    for (label, value, expected) in [
        ("service", "", r#"label pod-steer.service="" is refused: it is empty; write a name, as in web"#),
        ("service", "my web", r#"pod-steer.service="my web" is refused: " " is not allowed in a name; use letters"#),
        ("service", "café", r#"pod-steer.service="café" is refused: "é" is not allowed in a name"#),
        ("service", "a\nb", r#"pod-steer.service="a\nb" is refused: "\n" is not allowed in a name"#),
        (
            "service",
            "-web",
            r#"pod-steer.service="-web" is refused: it begins with a punctuation character; begin with a letter"#,
        ),
        ("ports", "", r#"pod-steer.ports="" is refused: "" has an item without a port; write ports"#),
        ("ports", "80,x:1", r#"pod-steer.ports="80,x:1" is refused: in "x:1", "x" is not a port; write a number from"#),
        ("ports", "53/udp", r#"pod-steer.ports="53/udp" is refused: in "53/udp", pod-steer does not steer UDP yet"#),
        ("version", "", r#"pod-steer.version="" is refused: it is empty; write a version, as in v1, or leave it out"#),
        ("version", "v 1", r#"pod-steer.version="v 1" is refused: " " is not allowed in a version; use printable"#),
        ("version", "v\u{1b}", r#"pod-steer.version="v\u{1b}" is refused: "\u{1b}" is not allowed in a version"#),
        ("weight", "", r#"pod-steer.weight="" is refused: it is not a whole number; write a number from 0 (no new"#),
        ("weight", "-1", r#"pod-steer.weight="-1" is refused: it is not a whole number"#),
        ("weight", "+1", r#"pod-steer.weight="+1" is refused: it is not a whole number"#),
        ("weight", "1.5", r#"pod-steer.weight="1.5" is refused: it is not a whole number"#),
        ("weight", "65536", r#"pod-steer.weight="65536" is refused: it is too large; the maximum is 65535"#),
        ("weight", "99999999999999999999", r#"pod-steer.weight="99999999999999999999" is refused: it is too large"#),
        (
            "fallback",
            "Pass",
            r#"pod-steer.fallback="Pass" is refused: unknown value; use refuse (when no backend is left"#,
        ),
        ("sevrice", "web", r#"label "pod-steer.sevrice" is unknown; did you mean pod-steer.service?"#),
        ("port", "80", r#"label "pod-steer.port" is unknown; did you mean pod-steer.ports?"#),
        ("Weight", "1", r#"label "pod-steer.Weight" is unknown; did you mean pod-steer.weight?"#),
        ("wieght", "1", r#"label "pod-steer.wieght" is unknown; did you mean pod-steer.weight?"#),
        ("canary", "5m", r#"label "pod-steer.canary" is unknown; remove it, or use one of pod-steer.service, "#),
        ("health.http", "/", r#"label "pod-steer.health.http" is unknown; remove it, or use one of"#),
        (
            "health.intervall",
            "1s",
            r#""pod-steer.health.intervall" is unknown; did you mean pod-steer.health.interval?"#,
        ),
        ("rollout", "Latest", r#"pod-steer.rollout="Latest" is refused: unknown value; use balance"#),
        ("slow-start", "30", r#"pod-steer.slow-start="30" is refused: it has no unit; write 30s for seconds"#),
        ("slow-start", "-1s", r#"pod-steer.slow-start="-1s" is refused: it is negative"#),
        ("slow-start", "25h", r#"pod-steer.slow-start="25h" is refused: it is too long; the maximum is 24h"#),
        (
            "panic-threshold",
            "101%",
            r#"pod-steer.panic-threshold="101%" is refused: it is too large; the maximum is 100"#,
        ),
        (
            "panic-threshold",
            "x",
            r#"pod-steer.panic-threshold="x" is refused: it is not a whole number; write a percent"#,
        ),
        ("health", "icmp", r#"pod-steer.health="icmp" is refused: unknown value; use tcp, http, exec or none"#),
        ("health", "exec", r#"label pod-steer.health.command is missing; add the command of the check"#),
        (
            "health.path",
            "/",
            r#"pod-steer.health.path="/" is refused: there is no health check; add label pod-steer.health=tcp"#,
        ),
        ("", "x", r#"label "pod-steer." is unknown; remove it, or use one of"#),
    ] {
        let said = error_with(&format!("{PREFIX}{label}"), value);
        assert!(said.contains(expected), "{label}={value:?}\n said: {said}\n  not: {expected}");
    }
}

#[test]
fn checks_of_every_kind() {
    let check = |labels: &[(&str, &str)]| {
        let all =
            [("pod-steer.service", "web"), ("pod-steer.ports", "80:8080")].into_iter().chain(labels.iter().copied());
        read(&all.collect::<Vec<_>>()).map(|spec| spec.check.expect("there is one"))
    };
    let kind = |labels: &[(&str, &str)]| check(labels).map(|check| check.kind);
    assert_eq!(check(&[("pod-steer.health", "tcp")]), Ok(CheckSpec::new(CheckKind::Tcp)));
    assert_eq!(kind(&[("pod-steer.health", "none")]), Ok(CheckKind::None));
    let everything = [
        ("pod-steer.health", "http"),
        ("pod-steer.health.port", "9000"),
        ("pod-steer.health.path", "/ready?now"),
        ("pod-steer.health.status", "204"),
        ("pod-steer.health.host", "example.org:8080"),
        ("pod-steer.health.interval", "500ms"),
        ("pod-steer.health.timeout", "1m"),
        ("pod-steer.health.healthy", "2"),
        ("pod-steer.health.unhealthy", "1"),
    ];
    let expected = CheckSpec {
        kind: CheckKind::Http {
            path: "/ready?now".into(),
            host: Some("example.org:8080".into()),
            status: StatusRange { first: 204, last: 204 },
        },
        port: Some(9000),
        interval_ms: 500,
        timeout_ms: 60_000,
        healthy: 2,
        unhealthy: 1,
    };
    assert_eq!(check(&everything), Ok(expected));
    let command = |text| kind(&[("pod-steer.health", "exec"), ("pod-steer.health.command", text)]);
    let words = |words: &[&str]| Ok(CheckKind::Exec { command: words.iter().map(ToString::to_string).collect() });
    assert_eq!(command("test -e /ok && true"), words(&["/bin/sh", "-c", "test -e /ok && true"]));
    assert_eq!(command(r#"["/check", "a b"]"#), words(&["/check", "a b"]));
}

#[test]
fn contradictory_health_checks_are_refused() {
    for (kind, key, value, expected) in [
        (
            "tcp",
            "path",
            "/",
            r#"label pod-steer.health.path="/" is refused: a check of kind tcp does not use it; remove it, or write"#,
        ),
        ("exec", "port", "80", r#"label pod-steer.health.port="80" is refused: a check of kind exec does not use it"#),
        (
            "http",
            "command",
            "true",
            r#"label pod-steer.health.command="true" is refused: a check of kind http does not use it"#,
        ),
        (
            "none",
            "interval",
            "1s",
            r#"label pod-steer.health.interval="1s" is refused: a check of kind none does not use it"#,
        ),
        (
            "http",
            "path",
            "ready",
            r#"pod-steer.health.path="ready" is refused: it is not a path; write printable ASCII"#,
        ),
        ("http", "path", "/a b", r#"pod-steer.health.path="/a b" is refused: it is not a path"#),
        ("http", "host", "", r#"pod-steer.health.host="" is refused: it is not a host; write a name"#),
        ("http", "status", "2xx", r#"pod-steer.health.status="2xx" is refused: it is not a status or a range of them"#),
        ("http", "status", "399-200", r#"pod-steer.health.status="399-200" is refused: it is not a status"#),
        ("tcp", "port", "0", r#"pod-steer.health.port="0" is refused: it is too small; write a port, 1 to 65535"#),
        ("tcp", "interval", "0s", r#"pod-steer.health.interval="0s" is refused: it is too short; the minimum is 10ms"#),
        ("tcp", "timeout", "2", r#"pod-steer.health.timeout="2" is refused: it has no unit"#),
        (
            "tcp",
            "healthy",
            "0",
            r#"pod-steer.health.healthy="0" is refused: it is too small; write a number of results"#,
        ),
        ("tcp", "unhealthy", "-1", r#"pod-steer.health.unhealthy="-1" is refused: it is not a whole number"#),
        ("exec", "command", " ", r#"pod-steer.health.command=" " is refused: it is empty"#),
        ("exec", "command", "[1]", r#"pod-steer.health.command="[1]" is refused: it is not a list of words"#),
    ] {
        let key = format!("pod-steer.health.{key}");
        let labels = [
            ("pod-steer.service", "web"),
            ("pod-steer.ports", "80:8080"),
            ("pod-steer.health", kind),
            (key.as_str(), value),
        ];
        let errors = read(&labels).expect_err(&key);
        // A check by exec whose command is refused for its kind lacks none.
        assert_eq!(errors.iter().filter(|said| said.contains(expected)).count(), 1, "{errors:#?}\n not: {expected}");
    }
}

#[test]
fn every_error_is_listed() {
    let errors = read(&[
        ("pod-steer.weight", "heavy"),
        ("pod-steer.ports", "x,80,0"),
        ("pod-steer.version", " "),
        ("pod-steer.fallback", ""),
        ("pod-steer.servce", "web"),
        ("pod-steer.x", "y"),
    ])
    .unwrap_err();
    assert_eq!(errors.len(), 8, "{errors:#?}");
    assert!(errors.iter().any(|p| p.starts_with("label pod-steer.service is missing; give the service a name")));
    let errors = read(&[("pod-steer.service", "web")]).unwrap_err();
    assert_eq!(
        errors,
        ["label pod-steer.ports is missing; add the ports of the service, as in pod-steer.ports=80:8080"]
    );
}

#[test]
fn the_default_version_is_the_tag_or_the_short_id() {
    let id = "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1";
    let short = "4bcff63911fc";
    for (image, expected) in [
        ("nginx:1.27", "1.27"),
        ("registry:5000/team/web:v2", "v2"),
        ("registry:5000/team/web:v2@sha256:4bcff63911fcb4448bd4", "v2"),
        ("localhost:5000/web", short),
        ("registry:5000/web@sha256:4bcff63911fcb4448bd4", short),
        ("nginx", short),
        ("nginx:latest", short),
        ("nginx:", short),
        ("nginx:a b", short),
        (id, short),
        ("4bcff63911fc", short),
        ("", short),
    ] {
        assert_eq!(default_version(image, id), expected, "{image}");
    }
    // Podman's ids have no prefix.
    assert_eq!(default_version("web", &id["sha256:".len()..]), short);
    assert_eq!(default_version("web", ""), "unknown");
}

#[test]
fn a_spec_from_an_api_client_is_checked() {
    let good = spec_from_flags("web", "80:8080,[::1]:443-445", "v1", 1, GivenOptions::default()).unwrap();
    assert_eq!(check_spec(&good), Ok(()));
    let json = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), good);
    let mut bad = Spec { service: String::new(), weight: 70_000, ..good };
    bad.ports[0].port = 0;
    assert_eq!(check_spec(&bad).unwrap_err().len(), 3);
    bad.options = GivenOptions { panic_percent: Some(101), slow_start_ms: Some(u64::MAX), ..bad.options };
    let errors = check_spec(&bad).unwrap_err();
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(errors.iter().any(|said| said.starts_with("--panic-threshold=\"101\" is refused")), "{errors:#?}");
    assert_eq!(errors.len(), 5, "{errors:#?}");
    bad.options = GivenOptions::default();
    bad.ports.clear();
    assert_eq!(check_spec(&bad).unwrap_err().len(), 3);
}

#[test]
fn edits_are_counted() {
    for (a, b, expected) in
        [("", "", 0), ("port", "ports", 1), ("wieght", "weight", 1), ("rollout", "ports", 6), ("abc", "xyz", 3)]
    {
        assert_eq!((distance(a, b), distance(b, a)), (expected, expected), "{a} {b}");
    }
}

fn any_key() -> impl Strategy<Value = String> {
    let known = prop::sample::select(label_keys().map(|key| format!("{PREFIX}{key}")).collect::<Vec<_>>());
    prop_oneof![4 => known, 1 => any::<String>().prop_map(|key| format!("{PREFIX}{key}")), 1 => any::<String>()]
}

proptest! {
    #[test]
    fn any_labels_are_read_or_refused(
        labels in prop::collection::btree_map(any_key(), prop_oneof![any::<String>(), "[0-9:,v-]{1,6}"], 0..8),
        default in any::<String>(),
    ) {
        let pairs = labels.iter().map(|(label, value)| (label.as_str(), value.as_str()));
        let result = parse(pairs, &default);
        prop_assert_eq!(result.is_some(), labels.keys().any(|label| label.starts_with(PREFIX)));
        match result {
            Some(Ok(spec)) => prop_assert_eq!(check_spec(&spec), Ok(())),
            Some(Err(errors)) => {
                prop_assert!(!errors.is_empty());
                for said in errors.iter().map(ToString::to_string) {
                    prop_assert!(said.contains("pod-steer.") && !said.contains(char::is_control), "{said:?}");
                    prop_assert!(said.chars().count() < 500, "{said}");
                }
            }
            None => {}
        }
    }

    #[test]
    fn any_image_has_a_version(image in any::<String>(), id in any::<String>(), tag in "[a-z/:@.]{0,20}") {
        for image in [image.as_str(), tag.as_str()] {
            prop_assert_eq!(Name::Version.fault(&default_version(image, &id)), None);
        }
    }
}
