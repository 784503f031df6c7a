//! The web page in a real headless Chromium: it loads, moves and follows a deploy, without a complaint of the browser, in both themes, on a
//! narrow screen, by keyboard alone, for screen readers, and without scripts.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    browser::{Browser, ENTER, TAB},
    page::{Page, Session},
    require,
    rollouts::{Scene, clients},
    tools, wait,
};
use rustix::process::Signal;

/// The first curve of the chart that is shown.
const CURVE: &str = "[...document.querySelectorAll('#s-web-chart svg')].find(svg => svg.getBoundingClientRect().width > 0)?.querySelector('polygon')?.getAttribute('points')";
/// Nothing sticks out at the right.
const FITS: &str = "document.documentElement.scrollWidth <= window.innerWidth";
/// Opens what is folded.
const OPEN: &str = "document.querySelectorAll('details').forEach(details => { details.open = true })";
/// What the Tab key reaches.
const CONTROLS: &str = "[...document.querySelectorAll('a[href], button, summary, select, input:not([type=hidden]), [tabindex=\"0\"]')].filter(e => e.getClientRects().length)";
/// The element with the focus, in short.
const FOCUS: &str =
    "const e = document.activeElement; return [e.tagName, e.id || e.name || e.textContent.trim()].join(' ')";

fn no_complaints(browser: &Browser) -> Result<()> {
    let complaints = browser.complaints()?;
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

#[test]
fn the_page_works_in_a_real_browser() -> Result<()> {
    require!(tools::root_and(&["ip", "chromium", "chromedriver"]));
    let scene = Scene::new(true)?;
    let page = Page::start(&scene.stage, &["--allow-orders"])?;
    let load = clients().pause(Duration::from_millis(10)).start(scene.stage.host.net())?;
    let browser = Browser::start(&scene.stage)?;
    browser.resize(1280, 900)?;
    browser.theme("light")?;
    browser.open(&page.url)?;
    browser.wait("document.querySelector('#service-web h2')?.textContent === 'web'")?;
    ensure!(
        !browser.run("return location.href")?.to_string().contains("token"),
        "the token is not in the address of the page"
    );

    // It moves without a reload.
    browser.wait(&format!("(window.curve = {CURVE})"))?;
    browser.wait(&format!("window.curve !== {CURVE}"))?;
    browser.wait("Number(document.documentElement.dataset.updates) >= 3")?;
    // The theme is that of the system, or that of the button.
    let paper = || browser.run("return getComputedStyle(document.body).backgroundColor");
    let light = paper()?;
    browser.theme("dark")?;
    let dark = paper()?;
    ensure!(light != dark, "{light} {dark}");
    browser.click("#theme")?;
    ensure!(paper()? == light, "the button's first choice is light: {}", paper()?);
    browser.click("#theme")?;
    ensure!(paper()? == dark);
    // Wide and narrow, with everything open.
    browser.run(OPEN)?;
    for width in [1280, 800, 641, 390, 320] {
        browser.resize(width, 900)?;
        browser.wait("document.getElementById('s-web-figures').getBoundingClientRect().width > 0")?;
        ensure!(browser.run(&format!("return {FITS}"))? == true, "it is wider than {width}");
    }
    browser.resize(1280, 900)?;

    // By keyboard: every control is reached, in the order of the page.
    let controls = browser.run(&format!("return {CONTROLS}.length"))?.as_u64().context("a number")?;
    // On a new page, whose first element is the next one.
    let address = browser.run("return location.href.split('#')[0]")?;
    browser.open(address.as_str().context("an address")?)?;
    browser.wait("Number(document.documentElement.dataset.updates) >= 1")?;
    browser.run(OPEN)?;
    // An update replaces elements, so that they are known by their places.
    let mut reached = BTreeSet::new();
    for number in 0..controls {
        browser.press(TAB)?;
        if number == 0 {
            let skip = browser.run("return document.activeElement.className")?;
            ensure!(
                skip == "skip"
                    && browser.run("return document.activeElement.getBoundingClientRect().height > 10")? == true,
                "{skip}"
            );
        }
        let place = browser.run(&format!("return {CONTROLS}.indexOf(document.activeElement)"))?;
        let place = place.as_u64().with_context(|| format!("no control has the focus: {:?}", browser.run(FOCUS)))?;
        reached.insert(place);
        let outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")?;
        ensure!(outline != "none", "no outline at {}", browser.run(FOCUS)?);
    }
    ensure!(
        reached.iter().copied().eq(0..controls) && controls > 10,
        "of {controls} controls, {reached:?} are reached"
    );
    // For a screen reader.
    let said = browser.accessible()?;
    for wanted in [
        "heading web",
        "image Traffic of web",
        "log Events",
        "rowheader v1",
        "columnheader New/s",
        "table Versions of web",
        "button Hold updates",
        "link Skip to the services",
    ] {
        ensure!(said.iter().any(|line| line == wanted), "{wanted} is not in\n{}", said.join("\n"));
    }
    for role in ["button ", "link ", "combobox ", "spinbutton ", "checkbox ", "image ", "table ", "progressbar "] {
        ensure!(said.iter().all(|line| line != role), "a nameless {role}in\n{}", said.join("\n"));
    }
    no_complaints(&browser)?;

    // A deploy by the form, with the keyboard.
    browser.run("document.querySelector('#s-web-forms select[name=version]').value = 'v2'; document.querySelector('#s-web-forms button').focus()")?;
    browser.press(ENTER)?;
    browser.wait("document.querySelector('code')?.textContent === 'pod-steer deploy web v2'")?;
    ensure!(browser.run("return document.activeElement.id")? == "confirm");
    browser.press(ENTER)?;
    browser.wait("document.querySelector('.notice')?.textContent.startsWith('deploy v2 for web')")?;
    browser.wait("document.querySelector('#orders')?.textContent.includes('deploy v2')")?;
    browser.wait("/v1 0\\/s, v2 [1-9]/.test(document.querySelector('#s-web-chart desc').textContent)")?;
    let tally = load.stop()?;
    ensure!(tally.losses.is_empty(), "{tally}");
    no_complaints(&browser)?;

    // Without scripts it shows the state at its loading.
    browser.scripts(false)?;
    browser.open(address.as_str().context("an address")?)?;
    let said = browser.accessible()?;
    ensure!(
        said.iter().any(|line| line == "link Refresh") && said.iter().any(|line| line == "rowheader v2"),
        "{}",
        said.join("\n")
    );
    browser.scripts(true)?;
    browser.open(address.as_str().context("an address")?)?;
    browser.wait("Number(document.documentElement.dataset.updates) >= 1")?;
    no_complaints(&browser)?;
    // When its server ends, the page says so.
    page.process.signal(Signal::TERM)?;
    browser.wait("document.getElementById('lost').textContent.includes('pod-steer web has ended')")?;
    Ok(())
}

#[test]
fn the_page_outlives_the_daemon_and_can_be_held() -> Result<()> {
    require!(tools::root_and(&["ip", "chromium", "chromedriver"]));
    let mut scene = Scene::new(true)?;
    let page = Page::start(&scene.stage, &[])?;
    let browser = Browser::start(&scene.stage)?;
    browser.open(&page.url)?;
    browser.wait("Number(document.documentElement.dataset.updates) >= 1")?;

    // Nothing moves but what the server sends, and the reader can hold that.
    browser.media(&[("prefers-reduced-motion", "reduce")])?;
    let animated = "return [...document.querySelectorAll('*')].filter(e => { const s = getComputedStyle(e); return s.animationName !== 'none' || s.transitionDuration !== '0s'; }).length";
    ensure!(browser.run(animated)? == 0, "something is animated");
    let updates =
        || browser.run("return Number(document.documentElement.dataset.updates)")?.as_u64().context("a number");
    browser.run("document.getElementById('hold').focus()")?;
    browser.press(ENTER)?;
    browser.wait("document.getElementById('hold').getAttribute('aria-pressed') === 'true'")?;
    browser.run("window.before = document.getElementById('main').innerHTML")?;
    scene.stage.daemon.order_done("drain web --version v1")?;
    let held = updates()?;
    browser.wait(&format!("Number(document.documentElement.dataset.updates) > {}", held + 1))?;
    ensure!(browser.run("return window.before === document.getElementById('main').innerHTML")? == true, "it is held");
    browser.press(ENTER)?;
    browser.wait("document.getElementById('orders').textContent.includes('drain v1')")?;
    browser.wait("document.getElementById('events').textContent.includes('v1-1')")?;

    // While the daemon is away, the page says so and keeps its figures; afterwards it goes on, without being loaded again.
    browser.run("window.same = true")?;
    scene.stage.daemon.kill()?;
    browser
        .wait("document.querySelector('#state .alert')?.textContent.includes('The daemon has not answered since')")?;
    ensure!(browser.run("return document.querySelector('#s-web-versions').textContent.includes('v2')")? == true);
    scene.stage.daemon.restart()?;
    browser.wait("!document.querySelector('#state .alert')")?;
    scene.stage.daemon.order_done("resume web --version v1")?;
    browser.wait("document.getElementById('orders').textContent.includes('resume v1')")?;
    ensure!(browser.run("return window.same")? == true, "it was loaded again");
    no_complaints(&browser)
}

/// A browser makes six connections to a server, and the server updates 16 pages.
#[test]
fn more_pages_than_connections_work() -> Result<()> {
    require!(tools::root_and(&["ip", "chromium", "chromedriver"]));
    let scene = Scene::new(true)?;
    let page = Page::start(&scene.stage, &["--allow-orders"])?;
    let browser = Browser::start(&scene.stage)?;
    browser.open(&page.url)?;
    browser.wait("Number(document.documentElement.dataset.updates) >= 1")?;
    let address = browser.run("return location.href.split('#')[0]")?;
    let address = address.as_str().context("an address")?;
    for _ in 0..6 {
        browser.tab()?;
        browser.open(address)?;
        browser.wait("Number(document.documentElement.dataset.updates) >= 1")?;
    }

    // A page that is not seen gets nothing; afterwards it goes on after the last event, without being loaded again.
    let see = |hidden: bool| {
        browser.run(&format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        ))
    };
    browser.run("window.same = true")?;
    scene.stage.daemon.order_done("drain web --backend v1-1")?;
    browser.wait("document.getElementById('events').textContent.includes('drained')")?;
    see(true)?;
    let before = browser.run("return document.documentElement.dataset.updates")?;
    scene.stage.daemon.order_done("resume web --backend v1-1")?;
    thread::sleep(Duration::from_secs(3));
    ensure!(browser.run("return document.documentElement.dataset.updates")? == before, "it gets updates");
    see(false)?;
    browser.wait("document.getElementById('orders').textContent.includes('resume v1-1')")?;
    let events = "[...document.querySelectorAll('#events li')].filter(e => e.textContent.includes('drained')).length";
    ensure!(browser.run(&format!("return {events}"))? == 1, "an event is there twice");
    ensure!(browser.run("return window.same && document.getElementById('lost').hidden")? == true);
    no_complaints(&browser)?;

    // With 16 other pages it gets no place, says what to do, and goes on when there is one.
    see(true)?;
    let folder = address.splitn(4, '/').nth(3).context("a folder")?;
    let session = Session { folder: format!("/{folder}"), cookie: browser.cookies()? };
    let held = wait::until_ok("16 other pages", || {
        let held: Vec<_> = (0..16).filter_map(|_| page.updates(&session, "").ok()).collect();
        Ok((held.len() == 16).then_some(held))
    })?;
    see(false)?;
    browser.wait("document.getElementById('lost').textContent.includes('too many pages are open; close some')")?;
    drop(held);
    browser.wait("document.getElementById('lost').hidden")
}
