//! Servers, managed and unmanaged, whose answers name the listener that a client reached.

use anyhow::{Result, ensure};

use crate::{
    daemon::Stage,
    exec::{Backend, Exec},
    load::Load,
    netns::NetNs,
    process::Process,
    tools, wait,
};

/// A managed server on these listeners; it answers `NAME@LISTENER`.
pub fn exec(name: &str, service: &str, ports: &str, listeners: &[&str]) -> Exec<'static> {
    let more: Vec<&str> = listeners[1..].iter().flat_map(|listener| ["--listen", *listener]).collect();
    Exec::new(name, service, ports, listeners[0]).server(&more).server(&["--tell-listener"])
}

/// Starts one and waits until all its listeners are known.
pub fn start(stage: &Stage, name: &str, service: &str, ports: &str, listeners: &[&str]) -> Result<Backend> {
    let backend = exec(name, service, ports, listeners).start(stage)?;
    all_known(stage, service, name, listeners.len())?;
    Ok(backend)
}

/// Waits until the daemon knows so many sockets of a backend, and the backend is ready.
pub fn all_known(stage: &Stage, service: &str, name: &str, sockets: usize) -> Result<()> {
    stage.daemon.wait_for(&format!("{sockets} sockets of {name}"), |status| {
        let backend = status.service(service)?.backends.iter().find(|backend| backend.name == name)?;
        (backend.sockets == sockets as u64 && backend.state == "ready").then_some(())
    })
}

/// Starts an unmanaged one.
pub fn unmanaged(stage: &Stage, net: &NetNs, name: &str, listeners: &[&str]) -> Result<Process> {
    let mut command = stage.host.command_in(net, tools::named_server()?)?;
    command.args(["--name", name, "--tell-listener", "--reuseport"]);
    command.args(listeners.iter().flat_map(|listener| ["--listen", *listener]));
    let server = stage.host.start(name, &mut command)?;
    wait::until(name, || (server.stdout().matches("listening").count() == listeners.len()).then_some(()))?;
    Ok(server)
}

/// Opens connections to each address. The given server must answer all of them; without one, all must be refused.
pub fn expect(clients: &NetNs, expected: &[(&str, Option<&str>)]) -> Result<()> {
    for (target, answer) in expected {
        let tally = Load::to(target.parse()?).count(20).run(clients)?;
        match answer {
            Some(name) => ensure!(tally.answered_by(name) == 20, "{target} is {name}'s: {tally}"),
            None => ensure!(tally.refused() == 20, "no socket listens at {target}: {tally}"),
        }
    }
    Ok(())
}
