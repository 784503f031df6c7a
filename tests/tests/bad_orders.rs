//! Invalid orders, by the command line and by the API: each is refused with one line and changes neither decisions nor kernel state.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bpf,
    daemon::Stage,
    require,
    rollouts::{clients, none_lost, web},
    tools,
};
use serde_json::{Value, json};

/// The kernel's rules, tables and switches.
fn kernel_tables(stage: &Stage) -> Result<Vec<Vec<Value>>> {
    ["RULES", "TABLES", "SWITCHES"].into_iter().map(|map| bpf::entries(&stage.host, map)).collect()
}

#[test]
fn invalid_orders_change_nothing() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool"]));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
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

/// Orders, each with a part of its error.
const BAD_ORDERS: [(&str, &str); 39] = [
    ("deploy nope v1", "known: web"),
    ("rollback nope", "known: web"),
    ("pause nope", "known: web"),
    ("drain nope", "known: web"),
    ("deploy web v9", "its versions: v1, v2"),
    ("canary web v9", "its versions: v1, v2"),
    ("shift web v9=1", "its versions: v1, v2"),
    ("drain web --version v9", "its versions: v1, v2"),
    ("drain web --backend nope", "its backends: v1-1, v2-1"),
    ("resume web --version v9", "its versions: v1, v2"),
    ("rollback web", "nothing to roll back"),
    ("status wbe", "did you mean web?"),
    ("status wbe -o json", "known: web"),
    ("history wbe", "did you mean web?"),
    ("deploy web", "<VERSION>"),
    ("deploy web v2 --timeout 0s", "--timeout"),
    ("deploy web v2 --timeout -5s", "--timeout"),
    ("deploy web v2 --timeout yesterday", "--timeout"),
    ("deploy web v2 --drain-timeout -1s", "--drain-timeout"),
    ("deploy web v2 --keep-old 0s", "--keep-old"),
    ("deploy web v2 --backends 0", "--backends"),
    ("deploy web v2 --backends two", "--backends"),
    ("shift web", "nothing to change"),
    ("shift web v1", "v1=90"),
    ("shift web v1=-1", "negative"),
    ("shift web v1=NaN", "not a whole number"),
    ("shift web v1=0.5", "not a whole number"),
    ("shift web v1=0 v2=0", "every weight is 0"),
    ("shift web v1=99999999999", "too large"),
    ("shift web v1=1 v1=2", "each version once"),
    ("shift web v1=1 --balance", "exclude each other"),
    ("shift web --from 10.0.0.0/33=v2", "is not a network"),
    ("shift web --from 10.0.0.1/8=v2", "did you mean 10.0.0.0/8?"),
    ("shift web --from 10.0.0.0/8=v9", "its versions: v1, v2"),
    ("shift web --no-from 10.0.0.0/8", "has no version of its own"),
    ("canary web v2 --steps 5%,101%", "is more than 100%"),
    ("canary web v2 --steps 1%,5%", "make it 100%"),
    ("canary web v2 --steps 50%,10%,100%", "larger than the one before"),
    ("canary web v2 --every -2m", "--every"),
];

/// Request bodies that no command sends, each with the status of the answer.
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
