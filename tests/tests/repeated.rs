//! An order that is already in force succeeds, says so, and is recorded once.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    require,
    rollouts::{all_by, clients, none_lost, web},
    tools,
};
use serde_json::json;

#[test]
fn repeating_an_order_succeeds_and_is_not_recorded() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let load = clients().start(stage.host.net())?;
    let rows = [
        ("shift web v1=1", "unpause web", "is not paused"),
        ("pause web", "pause web", "already paused"),
        ("unpause web", "unpause web", "is not paused"),
        ("drain web --version v2", "drain web --version v2", "already drained"),
        ("drain web --backend v1-1", "drain web --backend v1-1", "already drained"),
        ("resume web --backend v1-1", "resume web --backend v1-1", "is not drained"),
        ("resume web --version v2", "resume web --version v2", "is not drained"),
        ("rollback web", "rollback web", "already rolled back"),
    ];
    // Clients are refused while every backend is drained. Here only v2 is drained, and v1 serves.
    load.stop().and_then(|tally| none_lost(&tally))?;
    for (order, again, said) in rows {
        stage.daemon.order_done(order)?;
        let before = (stage.daemon.decision("web")?, stage.daemon.history("web")?.len());
        for _ in 0..2 {
            let repeated = stage.daemon.order_done(again)?;
            ensure!(repeated.stdout.contains(said) && repeated.stderr.is_empty(), "{again}: {repeated:?}");
        }
        let after = (stage.daemon.decision("web")?, stage.daemon.history("web")?.len());
        ensure!(before == after, "{again}: {before:?} then {after:?}");
    }
    // The API answers with an operation that has ended and has no number.
    let (status, answer) = stage.daemon.api("/v1/services/web/orders", Some(&json!({ "order": "unpause" })))?;
    ensure!(status == 200 && answer["id"] == 0 && answer["end"]["outcome"] == "done", "{answer}");
    // A name that does not exist is still an error.
    for order in ["unpause wbe", "resume wbe", "rollback wbe", "drain web --version v9"] {
        stage.daemon.order(order)?.expect(2)?;
    }
    stage.daemon.order_done("deploy web v2")?;
    all_by(stage.host.net(), 20, "v2")?;
    Ok(())
}
