//! `status` as a person reads it: one service, on a terminal of 80 and of 200 columns, in a pipe; and what SHARE means.

use std::process::Output;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    process::{output, run},
    require,
    rollouts::{connect, web},
    tools,
};

const DIGEST: &str = "sha256-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).replace('\r', "")
}

/// The output of a command on a terminal of so many columns.
fn on_terminal(stage: &Stage, columns: u32, term: &str, command: &str) -> Result<String> {
    let mut script = stage.host.command("script")?;
    script.args(["-qec", &format!("stty cols {columns}; exec \"$P\" {command}"), "/dev/null"]);
    script.env("P", tools::pod_steer()?).env("POD_STEER_SOCKET", stage.daemon.socket()).env("TERM", term);
    Ok(text(&output(script.env_remove("NO_COLOR"))?))
}

#[test]
fn a_realistic_status() -> Result<()> {
    require!(tools::root_and(&["ip", "script", "stty"]));
    let stage = Stage::without_engine()?;
    let start = |name: &str, service: &str, version: &str, ports: &str| {
        let listen = format!("0.0.0.0:{}", ports.split_once(':').map_or(ports, |(_, target)| target));
        Exec::new(name, service, ports, &listen).flags(&["--version", version]).start(&stage)
    };
    let _backends = [
        start("shop-checkout-frontend-1", "shop-checkout-frontend", DIGEST, "80:8080")?,
        start("shop-checkout-frontend-12", "shop-checkout-frontend", "v2", "80:8080")?,
        start("api-1", "api", "2026.11.3", "81:8081")?,
        start("商店-1", "api", "2026.11.4", "81:8081")?,
    ];
    stage.daemon.wait_ready("shop-checkout-frontend", 2)?;
    stage.daemon.wait_ready("api", 2)?;

    let narrow = on_terminal(&stage, 80, "dumb", "status")?;
    for line in narrow.lines() {
        // Each of these characters is two columns wide.
        let wide = line.chars().filter(|c| "商店".contains(*c)).count();
        ensure!(line.chars().count() + wide <= 80, "wider than the terminal: {line}\n{narrow}");
    }
    for told in ["d-1 ", "d-12 ", "sha2", "0a08", "商店-1", "api-1 ", "2026.11.4"] {
        ensure!(narrow.contains(told), "{told} is not in\n{narrow}");
    }
    ensure!(!narrow.contains('\x1b'), "a dumb terminal has no colours: {narrow}");
    let wide = on_terminal(&stage, 200, "xterm", "status")?;
    ensure!(wide.contains(DIGEST) && !wide.contains('…') && wide.contains("\x1b["), "{wide}");
    let piped = stage.daemon.order_done("status")?.stdout;
    ensure!(piped.contains(DIGEST) && !piped.contains('…') && !piped.contains('\x1b'), "{piped}");
    let everything = on_terminal(&stage, 80, "xterm", "status -o wide")?;
    ensure!(everything.contains(DIGEST) && everything.contains("WEIGHT"), "{everything}");

    // A single service.
    for form in ["status api", "status api -o wide", "status api -o json"] {
        let one = stage.daemon.order_done(form)?.stdout;
        ensure!(one.contains("api-1") && !one.contains("shop-checkout"), "{form}: {one}");
    }
    for form in ["status shop", "status shop -o json"] {
        let refused = stage.daemon.order(form)?.expect(2)?;
        ensure!(
            refused.stdout.is_empty() && refused.stderr.contains("did you mean shop-checkout-frontend?"),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn colours_are_for_terminals_that_want_them() -> Result<()> {
    require!(tools::root_and(&["ip", "script", "stty"]));
    let stage = Stage::without_engine()?;
    let _web = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let coloured =
        |term: &str, command: &str| -> Result<bool> { Ok(on_terminal(&stage, 80, term, command)?.contains('\x1b')) };
    ensure!(
        coloured("xterm", "status")? && coloured("xterm", "status nope")? && coloured("xterm", "doctor")?,
        "colours"
    );
    ensure!(!coloured("dumb", "status")? && !coloured("dumb", "status nope")?, "a dumb terminal");
    for (value, expected) in [("1", false), ("0", false), ("", true)] {
        let mut script = stage.host.command("script")?;
        script.args(["-qec", "exec \"$P\" status", "/dev/null"]).env("NO_COLOR", value).env("TERM", "xterm");
        script.env("P", tools::pod_steer()?).env("POD_STEER_SOCKET", stage.daemon.socket());
        let shown = run(&mut script)?;
        ensure!(shown.contains('\x1b') == expected, "NO_COLOR={value:?}: {shown}");
    }
    // Errors, in a pipe.
    let refused = stage.daemon.order("status nope")?.expect(2)?;
    ensure!(!refused.stderr.contains('\x1b') && refused.stderr.starts_with("error: "), "{refused:?}");
    Ok(())
}

#[test]
fn share_is_the_present_and_served_the_past() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let shares = || -> Result<[(f64, f64); 2]> {
        let status = stage.daemon.status()?;
        let of = |name: &str| {
            let backend = status.backend("web", name);
            (backend.share, backend.served)
        };
        Ok([of("v1-1"), of("v2-1")])
    };
    ensure!(shares()? == [(0.5, 0.0), (0.5, 0.0)], "before the first connection: {:?}", shares()?);
    stage.daemon.order_done("shift web v1=1")?;
    connect(stage.host.net(), 40)?;
    stage.daemon.wait_idle("web")?;
    ensure!(shares()? == [(1.0, 1.0), (0.0, 0.0)], "{:?}", shares()?);
    stage.daemon.order_done("shift web v2=1")?;
    ensure!(shares()? == [(0.0, 1.0), (1.0, 0.0)], "the present moves at once, the past does not: {:?}", shares()?);
    let table = stage.daemon.order_done("status")?.stdout;
    let row = table.lines().find(|line| line.contains("v2-1")).unwrap_or_default();
    ensure!(row.contains("100.0 %") && row.contains("ready"), "{table}");
    stage.daemon.order_done("shift web v1=90 v2=10")?;
    let [(v1, _), (v2, _)] = shares()?;
    ensure!((v1 - 0.9).abs() < 1e-3 && (v2 - 0.1).abs() < 1e-3, "{v1} {v2}");
    stage.daemon.order_done("pause web")?;
    ensure!(shares()?.map(|(share, _)| share) == [0.0, 0.0], "a paused backend gets no new connections");
    Ok(())
}
