//! Other users of BPF are active on the machine: pod-steer does not fail because of them, and does not touch their objects.

use std::sync::Arc;

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bpf,
    daemon::{BPFFS, Stage},
    exec::Exec,
    host::Host,
    load::Load,
    neighbour::Neighbour,
    process::run,
    programs::{create_map, open_pin, pin},
    report, require, tools, wait,
};

/// `BPF_MAP_TYPE_ARRAY`
const ARRAY: u32 = 2;

#[test]
fn restarts_status_doctor_and_unload_beside_another_user_of_bpf() -> Result<()> {
    require!(tools::root_and(&["ip", "mount"]));
    let neighbour = Neighbour::start()?;
    let host = Arc::new(Host::new()?);
    // A second bpffs in the same mount namespace, and another program's pins beside the daemon's.
    run(host
        .command("sh")?
        .args(["-c", "mkdir /run/other && mount -t bpf bpf /run/other && mkdir /sys/fs/bpf/other"]))?;
    let others = ["/run/other/map", "/sys/fs/bpf/other/map"].map(|path| host.path(path));
    for path in &others {
        pin(&create_map(ARRAY, 4, 4, 1)?, path)?;
    }
    let mut stage = Stage::with(Arc::clone(&host), None)?;
    let start = |name: &str| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").start(&stage);
    let _backends = [start("web-1")?, start("web-2")?];
    stage.daemon.wait_ready("web", 2)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(host.net())?;
    let links = bpf::links(&host)?;
    ensure!(!links.is_empty(), "the daemon has links");
    for _ in 0..5 {
        let (rounds, answered) = (neighbour.rounds(), load.answered());
        stage.daemon.kill()?;
        stage.daemon.restart()?;
        stage.daemon.wait_ready("web", 2)?;
        let status = stage.daemon.status()?;
        ensure!(status.warnings().is_empty(), "{status}");
        let said = run(stage.daemon.cli()?.args(["doctor", "--engine", "none"]))?;
        ensure!(said.contains(&format!("{BPFFS}, on the one mounted at /sys/fs/bpf")), "{said}");
        ensure!(bpf::links(&host)? == links, "the links are those of before: {links:?}");
        wait::until("both to go on", || {
            (neighbour.rounds() > rounds + 50 && load.answered() > answered + 100).then_some(())
        })?;
    }
    let tally = load.stop()?;
    ensure!(tally.losses.is_empty(), "{tally}");
    let owned = bpf::of_daemon(&host, stage.daemon.pid())?;
    stage.daemon.unload()?;
    ensure!(stage.daemon.exit_code()? == Some(0), "{}", stage.daemon.log_tail());
    bpf::until_gone(&owned)?;
    for path in &others {
        open_pin(path)?;
    }
    report::figure("rounds of another user of BPF", neighbour.stop()?);
    Ok(())
}
