//! The web page under load, with slow clients, and of users who may only read.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    page::{Page, Session, alert},
    require,
    roles::{OPERATORS, User, VIEWERS},
    rollouts::web,
    tools, wait,
};

/// Connections that the page serves at a time.
const CLIENTS: usize = 64;
/// Somewhat less than the 10 s for which they may send or read nothing.
const QUIET_MIN: Duration = Duration::from_secs(9);
/// Pages that it updates at a time.
const PAGES: usize = 16;

/// What the page sends until it closes the connection, and how long that took.
fn until_closed(stream: &mut TcpStream) -> Result<(String, Duration)> {
    let (begun, mut answer) = (Instant::now(), Vec::new());
    stream.set_read_timeout(Some(wait::STUCK))?;
    stream.read_to_end(&mut answer).context("the page does not close the connection")?;
    Ok((String::from_utf8_lossy(&answer).into_owned(), begun.elapsed()))
}

#[test]
fn clients_that_send_nothing_delay_a_page_by_seconds() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let page = Page::start(&stage, &["--allow-orders"])?;
    let session = page.enter()?;
    let begun = Instant::now();
    // A form that stops in its middle. It has the cookie, so that it is read at all.
    let mut form = page.connect()?;
    let head = format!(
        "POST {}order HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nCookie: {}\r\nContent-Length: 100\r\n\r\nform=",
        session.folder,
        session.cookie,
        host = page.host()
    );
    form.write_all(head.as_bytes())?;
    // Half of the others have sent the beginning of a request.
    let mut idle: Vec<TcpStream> = (1..CLIENTS).map(|_| page.connect()).collect::<Result<_>>()?;
    for stream in idle.iter_mut().step_by(2) {
        stream.write_all(b"GET / HTTP/1.1\r\nHost:")?;
    }
    waits_for_a_place(&page, &session, begun)?;
    for stream in &mut idle {
        let (answer, _) = until_closed(stream)?;
        ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let (answer, _) = until_closed(&mut form)?;
    ensure!(answer.starts_with("HTTP/1.1 400") && answer.contains("did not arrive"), "{answer}");
    ensure!(page.page(&session)?.contains("No services."), "afterwards the page is as before");
    Ok(())
}

/// They ask on and on, which needs no session, and leave the answers unread.
#[test]
fn clients_that_read_nothing_delay_a_page_by_seconds() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let page = Page::start(&stage, &[])?;
    let session = page.enter()?;
    let requests = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", page.host()).repeat(100);
    let begun = Instant::now();
    let deaf: Vec<TcpStream> = (0..CLIENTS).map(|_| page.connect()).collect::<Result<_>>()?;
    for mut stream in &deaf {
        stream.set_write_timeout(Some(Duration::from_millis(10)))?;
        // Until nothing more is taken.
        while stream.write(requests.as_bytes()).is_ok() {}
    }
    waits_for_a_place(&page, &session, begun)
}

/// Asks for the page, while as many connections are served as may be; the first of them was opened after `begun`.
fn waits_for_a_place(page: &Page, session: &Session, begun: Instant) -> Result<()> {
    let asked = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let (answered, answers) = mpsc::channel();
        // The test waits for the answer; if it does not, it has failed already.
        scope.spawn(move || drop(answered.send(page.page(session))));
        // The limit counts the connections that are served; this one waits behind them.
        answers.recv_timeout(wait::STUCK).context("it waits for ever")??;
        Ok(())
    })?;
    let (delay, held) = (asked.elapsed(), begun.elapsed());
    ensure!(held >= QUIET_MIN, "the connections that are served have no limit: answered after {delay:?}");
    ensure!(delay < Duration::from_secs(25), "{delay:?}");
    Ok(())
}

#[test]
fn so_many_pages_are_updated_at_a_time() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let page = Page::start(&stage, &[])?;
    let session = page.enter()?;
    let mut held = Vec::new();
    for number in 0..PAGES {
        let mut updates = page.updates(&session, "")?;
        updates.take().with_context(|| format!("page {number}"))?;
        held.push(updates);
    }
    let error = page.updates(&session, "").err().context("there is no limit")?.to_string();
    ensure!(error.contains("503") && error.contains("too many pages are open; close some"), "{error}");
    ensure!(page.page(&session)?.contains("No services."), "a page without updates is served");
    // A page that is closed makes room, once the next update cannot be sent to it.
    held.pop();
    wait::until("room for another page", || page.updates(&session, "").ok())?;
    Ok(())
}

#[test]
fn a_viewers_page_reads_and_changes_nothing() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::configured(&format!("group = '{OPERATORS}'\nviewers = '{VIEWERS}'\n"))?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let before = stage.daemon.history("web")?.len();
    let by = |groups: &[u32]| {
        Page::start_by(&stage, User::with_groups(groups).command(&stage, tools::pod_steer()?)?, &["--allow-orders"])
    };
    let page = by(&[VIEWERS])?;
    let session = page.enter()?;
    let html = page.page(&session)?;
    ensure!(html.contains(">v1</th>") && html.contains(">v2</th>"), "a viewer reads: {html}");
    let form = format!("form={}&kind=deploy&service=web&version=v2", page.form_secret(&session)?);
    let answer = page.post(&session, "order", &form)?;
    let error = alert(&answer.body);
    ensure!(answer.status == 403 && answer.header("location").is_none(), "{answer:?}");
    ensure!(error.contains("this user may only read") && error.lines().count() == 1, "{error:?}");
    ensure!(
        answer.body.contains("<h1>The order was refused</h1>") && answer.body.contains("href=\"./\""),
        "{answer:?}"
    );
    ensure!(!page.page(&session)?.contains("class=\"notice\""), "the page reports no order");
    ensure!(stage.daemon.history("web")?.len() == before, "nothing has changed");

    // The same form of an operator's page is carried out, in the operator's name.
    let page = by(&[OPERATORS])?;
    let session = page.enter()?;
    let form = format!("form={}&kind=pause&service=web", page.form_secret(&session)?);
    ensure!(page.post(&session, "order", &form)?.status == 303);
    let (_, history) = stage.daemon.api("/v1/history?service=web", None)?;
    let last = history.as_array().and_then(|all| all.last()).context("no history")?;
    let name = format!("uid {} (pid ", User::with_groups(&[]).uid());
    ensure!(last["who"].as_str().is_some_and(|who| who.starts_with(&name)), "{last}");
    // Other users do not get that far.
    let other = User::with_groups(&[]).run(&stage, "web")?.expect(1)?;
    ensure!(other.stdout.is_empty() && other.stderr.trim_end().lines().count() == 1, "{other:?}");
    ensure!(other.stderr.contains("may not use"), "{other:?}");
    Ok(())
}
