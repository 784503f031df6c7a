//! The command line, as people and scripts use it.

use std::process::{Command, Output};

use anyhow::Result;
use pod_steer_tests::{daemon::Stage, exec::Exec, host::Host, process::output, require, tools, wait};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn assert_plain(outcome: &Output) {
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(!outcome.stdout.contains(&0x1b), "no colours in a pipe: {}", text(&outcome.stdout));
}

#[test]
fn status_in_each_form() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let empty = output(stage.daemon.cli()?.arg("status"))?;
    assert_plain(&empty);
    let _web = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v7"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    for form in [&["status"][..], &["status", "-o", "table"], &["status", "-o", "wide"]] {
        // A pipe gets no colours, whatever the environment asks for.
        let outcome = output(stage.daemon.cli()?.args(form).env_remove("NO_COLOR").env("TERM", "xterm-256color"))?;
        assert_plain(&outcome);
        let table = text(&outcome.stdout);
        let row = table.lines().find(|line| line.contains("web-1")).unwrap_or_else(|| panic!("{table}"));
        assert!(row.contains("web") && row.contains("v7") && row.contains("ready"), "{table}");
    }
    let status = stage.daemon.status()?;
    assert_eq!(status.pid, stage.daemon.pid());
    assert_eq!(stage.daemon.stdout(), "", "the daemon writes nothing but its log");
    let table = text(&output(stage.daemon.cli()?.arg("status"))?.stdout);
    assert!(table.lines().all(|line| line.trim_end().len() == line.len()), "no blanks at the ends of lines: {table:?}");
    Ok(())
}

#[test]
fn events_are_followed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let json = stage.host.start("events-json", stage.daemon.cli()?.args(["events", "-o", "json"]))?;
    let plain = stage.host.start("events-text", stage.daemon.cli()?.arg("events"))?;
    // Start one backend after the other until every follower is connected and has shown one.
    let mut number = 0;
    wait::until_ok("events of a backend", || {
        number += 1;
        let name = format!("web-{number}");
        let mut backend = Exec::new(&name, "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        backend.process.kill()?;
        stage.daemon.wait_for("it to be gone", |status| {
            status.service("web").is_none_or(|web| web.ready() == 0).then_some(())
        })?;
        Ok((json.stdout().contains(&name) && plain.stdout().contains(&name)).then_some(()))
    })?;
    for line in json.stdout().lines() {
        let event: serde_json::Value = serde_json::from_str(line)?;
        assert!(event.is_object(), "{line}");
    }
    assert!(!plain.stdout().contains('\x1b'));
    Ok(())
}

#[test]
fn bad_input_ends_with_2_and_a_remedy() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let cases: [&[&str]; 30] = [
        &["run", "--log-level", "nonsense"],
        &["run", "--log-level", ""],
        &["run", "--log-format", "xml"],
        &["run", "--engine", "tcp://host"],
        &["run", "--allow-ports", "80,"],
        &["run", "--max-backends", "-1"],
        &["exec", "--service", "", "--ports", "80:8080", "--", "true"],
        &["exec", "--service", "web", "--ports", "80:8080", "true"],
        &["status", ""],
        &["no-such-command"],
        &["status", "-o", "xml"],
        &["exec", "--service", "web", "--ports", "eighty:8080", "--", "true"],
        &["exec", "--service", "two words", "--ports", "80:8080", "--", "true"],
        &["exec", "--service", "web", "--ports", "80:8080", "--weight", "heavy", "--", "true"],
        &["exec", "--service", "web", "--ports", "80:8080", "--fallback", "drop", "--", "true"],
        &["exec", "--service", "web", "--ports", "80:8080", "--affinity", "client/0", "--", "true"],
        &["exec", "--service", "web", "--ports", "80:8080"],
        &["register", "--service", "web", "--ports", "80:8080"],
        &["deploy", "web"],
        &["deploy", "web", "v2", "--timeout", "-5s"],
        &["deploy", "web", "v2", "--backends", "0"],
        &["shift", "web"],
        &["shift", "web", "v1=-1", "v2=10"],
        &["shift", "web", "v1=0", "v2=0"],
        &["shift", "web", "v1=NaN"],
        &["shift", "web", "--from", "10.0.0.1/8=v2"],
        &["canary", "web", "v2", "--steps", "5%,101%"],
        &["canary", "web", "v2", "--steps", "1%,5%"],
        &["drain", "web", "--version", "v1", "--backend", "web-1"],
        &["history", ""],
    ];
    for case in cases {
        let outcome = output(stage.daemon.cli()?.args(case))?;
        assert_eq!(outcome.status.code(), Some(2), "{case:?}: {outcome:?}");
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{case:?}: {outcome:?}");
        assert_eq!(text(&outcome.stderr).lines().count(), 1, "{case:?}: {outcome:?}");
    }
    // The same in the environment and in the file.
    let level = output(stage.daemon.cli()?.arg("run").env("POD_STEER_LOG", "nonsense"))?;
    assert_eq!(level.status.code(), Some(2), "{level:?}");
    assert!(text(&level.stderr).contains("unknown log level \"nonsense\"; use off, error, warn, info"), "{level:?}");
    for (content, said) in [
        ("log-level = 'nonsense'", "unknown log level"),
        ("log-format = 'xml'", "text"),
        ("allow-port = '80'", "allow-port"),
        ("max-backends = -1", "max-backends"),
        ("[service.web]\nslow-start = '-5s'", "slow-start"),
        ("[service.web.health]\nkind = 'icmp'", "use tcp, http, exec or none"),
        ("[service.'']\nrollout = 'latest'", "empty"),
        ("not toml", "line 1"),
    ] {
        let file = stage.host.dir().join("wrong.toml");
        std::fs::write(&file, content)?;
        let refused = output(stage.daemon.cli()?.args(["run", "--config"]).arg(&file))?;
        assert_eq!(refused.status.code(), Some(2), "{content}: {refused:?}");
        let error = text(&refused.stderr);
        assert!(error.lines().count() == 1 && error.contains(said), "{content}: {error}");
    }
    let placed = output(stage.daemon.cli()?.args(["exec", "--service", "web", "--ports", "80:8080", "ls", "-l"]))?;
    let said = text(&placed.stderr);
    assert!(
        said.contains("put `--` before the command: pod-steer exec --service web --ports 80:8080 -- ls -l"),
        "{said}"
    );
    let dead =
        output(stage.daemon.cli()?.args(["register", "--service", "web", "--ports", "80:8080", "--pid", "4194300"]))?;
    assert!(!dead.status.success(), "{dead:?}");
    assert!(text(&dead.stderr).contains("4194300"), "{dead:?}");
    Ok(())
}

#[test]
fn the_api_is_described() -> Result<()> {
    require!(tools::root_and(&["ip", "curl"]));
    let stage = Stage::without_engine()?;
    let printed = output(stage.daemon.cli()?.arg("openapi").env("POD_STEER_SOCKET", "/none"))?;
    assert_plain(&printed);
    let printed: serde_json::Value = serde_json::from_slice(&printed.stdout)?;
    assert_eq!(printed["openapi"], "3.1.0");
    let mut curl = stage.host.command("curl")?;
    curl.args(["--silent", "--unix-socket"]).arg(stage.daemon.socket());
    let served: serde_json::Value = serde_json::from_slice(&output(curl.arg("http://x/v1/openapi.json"))?.stdout)?;
    assert_eq!(served, printed, "by the daemon as by the command");
    Ok(())
}

#[test]
fn without_a_daemon() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Host::new()?;
    let cli = |args: &[&str]| -> Result<Output> {
        let mut command: Command = host.command(tools::pod_steer()?)?;
        output(command.args(args).env("POD_STEER_SOCKET", host.dir().join("none/api.sock")))
    };
    for command in ["status", "events"] {
        let outcome = cli(&[command])?;
        assert_eq!(outcome.status.code(), Some(1), "{command}: {outcome:?}");
        let said = text(&outcome.stderr);
        assert!(said.contains("api.sock") && said.contains("pod-steer run"), "what was tried, what to do: {said}");
    }
    for args in ["version", "--version", "-V"] {
        let version = cli(&[args])?;
        assert_plain(&version);
        let said = text(&version.stdout);
        assert!(said.starts_with(concat!("pod-steer ", env!("CARGO_PKG_VERSION"))), "{said}");
        assert!(said.lines().count() == 1 && said.contains("kernel state"), "{said}");
    }
    // The version of a backend is another matter.
    assert_eq!(cli(&["exec", "--version"])?.status.code(), Some(2));
    Ok(())
}

#[test]
fn doctor_reports_what_the_machine_offers() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Host::new()?;
    let outcome = output(host.command(tools::pod_steer()?)?.arg("doctor"))?;
    assert_plain(&outcome);
    let said = text(&outcome.stdout);
    for feature in ["sk_lookup", "sk_reuseport/migrate", "bpffs", "cgroup", "capabilities"] {
        assert!(said.to_lowercase().contains(&feature.to_lowercase()), "{feature} is not in: {said}");
    }
    // A missing requirement is shown with its remedy: here the BPF file system.
    let mut without = host.command("unshare")?;
    without.args(["--mount", "sh", "-c", "umount /sys/fs/bpf && exec \"$0\" doctor"]).arg(tools::pod_steer()?);
    let outcome = output(&mut without)?;
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    let said = text(&outcome.stdout) + &text(&outcome.stderr);
    assert!(said.contains("mount -t bpf"), "{said}");
    // `run` fails with the same message.
    let mut run = host.command("unshare")?;
    run.args(["--mount", "sh", "-c", "umount /sys/fs/bpf && exec \"$0\" run --engine none --runtime-dir \"$1\""]);
    let refused = output(run.arg(tools::pod_steer()?).arg(host.dir().join("run")))?;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(text(&refused.stderr).contains("mount -t bpf"), "{refused:?}");
    Ok(())
}
