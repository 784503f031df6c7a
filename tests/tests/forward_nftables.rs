//! Docker from 29 can have nftables rules of its own in place of those of iptables. Here the machine's engine sets no rules, and the
//! test sets those of Docker 29; `forward_newer_docker` has the engine itself.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use pod_steer_tests::{daemon::Stage, load::Load, process::run, require, server, tools};

/// How long to wait for clients that must not be answered.
const AT_ONCE: Duration = Duration::from_millis(800);
/// How long to wait for clients that must be answered.
const PATIENCE: Duration = Duration::from_secs(20);
/// The address of the first container on the default bridge.
const ADDRESS: &str = "172.17.0.2";

/// Docker's table for its default bridge with a container. `DIRECT` and `MARK` stand for rules that its options remove and add.
const TABLE: &str = r#"
table ip docker-bridges
delete table ip docker-bridges
table ip docker-bridges {
    chain filter-forward-in__docker0 {
        ct state established,related counter accept
        MARK
        iifname "docker0" counter accept comment "ICC"
        counter drop comment "UNPUBLISHED PORT DROP"
    }
    chain filter-FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname vmap { "docker0" : jump filter-forward-in__docker0 }
    }
    chain raw-PREROUTING {
        type filter hook prerouting priority raw; policy accept;
        DIRECT
    }
}
"#;
/// Without `--allow-direct-routing`.
const DIRECT: &str = r#"ip daddr 172.17.0.2 iifname != "docker0" counter drop comment "DROP DIRECT ACCESS""#;
/// With `--bridge-accept-fwmark=0x40000000/0x40000000`.
const MARK: &str = r#"meta mark & 0x40000000 == 0x40000000 counter accept comment "ALLOW FW MARK""#;

fn set_table(stage: &Stage, direct: &str, mark: &str) -> Result<()> {
    let file = stage.host.dir().join("docker.nft");
    fs::write(&file, TABLE.replace("DIRECT", direct).replace("MARK", mark))?;
    run(stage.host.command("nft")?.arg("-f").arg(file)).map(drop)
}

/// What the condition of the firewall says, and its remedy.
fn condition(stage: &Stage) -> Result<Option<(String, String)>> {
    let all = stage.daemon.status()?.conditions;
    let found = all.into_iter().map(|of| of.condition).find(|condition| condition.reason == "firewall-drops");
    Ok(found.map(|found| (found.message, found.remedy)))
}

/// The next daemon compares the firewall when it begins to forward.
fn compare_again(stage: &mut Stage) -> Result<()> {
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1).map(drop)
}

#[test]
fn what_docker_s_nftables_drop_is_a_condition_that_names_the_options() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["nft"]));
    let mut stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let answered =
        |within: Duration| -> Result<u64> { Ok(Load::to(target).count(3).timeout(within).run(&client.ns)?.answered()) };
    set_table(&stage, DIRECT, "")?;
    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "80:8080").network("bridge");
    let server = stage.engine().start_container(&spec.label("pod-steer.via", "forward"))?;
    ensure!(server.ip()?.to_string() == ADDRESS);
    stage.daemon.wait_ready("web", 1)?;
    let (message, remedy) = stage.daemon.wait_for("the condition of the firewall", |_| condition(&stage).ok()?)?;
    ensure!(message.contains("`ip docker-bridges`"), "{message}");
    let options = ["--bridge-accept-fwmark=0x40000000/0x40000000", "--allow-direct-routing"];
    ensure!(options.iter().all(|option| remedy.contains(option)), "{remedy}");
    ensure!(answered(AT_ONCE)? == 0);

    // Neither option alone is enough.
    for (direct, mark, lacking) in [(DIRECT, MARK, options[1]), ("", "", options[0])] {
        set_table(&stage, direct, mark)?;
        compare_again(&mut stage)?;
        let (_, remedy) = stage.daemon.wait_for("the other option", |_| {
            condition(&stage)
                .ok()?
                .filter(|(_, remedy)| options.iter().filter(|one| remedy.contains(*one)).count() == 1)
        })?;
        ensure!(remedy.contains(lacking) && answered(AT_ONCE)? == 0, "{remedy}");
    }
    set_table(&stage, "", MARK)?;
    ensure!(answered(PATIENCE)? == 3);
    compare_again(&mut stage)?;
    stage.daemon.wait_for("the condition to end", |_| condition(&stage).ok()?.is_none().then_some(()))
}
