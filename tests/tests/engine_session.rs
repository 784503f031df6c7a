//! What must not keep the daemon from following an engine.

use std::{
    collections::HashMap,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex},
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Daemon,
    fake_engine::{self, FakeEngine},
    host::Host,
    require, tools, wait,
};

/// More than the daemon inspects before it reads the next event.
const CONTAINERS: usize = 300;
/// Descriptions of a container that are answered at once: of the first list, at the event, and once more.
const AT_ONCE: usize = 3;

/// A description of a container with labels of ours, on no port that a server has.
fn described(id: &str) -> String {
    let labels = r#""pod-steer.service":"web","pod-steer.ports":"80:8080""#;
    format!(
        r#"{{"Id":"{id}","Name":"/c-{id}","Config":{{"Labels":{{{labels}}}}},"State":{{"Status":"created"}},
            "HostConfig":{{"NetworkMode":"host"}}}}"#
    )
}

fn event(id: &str, action: &str) -> String {
    let attributes = r#""name":"mark","image":"mark","pod-steer.service":"mark","pod-steer.ports":"82:8082""#;
    format!(r#"{{"Action":"{action}","Actor":{{"ID":"{id}","Attributes":{{{attributes}}}}}}}"#) + "\n"
}

/// How often each container has been asked for.
#[derive(Debug, Default)]
struct Asked {
    counts: Mutex<HashMap<String, usize>>,
    changed: Condvar,
}

impl Asked {
    /// Counts, and waits with more than a few answers until a container was asked for.
    fn count(&self, id: &str, awaited: &str) {
        let mut counts = self.counts.lock().expect("no test panics here");
        let count = counts.entry(id.to_owned()).or_default();
        *count += 1;
        self.changed.notify_all();
        if *count > AT_ONCE {
            let waits = |counts: &mut HashMap<String, usize>| !counts.contains_key(awaited);
            drop(self.changed.wait_timeout_while(counts, 2 * wait::STUCK, waits));
        }
    }
}

#[test]
fn containers_that_wait_for_a_result_keep_no_event_back() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Arc::new(Host::new()?);
    let ids: Vec<String> = (0..CONTAINERS).map(|number| format!("{number:064x}")).collect();
    let mark = "f".repeat(64);
    let labels = r#"{"pod-steer.service":"web"}"#;
    let list: Vec<String> = ids.iter().map(|id| format!(r#"{{"Id":"{id}","Labels":{labels}}}"#)).collect();
    let list = format!("[{}]", list.join(","));
    // Without a result, as Podman's: the details have it after a while.
    let events: String = ids.iter().map(|id| event(id, "health_status")).chain([event(&mark, "create")]).collect();
    let asked = Asked::default();
    let answer = move |path: &str, stream: &UnixStream| match path.split('?').next().unwrap_or_default() {
        "/containers/json" => fake_engine::send(stream, &list),
        "/events" => {
            fake_engine::send(stream, &events);
            fake_engine::stay_silent(stream);
        }
        path => match path.strip_prefix("/containers/").and_then(|path| path.strip_suffix("/json")) {
            Some(id) => {
                asked.count(id, &mark);
                fake_engine::send(stream, &described(id));
            }
            None => fake_engine::send(stream, "{}"),
        },
    };
    let socket = host.dir().join("engine.sock");
    let _engine = FakeEngine::start(&socket, answer)?;
    let daemon = Daemon::start(&host, &[&format!("unix://{}", socket.display())])?;
    daemon.wait_for("the last event to be read", |status| status.service("mark").map(drop))
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
        ensure!(daemon.status()?.problems.is_empty(), "{refusal}: {}", daemon.status()?);
    }
    Ok(())
}
