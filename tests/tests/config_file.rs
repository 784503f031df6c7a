//! `pod-steer config`: the commented file, and the check of a file.

use std::{fs, path::Path, process::Command};

use anyhow::Result;
use pod_steer_tests::{process::output, tools};

/// Runs it, and returns the exit code with both outputs.
fn config(args: &[&str]) -> Result<(Option<i32>, String, String)> {
    let mut command = Command::new(tools::pod_steer()?);
    // Flags and variables of `run` are no part of a file.
    let outcome = output(command.arg("config").args(args).env("POD_STEER_METRICS", "nonsense"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((outcome.status.code(), text(&outcome.stdout), text(&outcome.stderr)))
}

#[test]
fn each_fault_of_a_file_is_a_line_with_its_place_and_a_remedy() -> Result<()> {
    let file = std::env::temp_dir().join(format!("pod-steer-config-file-{}.toml", std::process::id()));
    let shown = file.display().to_string();
    let check = |text: &str| -> Result<_> {
        fs::write(&file, text)?;
        config(&["check", &shown])
    };
    let (_, example, _) = config(&["example"])?;
    let good = ["", &example, "engine = ['none']\n[service.web]\nfallback = 'pass'\n"];
    for text in good {
        assert_eq!(check(text)?, (Some(0), format!("ok: {shown}\n"), String::new()), "{text}");
    }
    for (text, expected) in [
        ("engine = [", &["line 1, "][..]),
        ("# text\nengine = ['none']\nmax-backend = 7\n", &["line 3, \"max-backend = 7\": unknown field `max-backend`"]),
        ("\nmetrics = '9464x'\n", &["line 2: metrics=`9464x` is not an address and a port; write it as in 127.0.0.1"]),
        (
            "\n\nengine = ['tcp://host']",
            &["line 3: `tcp://host` is not the address of a container engine; give the path"],
        ),
        (
            "viewers = \"none\\u001bsuch\"",
            &["line 1: there is no group \"none\\u{1b}such\"; give a name from /etc/group"],
        ),
        ("group = 'root'\nviewers = '0'", &["line 2: `group` and `viewers` both name"]),
        ("max-backends = 0", &["line 1: max-backends=0 is refused; write a number from 1"]),
        ("allow-ports = '80-'", &["line 1: allow-ports=`80-` is not a list of ports; write it as in"]),
        ("log-level = 'loud'", &["line 1: unknown log level"]),
        (
            "[service.web]\nrolout = 'latest'\n[service.\"*\".health]\nkind = 'tcp'\ninterval = '1ms'\n",
            &[
                "line 2: service.web.rolout is unknown; did you mean rollout?",
                "line 5: service.\"*\".health.interval=\"1ms\" is refused: it is too short; the minimum is 10ms",
            ],
        ),
    ] {
        let (code, printed, said) = check(text)?;
        assert_eq!((code, printed.as_str(), said.lines().count()), (Some(2), "", expected.len()), "{text}: {said}");
        for (line, expected) in said.lines().zip(expected) {
            assert!(line.starts_with("error: ") && line.contains(&shown) && line.contains(expected), "{text}: {line}");
        }
    }
    fs::remove_file(&file)?;
    let (code, _, said) = config(&["check", &shown])?;
    assert!(code == Some(2) && said.lines().count() == 1 && said.contains("cannot be read"), "{said}");
    assert!(!Path::new(&shown).exists());
    Ok(())
}
