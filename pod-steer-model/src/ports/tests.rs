use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn map(ip: Option<&str>, port: u16, target: u16) -> PortMap {
    PortMap { ip: ip.map(|ip| ip.parse().unwrap()), port, target, proto: Proto::Tcp }
}

#[test]
fn every_form_is_read() {
    for (list, expected) in [
        ("80", vec![map(None, 80, 80)]),
        ("80:8080", vec![map(None, 80, 8080)]),
        ("80:8080/tcp", vec![map(None, 80, 8080)]),
        ("80/TCP", vec![map(None, 80, 80)]),
        ("127.0.0.1:80", vec![map(Some("127.0.0.1"), 80, 80)]),
        ("127.0.0.1:80:8080", vec![map(Some("127.0.0.1"), 80, 8080)]),
        ("0.0.0.0:80:8080,[::]:80:8080", vec![map(Some("0.0.0.0"), 80, 8080), map(Some("::"), 80, 8080)]),
        ("[::1]:80:8080/tcp", vec![map(Some("::1"), 80, 8080)]),
        ("[2001:db8::7]:443", vec![map(Some("2001:db8::7"), 443, 443)]),
        ("80:8080,443:8443", vec![map(None, 80, 8080), map(None, 443, 8443)]),
        (" 443:8443 , 80:8080\n", vec![map(None, 443, 8443), map(None, 80, 8080)]),
        ("80-82", vec![map(None, 80, 80), map(None, 81, 81), map(None, 82, 82)]),
        ("65534-65535:1-2", vec![map(None, 65534, 1), map(None, 65535, 2)]),
        ("[::1]:80-81:90-91", vec![map(Some("::1"), 80, 90), map(Some("::1"), 81, 91)]),
        ("80:8080,81:8080", vec![map(None, 80, 8080), map(None, 81, 8080)]),
        // A single address takes precedence over any address, as in the kernel.
        ("80:8080,127.0.0.1:80:9090", vec![map(None, 80, 8080), map(Some("127.0.0.1"), 80, 9090)]),
    ] {
        assert_eq!(parse(list), Ok(expected), "{list}");
    }
}

#[test]
fn only_an_item_is_a_range_not_adjacent_ports() {
    assert!(ranges("8080,8081,80:80,5-5").is_empty());
    assert_eq!(ranges("21:2121, 30000-30009:31000-31009 ,30010-30011/tcp,80"), [1..11, 11..13]);
}

#[test]
fn each_error_names_the_item_and_the_remedy() {
    for (list, expected) in [
        ("", r#""" has an item without a port; write ports separated by single commas, as in 80:8080,443:8443"#),
        ("80,,81,", r#""80,,81," has an item without a port; write ports separated by single commas, as in "#),
        ("http", r#"in "http", "http" is not a port; write a number from 1 to 65535, as in 80:8080"#),
        ("81,80:http", r#"in "80:http", "http" is not a port"#),
        ("0", r#"in "0", "0" is not a port"#),
        ("80:0", r#"in "80:0", "0" is not a port"#),
        ("65536", r#"in "65536", "65536" is not a port"#),
        ("+80", r#"in "+80", "+80" is not a port"#),
        ("-80", r#"in "-80", "" is not a port"#),
        ("80:", r#"in "80:", "" is not a port"#),
        ("80 :8080", r#"in "80 :8080", "80 " is not a port"#),
        ("80-81-82", r#"in "80-81-82", "81-82" is not a port"#),
        ("224.0.0.1:80", r#"in "224.0.0.1:80", "224.0.0.1" is not an address to listen on; TCP clients come to"#),
        ("255.255.255.255:80:1", r#""255.255.255.255" is not an address to listen on"#),
        ("[ff02::1]:80", r#"in "[ff02::1]:80", "ff02::1" is not an address to listen on"#),
        ("localhost:80", r#"in "localhost:80", "localhost" is not a port"#),
        ("82-80", r#"in "82-80", the range 82-80 runs backwards; write 80-82"#),
        (
            "80-82:90-91",
            r#"in "80-82:90-91", 3 port(s) do not match 2 container port(s); write two ranges of the same length"#,
        ),
        ("80-82:8080", r#"in "80-82:8080", 3 port(s) do not match 1 container port(s)"#),
        (
            "127.0.0.1::80",
            r#"in "127.0.0.1::80", the port before the colon is missing, and pod-steer does not choose one"#,
        ),
        (":80", r#"in ":80", the port before the colon is missing"#),
        ("1:2:3:4", r#""1:2:3:4" has too many colons"#),
        ("127.0.0.1:1:2:3", r#""127.0.0.1:1:2:3" has too many colons"#),
        ("127.0.0.1", r#"in "127.0.0.1", "127.0.0.1" is not an address to listen on; write a colon and a port after"#),
        (
            "1.2.3:80",
            r#"in "1.2.3:80", "1.2.3" is not an address to listen on; write an IPv4 address, as in 127.0.0.1:"#,
        ),
        ("localhost:80:8080", r#"in "localhost:80:8080", "localhost" is not an address to listen on; write an IPv4"#),
        ("::1:80:8080", r#""::1:80:8080" is not an address to listen on; put an IPv6 address in brackets"#),
        ("2001:db8::7", r#""2001:db8::7" is not an address to listen on; put an IPv6 address in brackets"#),
        ("[::1]", r#""[::1]" is not an address to listen on; write a colon and a port after the bracket"#),
        ("[::1:80", r#""[::1:80" is not an address to listen on; close the bracket"#),
        ("[::x]:80", r#""::x" is not an address to listen on; write an IPv6 address in the brackets"#),
        ("[fe80::1%eth0]:80", r#""fe80::1%eth0" is not an address to listen on"#),
        ("[::ffff:1.2.3.4]:80", r#""::ffff:1.2.3.4" is not an address to listen on; IPv4 clients come to IPv4"#),
        ("53:53/udp", r#"in "53:53/udp", pod-steer does not steer UDP yet; remove the port, or write /tcp or"#),
        ("53/SCTP", r#"in "53/SCTP", pod-steer does not steer SCTP yet"#),
        ("80/http", r#"in "80/http", "http" is not a protocol; write /tcp or nothing"#),
        ("80/", r#"in "80/", "" is not a protocol"#),
        ("80:1,80:1", r#"in "80:1", 80:1/tcp overlaps the earlier 80:1/tcp; remove one of the two"#),
        ("80-90,85:1", r#"in "85:1", 85:1/tcp overlaps the earlier 85:85/tcp"#),
        ("80,0.0.0.0:80", r#"in "0.0.0.0:80", 0.0.0.0:80:80/tcp overlaps the earlier 80:80/tcp"#),
        ("[::]:80,80", r#"in "80", 80:80/tcp overlaps the earlier [::]:80:80/tcp"#),
        ("[::1]:80,[0::1]:80:1", r#"in "[0::1]:80:1", [::1]:80:1/tcp overlaps the earlier [::1]:80:80/tcp"#),
        ("1-65535", r#"with "1-65535" the list has 65535 ports, more than 1024; split the service"#),
        ("1-1000,2001-2025", r#"with "2001-2025" the list has 1025 ports, more than 1024"#),
        ("80\n\u{1b}[31m", r#"in "80\n\u{1b}[31m", "80\n\u{1b}[31m" is not a port"#),
    ] {
        let said = parse(list).expect_err(list).to_string();
        assert!(said.contains(expected), "{list}\n said: {said}\n  not: {expected}");
    }
}

#[test]
fn every_wrong_item_is_listed() {
    let errors = parse_all("x,80,y:1,,80,,5/udp").unwrap_err();
    let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 5, "{said:#?}");
    assert!(said[2].contains("has an item without a port") && said[4].contains("UDP"), "{said:#?}");
}

#[test]
fn the_most_ports_are_1024() {
    assert_eq!(parse("1-1024").unwrap().len(), PORTS_MAX);
    assert_eq!(parse("1-1000,2001-2024:1-24").unwrap().len(), PORTS_MAX);
    let hostile = "x,".repeat(100_000);
    assert_eq!(parse_all(&hostile).unwrap_err().len(), PORTS_MAX + 1);
}

#[test]
fn displayed_as_it_is_written() {
    assert_eq!(map(None, 80, 8080).to_string(), "80:8080/tcp");
    assert_eq!(map(Some("127.0.0.1"), 80, 80).to_string(), "127.0.0.1:80:80/tcp");
    assert_eq!(map(Some("::1"), 80, 8080).to_string(), "[::1]:80:8080/tcp");
}

#[test]
fn ranges_are_merged() {
    for (list, expected) in [
        ("80:8080", "80:8080"),
        ("80:80/tcp", "80"),
        ("82,80,81", "80-82"),
        ("443:8443,80-81:8080-8081,82:8082", "80-82:8080-8082,443:8443"),
        ("80:8080,81:8082", "80:8080,81:8082"),
        ("80:8080,81:8080", "80:8080,81:8080"),
        ("[::]:80-81,0.0.0.0:80-81,79", "79,0.0.0.0:80-81,[::]:80-81"),
        ("65535,1", "1,65535"),
    ] {
        assert_eq!(compact(&parse(list).unwrap()), expected, "{list}");
    }
    assert_eq!(compact(&[]), "");
}

#[test]
fn json_is_readable() {
    let json = r#"{"ip":"::1","port":80,"target":8080,"proto":"tcp"}"#;
    assert_eq!(serde_json::to_string(&map(Some("::1"), 80, 8080)).unwrap(), json);
    assert_eq!(serde_json::from_str::<PortMap>(json).unwrap(), map(Some("::1"), 80, 8080));
}

#[test]
fn quotes_are_short_and_on_one_line() {
    assert_eq!(quoted("it's\n\"so\"\u{200b}"), r#""it's\n\"so\"\u{200b}""#);
    assert_eq!(quoted(&"x".repeat(60)), format!("\"{}\"", "x".repeat(60)));
    assert_eq!(quoted(&"x".repeat(61)), format!("\"{}\"…", "x".repeat(60)));
    assert_eq!(quoted(&format!("{}\u{1b}", "x".repeat(58))), format!("\"{}\"…", "x".repeat(58)));
}

fn is_of_one(ip: &Option<IpAddr>) -> bool {
    ip.is_none_or(|ip| !ip.is_multicast() && ip != Ipv4Addr::BROADCAST)
}

fn any_list() -> impl Strategy<Value = Vec<PortMap>> {
    let ip = prop_oneof![
        Just(None),
        Just(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED))),
        Just(Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED))),
        any::<[u8; 4]>().prop_map(|ip| Some(ip.into())).prop_filter("of one host", is_of_one),
        any::<[u16; 8]>().prop_map(|ip| Some(ip.into())).prop_filter("of one host", is_of_one),
    ];
    let run = (ip, 1..=65_535u16, 1..=65_535u16, 1..=40u16);
    prop::collection::vec(run, 1..=20).prop_map(|runs| {
        let mut ports: Vec<PortMap> = Vec::new();
        for (ip, port, target, length) in runs {
            for (port, target) in (port..=65_535).zip(target..=65_535).take(length.into()) {
                let map = PortMap { ip, port, target, proto: Proto::Tcp };
                if !ports.iter().any(|p| p.clashes_with(&map)) {
                    ports.push(map);
                }
            }
        }
        ports
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(mut ports in any_list()) {
        let list = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        prop_assert_eq!(parse(&list), Ok(ports.clone()));
        let compact = compact(&ports);
        ports.sort();
        prop_assert_eq!(parse(&compact), Ok(ports));
    }

    #[test]
    fn any_text_is_read_or_refused(text in r"(\PC|[\[\]:,/.0-9a-f-]|[\x00-\x20]){0,80}") {
        match parse_all(&text) {
            Ok(ports) => prop_assert!(!ports.is_empty() && ports.iter().all(|p| p.port > 0 && p.target > 0)),
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                prop_assert_eq!(parse(&text), Err(errors[0].clone()));
                for error in errors {
                    prop_assert!(!error.to_string().contains(char::is_control), "{:?}", error.to_string());
                    prop_assert!(error.to_string().chars().count() < 400, "{}", error);
                }
            }
        }
    }
}
