//! Invalid labels give a clear error in `status` and in the log, and affect no other container.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    check,
    container::{Container, Spec},
    daemon::Stage,
    image::Image,
    load::Load,
    process::{Process, run},
    report, require, server, tools, wait,
};
use serde_json::json;

/// Pause between two connections of the background clients, so that they leave processor time for the rest.
const REST: Duration = Duration::from_millis(2);

/// A good service with two backends.
fn good(stage: &Stage) -> Result<[Container; 2]> {
    let start =
        |name: &str| stage.engine().start_container(&server::named(name, "0.0.0.0:8080").service("web", "8080:8080"));
    let both = [start("good-1")?, start("good-2")?];
    stage.daemon.wait_ready("web", 2)?;
    Ok(both)
}

fn idle(name: &str) -> Spec {
    Spec::new(Image::Busybox, name).args(&["/bin/busybox", "sleep", "1000"])
}

/// Waits until `status` and the log have an error about a container.
fn said_about(stage: &Stage, name: &str) -> Result<String> {
    let said = stage.daemon.wait_for(&format!("a condition of {name}"), |status| {
        Some(status.said_about(name)).filter(|said| !said.is_empty())
    })?;
    wait::until("a line in the log", || stage.daemon.log().contains(name).then_some(()))?;
    Ok(said.join("\n"))
}

#[test]
fn every_field_can_be_wrong() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _good = good(&stage)?;
    let load = Load::to("127.0.0.1:8080".parse()?).pause(REST).start(stage.host.net())?;
    let ok = [("service", "shop"), ("ports", "80:8080"), ("version", "v1"), ("weight", "1"), ("fallback", "refuse")];
    let wrong = [
        ("service", ""),
        ("service", "two words"),
        ("service", "-web"),
        ("ports", ""),
        ("ports", "eighty:8080"),
        ("ports", "80:http"),
        ("ports", "0:8080"),
        ("ports", "80:0"),
        ("ports", "80:65536"),
        ("ports", "80-82:8080-8081"),
        ("ports", "82-80:8080-8082"),
        ("ports", "80:8080/sctp"),
        ("ports", "300.1.1.1:80:8080"),
        ("ports", "80:8080,80:9090"),
        ("ports", "80:8080,,"),
        ("version", "with space"),
        ("weight", "heavy"),
        ("weight", "-1"),
        ("weight", "1.5"),
        ("weight", "99999999999999999999"),
        ("fallback", "drop"),
        ("affinity", "client/33,64"),
        ("wieght", "1"),
    ];
    let mut containers = Vec::new();
    for (number, (key, value)) in wrong.iter().enumerate() {
        let mut spec = idle(&format!("wrong-{number}-end"));
        for (label, good) in ok.iter().filter(|(label, _)| label != key) {
            spec = spec.label(&format!("pod-steer.{label}"), good);
        }
        containers.push(stage.engine().create_container(&spec.label(&format!("pod-steer.{key}"), value))?);
    }
    for (container, (key, value)) in containers.iter().zip(wrong) {
        let said = said_about(&stage, &container.name)?;
        // The error names the label and its value, or only the label if that is unknown.
        assert!(said.contains(key), "pod-steer.{key}={value}: {said}");
        let value = if key == "wieght" { "weight" } else { value };
        let shown = value.get(..8).unwrap_or(value);
        assert!(said.contains(shown), "pod-steer.{key}={value}: {said}");
    }
    assert!(stage.daemon.status()?.service("shop").is_none(), "nothing of it is served");

    let tally = load.stop()?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    // The error ends with the container.
    drop(containers);
    stage.daemon.wait_for("nothing to complain of", |status| status.warnings().is_empty().then_some(()))
}

#[test]
fn a_label_set_that_lacks_a_part() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let ports_only = stage.engine().create_container(&idle("ports-only").label("pod-steer.ports", "80:8080"))?;
    let service_only = stage.engine().create_container(&idle("service-only").label("pod-steer.service", "web"))?;
    let weight_only = stage.engine().create_container(&idle("weight-only").label("pod-steer.weight", "3"))?;
    for (container, missing) in [(&ports_only, "service"), (&service_only, "ports"), (&weight_only, "service")] {
        let said = said_about(&stage, &container.name)?;
        assert!(said.contains(&format!("pod-steer.{missing}")), "{said}");
    }
    Ok(())
}

#[test]
fn two_services_claim_one_port() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _good = good(&stage)?;
    let load = Load::to("127.0.0.1:8080".parse()?).pause(REST).start(stage.host.net())?;
    let claim = server::named("thief-1", "0.0.0.0:9090").service("thief", "8080:9090");
    let thief = stage.engine().start_container(&claim)?;
    let said = said_about(&stage, "thief-1")?;
    assert!(said.contains("8080") && said.contains("web"), "which port, and whose it is: {said}");
    stage.daemon.wait_state("thief", "thief-1", "not-steered")?;
    let tally = load.stop()?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    assert_eq!(tally.answered_by("thief-1"), 0);
    drop(thief);
    stage.daemon.wait_for("the claim to be gone", |status| {
        (status.service("thief").is_none() && status.said_about("thief-1").is_empty()).then_some(())
    })
}

#[test]
fn a_container_with_a_namespace_of_its_own() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let _good = good(&stage)?;
    let bridged = server::named("bridged-1", "0.0.0.0:8080").service("web", "8080:8080").network("bridge");
    let bridged = bridged.label("pod-steer.via", "socket");
    let _bridged = stage.engine().start_container(&bridged)?;
    stage.daemon.wait_state("web", "bridged-1", "not-steered")?;
    let said = said_about(&stage, "bridged-1")?;
    // The reason and the remedy.
    assert!(said.contains("namespace") && said.contains("host"), "{said}");
    let tally = Load::to("127.0.0.1:8080".parse()?).threads(2).count(1000).run(stage.host.net())?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)
}

#[test]
fn a_socket_in_another_namespace_than_its_process_began_in() -> Result<()> {
    require!(tools::root_and(&["ip", "unshare"]));
    let stage = Stage::without_engine()?;
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", "stray", "--", "unshare", "--net"]);
    command.arg(tools::named_server()?).args(["--name", "stray", "--listen", "0.0.0.0:8080"]);
    let stray: Process = stage.host.start("stray", &mut command)?;
    wait::until("the stray server", || stray.stdout().contains("listening").then_some(()))?;
    let said = said_about(&stage, "stray")?;
    assert!(said.contains("namespace"), "{said}");
    let tally = Load::to("127.0.0.1:80".parse()?).count(20).run(stage.host.net())?;
    assert_eq!(tally.refused(), 20, "refused, not left to wait: {tally}");
    Ok(())
}

#[test]
fn a_thousand_containers_of_nonsense() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["curl"]));
    const CONTAINERS: u64 = 1000;
    let stage = Stage::with_docker()?;
    let _good = good(&stage)?;
    stage.engine().import(Image::Busybox)?;
    let load = Load::to("127.0.0.1:8080".parse()?).pause(REST).start(stage.host.net())?;

    // One curl process with one connection: starting `docker` a thousand times would dominate the test's time.
    let mut requests = String::new();
    for number in 0..CONTAINERS {
        let body = json!({ "Image": "busybox", "Cmd": ["/bin/busybox", "true"], "Labels": nonsense(number) });
        let quoted = serde_json::to_string(&body.to_string())?;
        let socket = stage.engine().docker().socket().display();
        writeln!(requests, "url = \"http://docker/v1.41/containers/create?name=nonsense-{number}\"")?;
        writeln!(requests, "unix-socket = \"{socket}\"\nheader = \"Content-Type: application/json\"\ndata = {quoted}")?;
        writeln!(requests, "fail\nsilent\nshow-error\noutput = /dev/null\nnext")?;
    }
    let list = stage.host.dir().join("requests");
    std::fs::write(&list, requests.trim_end_matches("next\n"))?;
    let began = std::time::Instant::now();
    run(std::process::Command::new("curl").arg("--config").arg(&list)).context("creating containers")?;
    let created = began.elapsed();
    let status = wait::until_within(4 * wait::STUCK, "a condition of each", || {
        let status = stage.daemon.status()?;
        let subjects = status.conditions.iter().map(|of| of.subject.as_str());
        let words: BTreeSet<&str> =
            subjects.flat_map(|subject| subject.split(|c: char| !(c.is_alphanumeric() || c == '-'))).collect();
        let is_complete = (0..CONTAINERS).all(|number| words.contains(format!("nonsense-{number}").as_str()));
        Ok(is_complete.then_some(status))
    })
    .with_context(|| stage.daemon.log_tail())?;
    report::figure(
        "1,000 nonsense containers",
        format!("created in {created:?}, {} conditions in status", status.conditions.len()),
    );

    let tally = load.stop()?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    assert_eq!(status.services.len(), 1, "none of them is a service");
    // A daemon that starts beside them becomes ready.
    let mut stage = stage;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    assert_eq!(stage.daemon.status()?.service("web").map(|web| web.ready()), Some(2));
    Ok(())
}

/// Labels of which at least one is invalid. Deterministic for a given number.
fn nonsense(number: u64) -> serde_json::Value {
    const TEXTS: [&str; 12] =
        ["", " ", "\n", "\u{1f980}", "-", "80", "80:", ":::::", "${HOME}", "'; rm -rf .", "\u{7}\u{1b}[31m", "1e309"];
    let mut state = number;
    let mut next = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let long = "x".repeat(10_000);
    let mut text = || match next(TEXTS.len() + 1) {
        n if n == TEXTS.len() => long.clone(),
        n => TEXTS[n].to_owned(),
    };
    let mut labels = serde_json::Map::new();
    for key in ["service", "ports", "version", "weight", "fallback"] {
        labels.insert(format!("pod-steer.{key}"), text().into());
    }
    // None of the texts above is a list of ports.
    json!(labels)
}
