//! Rollbacks: of a deploy, of a canary, of two orders in a row, and of a running canary.

use std::thread;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    report, require,
    rollouts::{all_by, clients, none_lost, web},
    tools, wait,
};

#[test]
fn behind_deploys_and_canaries() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _old = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.order_done("shift web v1=1")?;
    let load = clients().threads(4).start(stage.host.net())?;
    let _new = web(&stage, "v2-1").start(&stage)?;
    stage.daemon.wait_state("web", "v2-1", "standby")?;
    let net = stage.host.net();
    let back = |wanted: &str| -> Result<()> {
        stage.daemon.order_done("rollback web")?;
        all_by(net, 200, wanted).map(drop)
    };
    stage.daemon.order_done("deploy web v2 --keep-old 60s")?;
    all_by(net, 200, "v2")?;
    back("v1")?;
    // The same after a canary.
    stage.daemon.order_done("canary web v2 --steps 50%,100% --every 300ms")?;
    all_by(net, 200, "v2")?;
    back("v1")?;
    // Twice: of a deploy, and of the order before it.
    stage.daemon.order_done("deploy web v2")?;
    stage.daemon.order_done("deploy web v1")?;
    back("v2")?;
    back("v1")?;
    // Of a running canary: it ends, and reports by which order.
    let canary = thread::scope(|scope| {
        let canary = scope.spawn(|| stage.daemon.order("canary web v2 --steps 50%,100% --every 60s"));
        stage.daemon.wait_state("web", "v2-1", "ready")?;
        back("v1")?;
        canary.join().expect("the thread does not panic")
    })?;
    ensure!(canary.expect(1)?.stderr.contains("ended by a rollback"), "the canary says so");
    // The last rollback restores the state before the shift.
    stage.daemon.order_done("rollback web")?;
    wait::until_ok("both to share again", || {
        let tally = clients().count(50).run(net)?;
        none_lost(&tally)?;
        Ok((tally.answered_by("v1-1") > 0 && tally.answered_by("v2-1") > 0).then_some(()))
    })?;
    let nothing = stage.daemon.order_done("rollback web")?;
    ensure!(nothing.stdout.contains("already rolled back"), "{}", nothing.stdout);
    let tally = load.stop()?;
    report::figure("deploys, canaries and rollbacks", &tally);
    none_lost(&tally)?;
    let service = stage.daemon.wait_idle("web")?;
    ensure!(service.counter("refused_no_backend") == 0, "{service:#?}");
    Ok(())
}
