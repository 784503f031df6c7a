//! An order that cannot be stored takes effect, and its operator is told that it is not stored.

use std::{fs, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    process::run,
    require,
    rollouts::{all_by, web},
    tools,
};

#[test]
fn a_full_disk_is_reported_until_the_orders_are_stored() -> Result<()> {
    require!(tools::root_and(&["ip", "mount"]));
    let mut stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.terminate()?;
    let dir = stage.daemon.state_dir();
    run(stage.host.command("mount")?.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&dir))?;
    stage.daemon.restart()?;
    let stored = stage.daemon.order_done("shift web v1=1")?;
    ensure!(stored.stderr.is_empty(), "{stored:?}");

    let inside = stage.host.path(&dir.display().to_string());
    let filler = inside.join("filler");
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[0; 65_536]).is_ok() {}
    while file.write_all(&[0; 512]).is_ok() {}
    drop(file);
    // The store's file has some free pages, which must be used up first.
    let mut unstored = None;
    for number in 0..500 {
        let order = format!("shift web v1=1 v2={}", 100 + number);
        let ordered = stage.daemon.order_done(&order)?;
        if !ordered.stderr.is_empty() {
            unstored = Some(ordered);
            break;
        }
    }
    let unstored = unstored.context("a full disk was never noticed")?;
    let said = &unstored.stderr;
    ensure!(said.starts_with("warning: ") && said.lines().count() == 1, "{said}");
    ensure!(
        said.contains("in force but not stored") && said.contains("No space left") && said.contains("state.redb"),
        "{said}"
    );
    ensure!(said.contains("free space"), "what to do: {said}");

    // It is in force, and every view reports that it is not stored.
    stage.daemon.order_done("shift web v2=1")?;
    all_by(stage.host.net(), 50, "v2")?;
    let last = stage.daemon.history("web")?.pop().context("no history")?;
    ensure!(last.not_stored.is_some_and(|reason| reason.contains("No space left")), "in the API's history");
    ensure!(stage.daemon.order_done("history web")?.stdout.contains("not stored: "), "in the history");
    let deployed = stage.daemon.order_done("deploy web v1 -o json")?;
    ensure!(deployed.stdout.contains("\"not_stored\"") && deployed.stderr.contains("not stored"), "{deployed:?}");
    let status = stage.daemon.order_done("status")?;
    ensure!(status.stdout.contains("ledger") && status.stdout.contains("No space left"), "{}", status.stdout);

    // With room again, the next order stores all of them.
    fs::remove_file(&filler)?;
    let ordered = stage.daemon.order_done("shift web v1=1 v2=1")?;
    ensure!(ordered.stderr.is_empty(), "{ordered:?}");
    let history = stage.daemon.history("web")?;
    ensure!(history.iter().all(|operation| operation.not_stored.is_none()), "{history:?}");
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    ensure!(stage.daemon.history("web")?.len() == history.len(), "a restart knows them all");
    Ok(())
}
