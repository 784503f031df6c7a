//! Names with control characters and names that are too long are refused at the edge, or escaped where they are shown.

use anyhow::{Result, ensure};
use pod_steer_tests::{container::Spec, daemon::Stage, exec::Exec, image::Image, process::output, require, tools};
use serde_json::json;

/// Moves the cursor, changes the colour, and begins a new line.
const NASTY: &str = "a\u{1b}[2J\u{1b}[31m\nb\u{9b}c";

/// No control character but the end of a line, and no byte of one.
fn is_clean(what: &str, text: &str) -> Result<()> {
    let bad = text.chars().find(|c| c.is_control() && *c != '\n');
    ensure!(bad.is_none(), "{what} has {bad:?}: {text:?}");
    Ok(())
}

/// All output of the daemon and its commands.
fn all_clean(stage: &Stage) -> Result<()> {
    is_clean("the log", &stage.daemon.log())?;
    for args in ["status", "status -o wide", "status -o json", "history", "history -o json"] {
        let said = stage.daemon.order(args)?.expect(0)?;
        is_clean(args, &(said.stdout + &said.stderr))?;
    }
    Ok(())
}

#[test]
fn the_api_and_the_command_line_refuse_them() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _web = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let events = stage.host.start("events", stage.daemon.cli()?.arg("events"))?;
    let before = stage.daemon.status()?.services.len();
    let pid = stage.daemon.pid();
    let long = "x".repeat(1_000_000);
    for name in [NASTY, &long, "", "two words"] {
        let register = |field: &str| {
            let mut body = json!({ "pid": pid, "service": "web", "ports": "80:8080", "version": "v1", "name": "w" });
            body[field] = name.into();
            body
        };
        let deploy = json!({ "order": "deploy", "version": name, "timeout_ms": 1, "drain_timeout_ms": 1 });
        for (path, body) in [
            ("/v1/register", register("service")),
            ("/v1/register", register("version")),
            ("/v1/register", register("name")),
            ("/v1/services/web/orders", deploy),
            ("/v1/services/web/orders", json!({ "order": "drain", "backend": name })),
            ("/v1/services/web/orders", json!({ "order": "drain", "version": name })),
            ("/v1/services/web/orders", json!({ "order": "shift", "weights": { name: 1 } })),
            ("/v1/services/web/orders", json!({ "order": "shift", "from": { "10.0.0.0/8": name } })),
            ("/v1/services/web/orders", json!({ "order": "pause", name: 1 })),
            ("/v1/services/a%1B%5B2Jb/orders", json!({ "order": "pause" })),
        ] {
            let (status, answer) = stage.daemon.api(path, Some(&body))?;
            let error = answer["error"].as_str().unwrap_or_default();
            ensure!(matches!(status, 400 | 422), "{path} {status} {error}");
            ensure!(!error.is_empty() && error.chars().count() < 600, "{path} {error}");
            is_clean(path, error)?;
        }
        for (command, name) in [("pause", name), ("history", name), ("status", name)] {
            if name.len() < 100_000 {
                let said = output(stage.daemon.cli()?.arg(command).arg(name))?;
                ensure!(said.status.code() == Some(2), "{command} {name:?}: {said:?}");
                is_clean(command, &String::from_utf8_lossy(&said.stderr))?;
            }
        }
    }
    for path in ["/v1/history?service=a%1B%5B2Jb", "/v1/operations/a%1B%5B2Jb"] {
        let (status, answer) = stage.daemon.api(path, None)?;
        ensure!(status == 404, "{status} {answer}");
        is_clean(path, answer["error"].as_str().unwrap_or_default())?;
    }
    ensure!(stage.daemon.status()?.services.len() == before, "nothing has changed");
    is_clean("events", &events.stdout())?;
    all_clean(&stage)
}

#[test]
fn labels_are_shown_written_out() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let events = stage.host.start("events", stage.daemon.cli()?.arg("events"))?;
    let idle = |name: &str| Spec::new(Image::Busybox, name).args(&["/bin/busybox", "sleep", "1000"]);
    let long = "x".repeat(60_000);
    let values = [NASTY, &long];
    let keys = ["service", "ports", "version", "rollout", "health", "health.path", NASTY];
    let mut containers = Vec::new();
    for (number, (key, value)) in keys.iter().flat_map(|key| values.map(|value| (key, value))).enumerate() {
        let mut spec =
            idle(&format!("bad-{number}-end")).label("pod-steer.service", "web").label("pod-steer.ports", "80");
        spec = spec.label(&format!("pod-steer.{key}"), value);
        containers.push(stage.engine().create_container(&spec)?);
    }
    for container in &containers {
        let said = stage.daemon.wait_for("a condition of each", |status| {
            Some(status.said_about(&container.name)).filter(|said| !said.is_empty())
        })?;
        ensure!(said.iter().all(|said| said.chars().count() < 1000), "{said:?}");
    }
    is_clean("events", &events.stdout())?;
    all_clean(&stage)
}
