//! Two engines list one container: it belongs to the first one.

use std::{os::unix::fs::symlink, sync::Arc};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Daemon,
    engine::Engine,
    fake_engine::{self, FakeEngine},
    host::Host,
    load::Load,
    require, server,
    status::Status,
    tools,
};

/// The condition of this engine.
fn said_of(status: &Status, engine: &str) -> Option<String> {
    status.said_about(engine).into_iter().next()
}

#[test]
fn one_engine_with_two_addresses_is_reported() -> Result<()> {
    require!(tools::docker());
    let host = Arc::new(Host::new()?);
    let engine = Engine::start(&host)?;
    symlink(engine.docker().socket(), host.dir().join("again.sock"))?;
    let again = format!("unix://{}", host.dir().join("again.sock").display());
    let daemon = Daemon::start(&host, &[&engine.url(), &again])?;
    let web = engine.start_container(&server::named("web-1", "0.0.0.0:8080").service("web", "80:8080"))?;
    daemon.wait_ready("web", 1)?;
    let said = daemon.wait_for("the second name to be reported", |status| {
        said_of(status, &again).or_else(|| said_of(status, &engine.url()))
    })?;
    ensure!(said.contains("web-1") && said.contains("name it once"), "{said}");
    drop(web);
    daemon.wait_for("the condition to end with the container", |status| {
        (status.warnings().is_empty() && status.service("web").is_none_or(|web| web.backends.is_empty())).then_some(())
    })
}

/// An engine that lists a container with other labels, and as ended.
fn liar(host: &Host, id: &str) -> Result<(FakeEngine, String)> {
    let socket = host.dir().join("liar.sock");
    let labels = r#""pod-steer.service":"other","pod-steer.ports":"81:8080""#;
    let list = format!(r#"[{{"Id":"{id}","Labels":{{{labels}}}}}]"#);
    let details = format!(
        r#"{{"Id":"{id}","Name":"/thief","Config":{{"Labels":{{{labels}}}}},"State":{{"Status":"exited"}},
            "HostConfig":{{"NetworkMode":"host"}}}}"#
    );
    let event = |id: &str, action: &str| {
        let attributes = r#""name":"mark","image":"mark","pod-steer.service":"mark","pod-steer.ports":"82:8082""#;
        format!(r#"{{"Action":"{action}","Actor":{{"ID":"{id}","Attributes":{{{attributes}}}}}}}"#) + "\n"
    };
    // The last container shows that the daemon has read the others.
    let events = [event(id, "die"), event(id, "kill"), event(&"f".repeat(64), "create")].concat();
    let engine = FakeEngine::start(&socket, move |path, stream| match path.split('?').next().unwrap_or_default() {
        "/containers/json" => fake_engine::send(stream, &list),
        "/events" => {
            fake_engine::send(stream, &events);
            fake_engine::stay_silent(stream);
        }
        path if path.starts_with("/containers/") => fake_engine::send(stream, &details),
        _ => fake_engine::send(stream, "{}"),
    })?;
    Ok((engine, format!("unix://{}", socket.display())))
}

#[test]
fn an_engine_changes_nothing_of_another_ones_container() -> Result<()> {
    require!(tools::docker());
    let host = Arc::new(Host::new()?);
    let engine = Engine::start(&host)?;
    let mut daemon = Daemon::start(&host, &[&engine.url()])?;
    let web = engine.start_container(&server::named("web-1", "0.0.0.0:8080").service("web", "80:8080"))?;
    daemon.wait_ready("web", 1)?;
    daemon.terminate()?;
    let (_liar, liar) = liar(&host, &web.id)?;
    let daemon = Daemon::start(&host, &[&engine.url(), &liar])?;
    let said = daemon.wait_for("its lies to be read", |status| {
        status.service("mark")?;
        said_of(status, &liar)
    })?;
    ensure!(said.contains("1 of its containers, among them web-1"), "{said}");
    let status = daemon.status()?;
    ensure!(status.service("other").is_none(), "{status}");
    daemon.wait_ready("web", 1)?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(50).run(host.net())?;
    ensure!(tally.answered_by("web-1") == 50, "{tally}");
    drop(daemon);

    // The container keeps its engine when the engine's address changes.
    symlink(engine.docker().socket(), host.dir().join("moved.sock"))?;
    let moved = format!("unix://{}", host.dir().join("moved.sock").display());
    let daemon = Daemon::start(&host, &[&moved])?;
    daemon.wait_ready("web", 1)?;
    web.stop()?;
    daemon.wait_for("the end to be seen", |status| (status.service("web")?.ready() == 0).then_some(()))?;
    let status = daemon.status()?;
    ensure!(status.said_about(&moved).is_empty(), "{status}");
    Ok(())
}
