//! Makes the pictures of `docs/web.md`: a real page in a real Chromium, after some minutes of traffic in which versions change. Run, as root:
//! `cargo build --workspace && cargo run --package pod-steer-tests --example web-pictures -- docs 10`

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    browser::Browser,
    daemon::Stage,
    exec::Exec,
    load::{Load, Running},
    page::Page,
    rollouts::{CHECKED, answer, web},
};

/// Parts of the time, and what happens at their beginnings.
const PARTS: u32 = 20;

/// Clients of both services, more or less of them.
fn clients(stage: &Stage, part: u32) -> Result<[Running; 2]> {
    let pause = |usual: u64, swing: u64| Duration::from_millis(usual + u64::from(part * 7 % 5) * swing);
    let start = |to: &str, pause: Duration| Load::to(to.parse()?).threads(2).pause(pause).start(stage.host.net());
    Ok([start("127.0.0.1:80", pause(9, 3))?, start("127.0.0.1:81", pause(40, 9))?])
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("give a directory, and minutes")?);
    let minutes: f64 = args.next().context("give a directory, and minutes")?.parse()?;
    let stage = Stage::configured(CHECKED)?;
    let _old = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v1-2").start(&stage)?];
    let wiki = |name: &'static str, port: u16| {
        Exec::new(name, "wiki", &format!("81:{port}"), &format!("0.0.0.0:{port}")).flags(&["--version", "2026.11"])
    };
    let _wiki = [wiki("wiki-1", 8081).start(&stage)?, wiki("wiki-2", 8081).start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("shift web v1=1")?;
    let page = Page::start(&stage, &["--allow-orders"])?;
    let browser = Browser::start(&stage)?;
    browser.open(&page.url)?;
    let (begun, part_s) = (Instant::now(), minutes * 60.0 / f64::from(PARTS));
    let mut servers = Vec::new();
    for part in 0..PARTS {
        let _clients = clients(&stage, part)?;
        match part {
            3 => servers.extend([web(&stage, "v2-1").start(&stage)?, web(&stage, "v2-2").start(&stage)?]),
            4 => drop(stage.daemon.order_done("canary web v2 --steps 10%,100% --every 2s --detach")?),
            5 => drop(stage.daemon.order_done("rollback web")?),
            8 => drop(stage.daemon.order_done("deploy web v2 --drain-timeout 1s")?),
            14 => servers.push(web(&stage, "v3-1").start(&stage)?),
            15 => {
                let steps =
                    format!("canary web v3 --steps 10%,35%,60%,100% --every {}s --detach", (part_s * 2.2).ceil());
                stage.daemon.order_done(&steps)?;
            }
            17 => answer(&stage, "v1-2", "503 Service Unavailable")?,
            _ => {}
        }
        let until = begun + Duration::from_secs_f64(part_s * f64::from(part + 1));
        if part + 1 == PARTS {
            // While the last clients are there.
            browser.wait("document.querySelector('#service-web progress')")?;
            thread::sleep(until.saturating_duration_since(Instant::now()));
            pictures(&browser, &dir)?;
        } else {
            thread::sleep(until.saturating_duration_since(Instant::now()));
        }
    }
    Ok(())
}

fn pictures(browser: &Browser, dir: &std::path::Path) -> Result<()> {
    for (name, width, height) in [("web-wide", 1280, 1320), ("web-narrow", 390, 1600)] {
        browser.resize(width, 900)?;
        for theme in ["light", "dark"] {
            browser.theme(theme)?;
            // One update with this width.
            thread::sleep(Duration::from_secs(3));
            let path = dir.join(format!("{name}-{theme}.webp"));
            browser.picture(&path, width, height)?;
            let bytes = std::fs::metadata(&path)?.len();
            ensure!(bytes < 150_000, "{}: {bytes} bytes", path.display());
            println!("{}: {bytes} bytes", path.display());
        }
    }
    Ok(())
}
