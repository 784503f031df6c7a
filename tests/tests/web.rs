//! The web page: who may see it, that it changes nothing without permission, and that it shows what happens.

use std::{os::unix::process::ExitStatusExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec},
    http::{Answer, Request},
    page::{Page, alert},
    require,
    rollouts::{Scene, clients, web},
    tools, wait,
};
use rustix::process::Signal;
use serde_json::json;

fn stage() -> Result<(Stage, [Backend; 2])> {
    let stage = Stage::without_engine()?;
    let servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    Ok((stage, servers))
}

/// Refused with one line that contains this, and without a cookie.
fn refused(answer: &Answer, said: &str) -> Result<()> {
    let is_one_line = answer.body.trim_end().lines().count() == 1 && answer.body.ends_with('\n');
    ensure!(answer.status == 403 && is_one_line && answer.body.contains(said), "not {said:?}: {answer:?}");
    ensure!(answer.header("set-cookie").is_none(), "{answer:?}");
    Ok(())
}

#[test]
fn the_address_is_valid_once() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, _servers) = stage()?;
    let page = Page::start(&stage, &[])?;
    wait::until("the line about orders", || page.process.stderr().contains("--allow-orders").then_some(()))?;
    ensure!(page.process.stderr().lines().count() == 1, "{}", page.process.stderr());
    ensure!(page.path().len() == "/?token=".len() + 32, "{}", page.url);
    refused(&page.get("/", None)?, "open the address that")?;
    refused(&page.get("/?token=", None)?, "the token is wrong")?;
    let (host, path) = (page.host(), page.path().to_owned());
    refused(&page.get(&path[..path.len() - 1], None)?, "the token is wrong")?;
    // A look ahead at the address does not spend the token, and neither does a request that is refused for its host.
    let head = Request { method: "HEAD", path: &path, headers: &[("Host", &host)], body: "" };
    ensure!(page.ask(head)?.status == 405);
    let port = page.address.port();
    for other in
        ["evil.example", &format!("evil.example:{port}"), "127.0.0.1:1", &format!("localhost.evil.example:{port}")]
    {
        refused(
            &page.ask(Request { method: "GET", headers: &[("Host", other)], ..head })?,
            "open the page as http://127.0.0.1",
        )?;
    }
    refused(&page.ask(Request { method: "GET", headers: &[], ..head })?, "open the page as http://127.0.0.1")?;

    let session = page.enter()?;
    refused(&page.get(&path, None)?, "valid once")?;
    refused(&page.get(&path, Some(&session.cookie))?, "valid once")?;
    // Only this cookie opens the page, by every name of the machine.
    refused(&page.get(&session.folder, None)?, "open the address that")?;
    refused(&page.get(&session.folder, Some(&session.cookie[..session.cookie.len() - 1]))?, "open the address that")?;
    for name in ["localhost", "127.0.0.1", "[::1]"] {
        let (host, cookie) = (format!("{name}:{port}"), session.cookie.as_str());
        let headers = [("Host", host.as_str()), ("Cookie", cookie)];
        let answer = page.ask(Request { method: "GET", path: &session.folder, headers: &headers, body: "" })?;
        ensure!(answer.status == 200, "{name}: {answer:?}");
    }
    let answer = page.get(&session.folder, Some(&session.cookie))?;
    let policy = answer.header("content-security-policy").context("no content policy")?;
    for part in
        ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        ensure!(policy.split("; ").any(|own| own == part), "{policy}");
    }
    for (name, value) in
        [("x-content-type-options", "nosniff"), ("cache-control", "no-store"), ("referrer-policy", "same-origin")]
    {
        ensure!(answer.header(name) == Some(value), "{answer:?}");
    }
    // Nothing from elsewhere, and no secret.
    for never in ["http://", "https://", " style=", " onclick=", "<form", &path[8..]] {
        ensure!(!answer.body.contains(never), "{never} in {}", answer.body);
    }
    let other = format!("{}nothing", session.folder);
    ensure!(page.get(&other, Some(&session.cookie))?.status == 404);
    refused(&page.get(&other, None)?, "open the address that")?;
    Ok(())
}

#[test]
fn it_orders_nothing_without_permission() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, _servers) = stage()?;
    let before = stage.daemon.history("web")?.len();
    let deploy = "kind=deploy&service=web&version=v2";
    let page = Page::start(&stage, &[])?;
    let session = page.enter()?;
    for path in ["order", "confirm", ""] {
        refused(&page.post(&session, path, deploy)?, "this page can only be read; nothing was changed")?;
    }

    let page = Page::start(&stage, &["--allow-orders"])?;
    let session = page.enter()?;
    let secret = page.form_secret(&session)?;
    let (host, path, form) = (page.host(), format!("{}order", session.folder), format!("form={secret}&{deploy}"));
    let cookie = ("Cookie", session.cookie.as_str());
    let post = |headers: &[(&str, &str)]| page.ask(Request { method: "POST", path: &path, headers, body: &form });
    refused(&post(&[("Host", &host), ("Origin", &format!("http://{host}"))])?, "open the address that")?;
    refused(&post(&[("Host", &host), cookie])?, "from another site")?;
    for origin in ["null", "http://evil.example", "http://127.0.0.1:1", &format!("https://{host}")] {
        refused(&post(&[("Host", &host), cookie, ("Origin", origin)])?, "from another site")?;
    }
    for wrong in [deploy.to_owned(), format!("form=&{deploy}"), format!("form={}&{deploy}", session.cookie)] {
        refused(&page.post(&session, "order", &wrong)?, "the form is not of this page")?;
        refused(&page.post(&session, "confirm", &wrong)?, "the form is not of this page")?;
    }
    // What cannot be ordered is said in one line.
    for (wrong, said) in [
        ("kind=unload&service=web", "unknown order"),
        ("kind=deploy&service=web&version=two+words", "spaces"),
        ("kind=deploy&service=web&version=v9", "v9"),
        ("kind=deploy&service=nope&version=v1", "there is no service"),
        ("kind=shift&service=web&of=v1&weight=-1", "negative"),
        ("kind=drain&service=web&part=version:", "a value is required"),
    ] {
        let answer = page.post(&session, "order", &format!("form={secret}&{wrong}"))?;
        let error = alert(&answer.body);
        ensure!(
            answer.status == 422 && error.contains(said) && error.lines().count() == 1,
            "{wrong}: {error:?} {answer:?}"
        );
    }
    let long = format!("form={secret}&{deploy}&x={}", "x".repeat(100_000));
    ensure!(page.post(&session, "order", &long)?.status == 400);
    let confirmation = page.post(&session, "confirm", &form)?;
    ensure!(confirmation.status == 200 && confirmation.body.contains("pod-steer deploy web v2"), "{confirmation:?}");
    ensure!(stage.daemon.history("web")?.len() == before, "nothing has been ordered so far");

    // With everything right, it is the order of the command line, by the user who started the page.
    let answer = page.post(&session, "order", &form)?;
    let location = answer.header("location").unwrap_or_default();
    let query = location.strip_prefix("./").and_then(|rest| rest.strip_suffix("#service-web"));
    let query = query.with_context(|| format!("{answer:?}"))?;
    ensure!(answer.status == 303 && query.starts_with("?told="), "{answer:?}");
    let told = || page.get(&format!("{}{query}", session.folder), Some(&session.cookie));
    ensure!(!page.page(&session)?.contains("class=\"notice\""), "another page of the browser leaves it alone");
    ensure!(told()?.body.contains("deploy v2 for web"), "how it ended is shown");
    ensure!(!told()?.body.contains("class=\"notice\""), "once");
    ensure!(page.get(&format!("{}?told=x", session.folder), Some(&session.cookie))?.status == 200);
    wait::until_ok("the deploy to be done", || {
        Ok(stage
            .daemon
            .history("web")?
            .last()
            .and_then(|last| last.end.clone())
            .filter(|end| end.outcome == "done")
            .map(drop))
    })?;
    ensure!(stage.daemon.decision("web")?["traffic"]["weights"] == json!({ "v2": 1 }));
    for (form, drained) in [("drain&part=version:v1", 1), ("resume&part=version:v1", 0), ("pause", 0), ("unpause", 0)] {
        let answer = page.post(&session, "order", &format!("form={secret}&service=web&kind={form}"))?;
        ensure!(answer.status == 303, "{form}: {answer:?}");
        let decision = stage.daemon.decision("web")?;
        ensure!(
            decision["drained"].as_array().map(Vec::len) == Some(drained) && decision["paused"] == (form == "pause"),
            "{form}: {decision}"
        );
    }
    Ok(())
}

#[test]
fn updates_show_a_deploy_and_a_daemon_that_is_away() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut scene = Scene::new(true)?;
    let mut page = Page::start(&scene.stage, &[])?;
    let session = page.enter()?;
    ensure!(page.get(&format!("{}updates", session.folder), None)?.status == 403);
    let load = clients().pause(Duration::from_millis(10)).start(scene.stage.host.net())?;
    let mut updates = page.updates(&session, "?seen=0")?;
    updates.wait_part("services", "service-web")?;
    updates.wait_part("s-web-chart", "<polygon")?;
    scene.stage.daemon.order_done("deploy web v2 --drain-timeout 20s")?;
    updates.wait_part("orders", "deploy v2")?;
    updates.wait_part("s-web-chart", "Now: v1 0/s, v2 ")?;
    let tally = load.stop()?;
    ensure!(tally.losses.is_empty(), "{tally}");
    // Events come without a request, and again if the connection was lost.
    scene.stage.daemon.order_done("drain web --version v1")?;
    page.updates(&session, "?seen=0")?.wait_event("drained")?;
    let one = page.updates(&session, "?service=nope")?.take()?;
    ensure!(one["parts"].to_string().contains("There is no service nope"), "{one}");

    scene.stage.daemon.kill()?;
    updates.wait_part("state", "The daemon has not answered since")?;
    ensure!(page.page(&session)?.contains("Steering goes on in the kernel"), "it is on a new page too");
    scene.stage.daemon.restart()?;
    // A page that stayed open goes on without a reload, with new events too, and without a jump of the counters.
    updates.wait_empty("state")?;
    ensure!(!page.page(&session)?.contains("has not answered"), "a new page knows it too");
    scene.stage.daemon.order_done("drain web --backend v2-1")?;
    updates.wait_event("web v2-1</span> <strong>drained</strong>")?;
    page.process.signal(Signal::TERM)?;
    let ended = page.process.wait(wait::STUCK)?;
    ensure!(ended.code() == Some(0), "{ended} {:?} {}", ended.signal(), page.process.stderr());
    let mut page = Page::start(&scene.stage, &[])?;
    page.process.signal(Signal::INT)?;
    ensure!(page.process.wait(wait::STUCK)?.code() == Some(0));
    Ok(())
}

#[test]
fn names_at_the_limits_are_escaped() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let version = format!("<script>alert(1)</script>\"'&amp;{}", "v".repeat(96));
    let service = format!("a.{}-b_1", "x".repeat(57));
    ensure!(version.len() == 128 && service.len() == 63, "{} {}", version.len(), service.len());
    let name = "\"><svg+onload=alert(1)>商店";
    let exec = Exec::new(name, &service, "80:8080", "0.0.0.0:8080").flags(&["--version", &version]);
    let _server = exec.start(&stage)?;
    stage.daemon.wait_ready(&service, 1)?;
    let page = Page::start(&stage, &["--allow-orders"])?;
    let session = page.enter()?;
    let _load = pod_steer_tests::load::Load::to("127.0.0.1:80".parse()?).count(50).run(stage.host.net())?;
    let mut updates = page.updates(&session, "")?;
    updates.wait_part(&format!("s-{service}-chart"), "&lt;script")?;
    let html = page.page(&session)?;
    ensure!(
        html.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && html.contains("&lt;svg+onload=alert(1)&gt;商店"),
        "{html}"
    );
    for never in ["<script>", "<svg+", "\"'&amp;v"] {
        ensure!(!html.contains(never), "{never} in {html}");
    }
    // The same names in an order, as a browser would send them.
    let secret = page.form_secret(&session)?;
    let encoded: String = version.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let form = format!("form={secret}&kind=drain&service={service}&part=version:{encoded}");
    let confirmation = page.post(&session, "confirm", &form)?;
    ensure!(confirmation.status == 200 && !confirmation.body.contains("<script>alert"), "{confirmation:?}");
    ensure!(page.post(&session, "order", &form)?.status == 303);
    let drained = stage.daemon.decision(&service)?["drained"].clone();
    ensure!(drained == json!([{ "part": "version", "name": version }]), "{drained}");
    Ok(())
}

#[test]
fn a_wrong_start_is_one_line() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (stage, _servers) = stage()?;
    for (args, said) in [
        ("web --listen 0.0.0.0:0", "loopback"),
        ("web --listen [::]:9000", "loopback"),
        ("web --listen 10.0.0.1:9000", "loopback"),
        ("web --listen 127.0.0.1", "--listen"),
        ("web --listen web:80", "--listen"),
        ("web --allow-order", "--allow-orders"),
        ("web all", "unexpected argument"),
    ] {
        let ordered = stage.daemon.order(args)?.expect(2)?;
        ensure!(ordered.stderr.trim_end().lines().count() == 1 && ordered.stderr.contains(said), "{ordered:?}");
        ensure!(ordered.stdout.is_empty(), "{ordered:?}");
    }
    let page = Page::start(&stage, &["--listen", "[::1]:0"])?;
    page.enter()?;
    let taken = stage.daemon.order(&format!("web --listen {}", page.address))?.expect(1)?;
    ensure!(taken.stderr.contains("cannot listen on") && taken.stderr.trim_end().lines().count() == 1, "{taken:?}");
    drop(page);
    let mut stage = stage;
    stage.daemon.terminate()?;
    let none = stage.daemon.order("web")?.expect(1)?;
    ensure!(none.stderr.contains("pod-steer is not running") && none.stdout.is_empty(), "{none:?}");
    Ok(())
}
