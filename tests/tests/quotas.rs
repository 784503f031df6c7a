//! A backend that asks for a lot leaves room for every other one, and is told of its own limits alone.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Stage},
    process::{Process, run},
    require, tools,
};

/// A backend that never listens.
fn silent(stage: &Stage, service: &str, ports: &str) -> Result<Process> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", service, "--ports", ports, "--name", service, "--", "sleep", "600"]);
    stage.host.start(service, &mut command)
}

/// How many entries a map has.
fn entries(stage: &Stage, map: &str) -> Result<usize> {
    let mut dump = stage.host.command("bpftool")?;
    let dump = run(dump.args(["--json", "map", "dump", "pinned", &format!("{BPFFS}/maps/{map}")]))?;
    let entries: Vec<serde_json::Value> = serde_json::from_str(&dump)?;
    Ok(entries.len())
}

#[test]
fn a_range_of_ports_takes_an_entry_for_each_64() -> Result<()> {
    require!(tools::root_and(&["ip", "bpftool"]));
    let stage = Stage::without_engine()?;
    let _range = silent(&stage, "range", "20000-21023:30000-31023")?;
    stage.daemon.wait_for("the backend", |status| status.service("range").map(drop))?;
    let (ports, own) = (entries(&stage, "MANAGED_PORTS")?, entries(&stage, "OWN_PORTS")?);
    // 17 blocks of the clients' ports, 17 of the server's; those of the clients in both families.
    ensure!((ports, own) == (34, 34), "{ports} entries of ports, {own} of own ports");
    Ok(())
}
