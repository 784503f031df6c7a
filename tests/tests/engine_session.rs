//! Slow or failing requests to an engine do not delay its events.

use std::sync::Arc;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Daemon,
    fake_engine::{self, FakeEngine},
    host::Host,
    require, tools,
};

fn event(id: &str, action: &str) -> String {
    let attributes = r#""name":"mark","image":"mark","pod-steer.service":"mark","pod-steer.ports":"82:8082""#;
    format!(r#"{{"Action":"{action}","Actor":{{"ID":"{id}","Attributes":{{{attributes}}}}}}}"#) + "\n"
}

#[test]
fn an_engine_that_does_not_tell_its_version_is_followed() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    for refusal in [
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 22\r\n\r\n{\"message\":\"not this\"}\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"Components\":[{\"Name\":7}]}",
    ] {
        let host = Arc::new(Host::new()?);
        let socket = host.dir().join("engine.sock");
        let mark = "f".repeat(64);
        let _engine =
            FakeEngine::start(&socket, move |path, mut stream| match path.split('?').next().unwrap_or_default() {
                "/version" => drop(std::io::Write::write_all(&mut stream, refusal.as_bytes())),
                "/containers/json" => fake_engine::send(stream, "[]"),
                "/events" => {
                    fake_engine::send(stream, &event(&mark, "create"));
                    fake_engine::stay_silent(stream);
                }
                _ => fake_engine::send(stream, "{}"),
            })?;
        let daemon = Daemon::start(&host, &[&format!("unix://{}", socket.display())])?;
        daemon.wait_for("its events to be followed", |status| status.service("mark").map(drop))?;
        ensure!(daemon.status()?.warnings().is_empty(), "{refusal}: {}", daemon.status()?);
    }
    Ok(())
}
