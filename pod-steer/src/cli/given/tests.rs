use clap::Parser as _;

use super::*;
use crate::cli::args::{Cli, Command};

/// The order that a command line gives, or its error.
fn read(line: &str) -> Result<String, String> {
    let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| format!("clap: {error}"))?;
    match cli.command {
        Command::Deploy(args) => deploy(&args).map(|order| format!("{order:?}")),
        Command::Canary(args) => canary(&args).map(|order| format!("{order:?}")),
        Command::Shift(args) => shift(&args).map(|order| format!("{order:?}")),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn deploys() {
    let order = read("pod-steer deploy web v2").unwrap();
    for part in ["timeout_ms: 60000", "drain_timeout_ms: 30000", "stop_old: false", "backends: None"] {
        assert!(order.contains(part), "{order}");
    }
    assert!(order.contains("watch: None"), "{order}");
    let order = read("pod-steer deploy web v2 --watch 5m --max-slowdown 10").unwrap();
    assert!(
        order.contains("watch: Some(Watch { for_ms: 300000, judge: Judging { mode: On, max_slowdown_percent: 10 }"),
        "{order}"
    );
    for line in ["--watch 5m --recreate", "--max-slowdown 10%"] {
        assert!(read(&format!("pod-steer deploy web v2 {line}")).unwrap_err().starts_with("clap"), "{line}");
    }
    let order = read("pod-steer deploy web v2 --backends 3 --drain-timeout 0s --keep-old 10m").unwrap();
    for part in ["backends: Some(3)", "drain_timeout_ms: 0", "stop_old: true", "keep_old_ms: Some(600000)"] {
        assert!(order.contains(part), "{order}");
    }
}

#[test]
fn shifts() {
    let order =
        read("pod-steer shift web v1=90 v2=10 --from 10.0.0.0/8=v2 --from fd00::/8=v1 --no-from 192.0.2.1/32").unwrap();
    for part in [r#""v1": 90, "v2": 10"#, r#"10.0.0.0/8: "v2""#, r#"fd00::/8: "v1""#, "192.0.2.1/32", "balance: false"]
    {
        assert!(order.contains(part), "{order}");
    }
    assert!(read("pod-steer shift web --balance").unwrap().contains("balance: true"));
    assert!(read("pod-steer shift web a=b=1").unwrap().contains(r#""a=b": 1"#), "a version may contain `=`");
}

#[test]
fn canaries() {
    assert!(read("pod-steer canary web v2").unwrap().contains("[100, 500, 2500, 10000], every_ms: 120000"));
    assert!(
        read("pod-steer canary web v2 --steps 0.5%,12.25%,100% --every 1m30s").unwrap().contains("[50, 1225, 10000]")
    );
    let judged = read("pod-steer canary web v2").unwrap();
    assert!(judged.contains("judge: Judging { mode: On, max_slowdown_percent: 25 }"), "{judged}");
    let judged = read("pod-steer canary web v2 --judge required --max-slowdown 50%").unwrap();
    assert!(judged.contains("judge: Judging { mode: Required, max_slowdown_percent: 50 }"), "{judged}");
    for (hundredths, text) in [(100, "1%"), (50, "0.5%"), (1225, "12.25%"), (5, "0.05%"), (10_000, "100%")] {
        assert_eq!(Percent(hundredths).to_string(), text);
        assert_eq!(percent(text), Ok(hundredths));
    }
}

#[test]
fn each_error_is_one_line_that_names_the_fault() {
    let cases = [
        ("deploy web v2 --timeout soon", r#"--timeout "soon""#),
        ("deploy web v2 --timeout -5s", "negative"),
        ("deploy web v2 --timeout 0s", "more than 0"),
        ("deploy web v2 --drain-timeout 30", "30s"),
        ("deploy web v2 --keep-old -1m", "--keep-old"),
        ("deploy web v\u{e4}", "version"),
        ("shift web", "v1=90 v2=10"),
        ("shift web v1", "as in v1=90"),
        ("shift web v1=-1", "-1 is negative"),
        ("shift web v1=NaN", r#""NaN" is not a whole number"#),
        ("shift web v1=much", r#""much""#),
        ("shift web v1=1.5", r#""1.5""#),
        ("shift web v1=90%", r#""90%""#),
        ("shift web v1=65536", "too large"),
        ("shift web v1=99999999999999999999", "too large"),
        ("shift web v1=", "whole number"),
        ("shift web =1", "version"),
        ("shift web v1=0 v2=0", "no version would"),
        ("shift web v1=1 v1=2", "once"),
        ("shift web v1=1 --balance", "--balance"),
        ("shift web --from 10.0.0.1/8=v2", "10.0.0.0/8"),
        ("shift web --from fd00::1/8=v2", "fd00::/8"),
        ("shift web --from 10.0.0.1=v2", "10.0.0.1/32"),
        ("shift web --from 10.0.0.0/33=v2", r#""10.0.0.0/33""#),
        ("shift web --from lan=v2", r#""lan""#),
        ("shift web --from 10.0.0.0/8", "10.0.0.0/8=v2"),
        ("shift web --from 10.0.0.0/8=", "version"),
        ("shift web --from 10.0.0.0/8=v1 --from 10.0.0.0/8=v2", "twice"),
        ("shift web --no-from 10.1.0.0/8", "10.0.0.0/8"),
        ("shift web --from 10.0.0.0/8=v1 --no-from 10.0.0.0/8", "both"),
        ("canary web v2 --steps 101%", "more than 100%"),
        ("canary web v2 --steps 1%,500%", r#""500%""#),
        ("canary web v2 --steps 99999999999%", "more than 100%"),
        ("canary web v2 --steps -1%,100%", "negative"),
        ("canary web v2 --steps NaN%", r#""NaN%""#),
        ("canary web v2 --steps much", r#""much""#),
        ("canary web v2 --steps 5,100", "lacks the percent sign"),
        ("canary web v2 --steps 0%,100%", "no clients"),
        ("canary web v2 --steps 5%,1%,100%", "1% comes after 5%"),
        ("canary web v2 --steps 1%,5%", "last step is 5%"),
        ("canary web v2 --steps 0.125%,100%", "two digits"),
        ("canary web v2 --steps 1%,,100%", "not a percentage"),
        ("canary web v2 --every 2", "2s"),
        ("canary web v2 --max-slowdown 0%", "from 1% to"),
        ("canary web v2 --max-slowdown -25%", "as in 25%"),
        ("canary web v2 --max-slowdown 2.5%", "whole percentage"),
        ("canary web v2 --max-slowdown 100000000000%", "from 1% to"),
        ("deploy web v2 --watch 5m --max-slowdown much", r#""much""#),
        ("deploy web v2 --watch 0s", "--watch"),
    ];
    for (line, said) in cases {
        let error = read(&format!("pod-steer {line}")).unwrap_err();
        assert!(error.contains(said) && !error.contains('\n') && !error.starts_with("clap"), "{line}: {error}");
    }
}
