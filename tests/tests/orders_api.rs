//! Orders over the API: their events arrive in order, and the API's description is correct.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec},
    require,
    rollouts::web,
    tools, wait,
};
use serde_json::{Value, json};

fn two_versions(stage: &Stage) -> Result<[Backend; 2]> {
    let both = [web(stage, "v1-1").start(stage)?, web(stage, "v2-1").start(stage)?];
    stage.daemon.wait_ready("web", 2)?;
    Ok(both)
}

/// One event of the stream: its id, its name, and its data.
type Event = (u64, String, Value);

/// Follows the events from now on. Each call reads the next one.
fn follow(stage: &Stage) -> Result<impl FnMut() -> Result<Event>> {
    let mut stream = stage.daemon.connect()?;
    stream.set_read_timeout(Some(wait::STUCK))?;
    // HTTP/1.0 has no chunks, so the lines are those of the stream.
    stream.write_all(b"GET /v1/events HTTP/1.0\r\nHost: pod-steer\r\nAccept: text/event-stream\r\n\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    let mut head = Vec::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        head.push(line.to_lowercase());
    }
    ensure!(head.iter().any(|line| line.starts_with("content-type: text/event-stream")), "{head:?}");
    Ok(move || {
        let (mut id, mut name, mut data) = (None, None, None);
        loop {
            let line = lines.next().context("the stream has ended")??;
            match line.split_once(": ") {
                Some(("id", value)) => id = Some(value.parse()?),
                Some(("event", value)) => name = Some(value.to_owned()),
                Some(("data", value)) => data = Some(serde_json::from_str(value)?),
                // A comment, which keeps the connection alive.
                _ if !line.is_empty() || data.is_none() => {}
                _ => return Ok((id.context("no id")?, name.context("no name")?, data.take().context("no data")?)),
            }
        }
    })
}

#[test]
fn the_events_of_a_deploy_come_in_order() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = two_versions(&stage)?;
    stage.daemon.order_done("shift web v1=1")?;
    let mut next = follow(&stage)?;
    stage.daemon.order_done("deploy web v2")?;
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|(_, name, _)| name != "done") {
        events.push(next()?);
    }
    ensure!(events.iter().map(|(id, ..)| *id).eq(1..=events.len() as u64), "{events:?}");
    ensure!(events.iter().all(|(_, name, data)| data["event"] == **name && data["service"] == "web"), "{events:?}");
    let at = |what: &str, is: &dyn Fn(&Value) -> bool| -> Result<usize> {
        events.iter().position(|(_, _, data)| is(data)).with_context(|| format!("{what} is not in {events:?}"))
    };
    let said = |event: &'static str, word: &'static str| {
        move |data: &Value| data["event"] == event && data["detail"].as_str().is_some_and(|text| text.contains(word))
    };
    let is = |backend: &'static str, state: &'static str| {
        move |data: &Value| data["backend"] == backend && data["event"] == state
    };
    let begun = at("its beginning", &said("step", "the deploy of v2"))?;
    let switched = at("the switch", &said("step", "switched"))?;
    let done = at("its end", &said("done", "v2 has all connections of web"))?;
    let (old, new) = (at("v1 without a share", &is("v1-1", "standby"))?, at("v2 with one", &is("v2-1", "ready"))?);
    ensure!(begun < switched && switched < done && done == events.len() - 1, "{events:?}");
    ensure!(begun < old.min(new) && old.max(new) < done, "{events:?}");
    Ok(())
}

#[test]
fn a_condition_is_told_when_it_appears_and_when_it_ends() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let mut next = follow(&stage)?;
    let mut next_named = |wanted: &str| loop {
        let (_, name, data) = next()?;
        if name == wanted {
            return anyhow::Ok(data);
        }
    };
    let mut odd = Exec::new("odd-1", "web", "80:8812", "0.0.0.0:9999").start(&stage)?;
    let is_of_odd =
        |data: &Value| data["service"] == "web" && data["backend"] == "odd-1" && data["reason"] == "not-listening";
    let data = next_named("condition")?;
    ensure!(is_of_odd(&data), "{data}");
    let status = stage.daemon.status()?;
    ensure!(status.backend("web", "odd-1").reasons() == ["not-listening"], "{status}");
    let all: Vec<_> = status.conditions.iter().map(|of| (of.subject.as_str(), of.condition.reason.as_str())).collect();
    ensure!(all == [("backend odd-1 of web", "not-listening")], "{all:?}");
    let said = &status.conditions[0].condition;
    ensure!(data["detail"] == said.to_string() && !said.remedy.is_empty(), "{data} {said}");
    odd.process.kill()?;
    let data = next_named("condition-ended")?;
    ensure!(is_of_odd(&data), "{data}");
    Ok(())
}

/// Every reference within a JSON document.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    if let Some(reference) = value["$ref"].as_str() {
        found.insert(reference);
    }
    let children = value.as_object().into_iter().flat_map(|object| object.values());
    children.chain(value.as_array().into_iter().flatten()).for_each(|child| references(child, found));
}

#[test]
fn the_description_holds() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = two_versions(&stage)?;
    let (status, document) = stage.daemon.api("/v1/openapi.json", None)?;
    ensure!(status == 200 && document["openapi"] == "3.1.0", "{status} {document}");
    ensure!(document["info"]["title"].is_string() && document["info"]["version"].is_string(), "{}", document["info"]);
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    ensure!(found.len() > 5, "{found:?}");
    for reference in found {
        let there = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        ensure!(there.is_some(), "{reference} leads nowhere");
    }
    let mut identifiers = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().context("no paths")? {
        for (method, operation) in methods.as_object().context("no methods")? {
            let id = operation["operationId"].as_str().context("no operationId")?;
            ensure!(identifiers.insert(id), "{id} comes twice");
            ensure!(operation["responses"].as_object().is_some_and(|all| !all.is_empty()), "{method} {path}");
            let named = operation["parameters"].as_array().into_iter().flatten().filter(|p| p["in"] == "path");
            let named: Vec<String> = named.map(|p| format!("{{{}}}", p["name"].as_str().unwrap_or_default())).collect();
            ensure!(path.matches('{').count() == named.len() && named.iter().all(|n| path.contains(n)), "{path}");
        }
    }
    // Every described path exists and answers as described.
    let described = |status: u16, path: &str, method: &str| {
        document["paths"][path][method]["responses"][status.to_string()].is_object()
    };
    let begun = stage.daemon.begin(&json!({ "order": "pause" }))?;
    for (path, real, body) in [
        ("/v1/status", "/v1/status".to_owned(), None),
        ("/v1/history", "/v1/history?service=web".to_owned(), None),
        ("/v1/operations/{id}", format!("/v1/operations/{begun}"), None),
        ("/v1/operations/{id}", "/v1/operations/999".to_owned(), None),
        ("/v1/services/{service}/orders", "/v1/services/web/orders".to_owned(), Some(json!({ "order": "unpause" }))),
        ("/v1/services/{service}/orders", "/v1/services/web/orders".to_owned(), Some(json!({ "order": "dance" }))),
        ("/v1/services/{service}/orders", "/v1/services/nope/orders".to_owned(), Some(json!({ "order": "pause" }))),
    ] {
        let method = if body.is_some() { "post" } else { "get" };
        let (status, answer) = stage.daemon.api(&real, body.as_ref())?;
        ensure!(described(status, path, method), "{method} {real}: {status} {answer} is not described");
    }
    Ok(())
}
