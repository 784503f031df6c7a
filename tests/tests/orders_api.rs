//! Orders over the API: what goes on is told in order, the description holds, a group may order, and what makes no sense
//! changes nothing.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Stage},
    exec::Backend,
    process::{output, run},
    require,
    rollouts::{clients, none_lost, web},
    tools, wait,
};
use serde_json::{Value, json};

/// A user and a group that are nobody's on any machine.
const USER: &str = "64711";
const GROUP: &str = "64712";

fn two_versions(stage: &Stage) -> Result<[Backend; 2]> {
    let both = [web(stage, "v1-1").start(stage)?, web(stage, "v2-1").start(stage)?];
    stage.daemon.wait_ready("web", 2)?;
    Ok(both)
}

/// One event of the stream: its id, its name, and its data.
type Event = (u64, String, Value);

/// Follows the events from now on; each call reads the next one.
fn follow(stage: &Stage) -> Result<impl FnMut() -> Result<Event>> {
    let mut stream = UnixStream::connect(stage.daemon.socket())?;
    stream.set_read_timeout(Some(wait::STUCK))?;
    // HTTP/1.0 knows no chunks: the lines are the stream's own.
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
                // A comment keeps the connection alive.
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
    // What is described is there, and answers as described.
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

#[test]
fn members_of_the_group_may_order() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "curl"]));
    let stage = Stage::configured(&format!("group = '{GROUP}'\n"))?;
    let _servers = two_versions(&stage)?;
    let post = |group: &str, path: &str, body: &str| {
        let mut curl = stage.host.command("setpriv")?;
        curl.args(["--reuid", USER, "--regid", group, "--clear-groups", "curl", "--silent", "--show-error"]);
        curl.args(["--header", "Content-Type: application/json", "--data", body, "--unix-socket"]);
        output(curl.arg(stage.daemon.socket()).arg(format!("http://pod-steer{path}")))
    };
    let ordered = post(GROUP, "/v1/services/web/orders", r#"{"order":"shift","weights":{"v2":1}}"#)?;
    let operation: Value = serde_json::from_slice(&ordered.stdout).with_context(|| format!("{ordered:?}"))?;
    let who = operation["who"].as_str().unwrap_or_default();
    ensure!(who.starts_with(&format!("uid {USER} (pid ")) && operation["end"]["outcome"] == "done", "{operation}");
    let before = stage.daemon.decision("web")?;
    ensure!(before["traffic"]["weights"] == json!({ "v2": 1 }), "{before}");

    let refused = post("64799", "/v1/services/web/orders", r#"{"order":"pause"}"#)?;
    ensure!(refused.status.code() == Some(7), "nobody else gets as far as the socket: {refused:?}");
    let unload = post(GROUP, "/v1/unload", "{}")?;
    ensure!(String::from_utf8_lossy(&unload.stdout).contains("only root may unload"), "{unload:?}");
    ensure!(stage.daemon.decision("web")? == before, "{}", stage.daemon.decision("web")?);
    Ok(())
}

/// What the kernel is told of rules, tables and decisions.
fn kernel_tables(stage: &Stage) -> Result<String> {
    let mut text = String::new();
    for map in ["RULES", "TABLES", "SWITCHES"] {
        let pin = run(stage.host.command("find")?.args([BPFFS, "-name", map]))?;
        text += &run(stage.host.command("bpftool")?.args(["--json", "map", "dump", "pinned", pin.trim()]))?;
    }
    Ok(text)
}

#[test]
fn what_makes_no_sense_changes_nothing() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool"]));
    let stage = Stage::without_engine()?;
    let _servers = two_versions(&stage)?;
    let load = clients().start(stage.host.net())?;
    stage.daemon.order_done("pause web")?;
    stage.daemon.order_done("unpause web")?;
    let before = (stage.daemon.decision("web")?, stage.daemon.history("web")?.len(), kernel_tables(&stage)?);
    for (order, hint) in BAD_ORDERS {
        let refused = stage.daemon.order(order)?.expect(2)?;
        let said = refused.stderr.trim_end();
        ensure!(refused.stdout.is_empty() && said.lines().count() == 1, "{order}: {}{said}", refused.stdout);
        ensure!(said.contains(hint), "{order}: {said}");
    }
    for (order, status) in bad_bodies() {
        let (answered, said) = stage.daemon.api("/v1/services/web/orders", Some(&order))?;
        let error = said["error"].as_str().unwrap_or_default();
        ensure!(answered == status && !error.is_empty() && error.lines().count() == 1, "{order}: {answered} {said}");
    }
    let after = (stage.daemon.decision("web")?, stage.daemon.history("web")?.len(), kernel_tables(&stage)?);
    ensure!(after == before, "{after:?} and before {before:?}");
    none_lost(&load.stop()?)
}

/// Orders, and what is said of each.
const BAD_ORDERS: [(&str, &str); 37] = [
    ("deploy nope v1", "known: web"),
    ("rollback nope", "known: web"),
    ("pause nope", "known: web"),
    ("drain nope", "known: web"),
    ("deploy web v9", "its versions: v1, v2"),
    ("canary web v9", "its versions: v1, v2"),
    ("shift web v9=1", "its versions: v1, v2"),
    ("drain web --version v9", "its versions: v1, v2"),
    ("drain web --backend nope", "its backends: v1-1, v2-1"),
    ("resume web --version v2", "is not drained"),
    ("rollback web", "nothing to go back to"),
    ("unpause web", "web is not paused"),
    ("deploy web", "<VERSION>"),
    ("deploy web v2 --timeout 0s", "--timeout"),
    ("deploy web v2 --timeout -5s", "--timeout"),
    ("deploy web v2 --timeout yesterday", "--timeout"),
    ("deploy web v2 --drain-timeout -1s", "--drain-timeout"),
    ("deploy web v2 --keep-old 0s", "--keep-old"),
    ("deploy web v2 --backends 0", "--backends"),
    ("deploy web v2 --backends two", "--backends"),
    ("shift web", "nothing is to change"),
    ("shift web v1", "v1=90"),
    ("shift web v1=-1", "negative"),
    ("shift web v1=NaN", "no whole number"),
    ("shift web v1=0.5", "no whole number"),
    ("shift web v1=0 v2=0", "every weight is 0"),
    ("shift web v1=99999999999", "too large"),
    ("shift web v1=1 v1=2", "each version once"),
    ("shift web v1=1 --balance", "exclude each other"),
    ("shift web --from 10.0.0.0/33=v2", "is no network"),
    ("shift web --from 10.0.0.1/8=v2", "did you mean 10.0.0.0/8?"),
    ("shift web --from 10.0.0.0/8=v9", "its versions: v1, v2"),
    ("shift web --no-from 10.0.0.0/8", "is not treated apart"),
    ("canary web v2 --steps 5%,101%", "100% is the most"),
    ("canary web v2 --steps 1%,5%", "end at 100%"),
    ("canary web v2 --steps 50%,10%,100%", "larger than the one before"),
    ("canary web v2 --every -2m", "--every"),
];

/// Bodies that no command would send, and the status of the answer.
fn bad_bodies() -> [(Value, u16); 12] {
    let deploy = |version: &str, timeout_ms: Value| json!({ "order": "deploy", "version": version, "timeout_ms": timeout_ms, "drain_timeout_ms": 1 });
    let canary = |steps: Value| json!({ "order": "canary", "version": "v2", "steps": steps, "every_ms": 1000, "timeout_ms": 1000 });
    [
        (json!([]), 400),
        (json!({ "order": "dance" }), 400),
        (json!({ "order": "drain", "versoin": "v1" }), 400),
        (json!({ "order": "shift", "weights": { "v1": -1 } }), 400),
        (json!({ "order": "shift", "weights": { "v1": 0.5 } }), 400),
        (json!({ "order": "shift", "weights": { "v1": 0 } }), 422),
        (json!({ "order": "shift", "weights": { "v1": 4_000_000_000_u32 } }), 422),
        (deploy("v9", json!(1000)), 422),
        (deploy("v2", json!(0)), 422),
        (deploy("v2", json!(-1)), 400),
        (canary(json!([100, 10_001])), 422),
        (canary(json!([])), 422),
    ]
}
