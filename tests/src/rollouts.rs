//! Fixtures of rollout tests: a service `web` with processes in versions, its clients, and its operations.

use std::{fs, net::TcpStream, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    daemon::{Daemon, Stage},
    exec::{Backend, Exec},
    load::{Load, Tally},
    netns::NetNs,
    orders::Operation,
    wait,
};

/// The address for its clients.
pub const TARGET: &str = "127.0.0.1:80";

/// New connections by which a [`Scene`] checks the steering.
const CONNECTIONS: u64 = 200;

/// Settings: health checks at short intervals, whose answer [`answer`] determines. One failure counts, so a check must not time out while
/// the machine is busy.
pub const CHECKED: &str = "[service.web.health]\nkind = 'http'\ninterval = '20ms'\ntimeout = '30s'\nunhealthy = 1\n";

/// The version of a backend: its name up to the dash.
pub fn version(name: &str) -> &str {
    name.split_once('-').map_or(name, |(version, _)| version)
}

/// A process of `web` that listens on the port of the service's containers; its version is in its name, as in `v1-1`.
pub fn web(stage: &Stage, name: &str) -> Exec<'static> {
    web_on(stage, name, "0.0.0.0:8080")
}

/// The same, on another address.
pub fn web_on(stage: &Stage, name: &str, listen: &str) -> Exec<'static> {
    let status = status_file(stage, name).display().to_string();
    let exec = Exec::new(name, "web", "80:8080", listen).flags(&["--version", version(name)]);
    exec.server(&["--status-file", &status])
}

fn status_file(stage: &Stage, name: &str) -> PathBuf {
    stage.host.dir().join(format!("{name}.status"))
}

/// Sets the answer of a process of [`web`] from now on: `503 Not Yet` makes its check fail.
pub fn answer(stage: &Stage, name: &str, status: &str) -> Result<()> {
    // A reader sees the old status or the new one.
    let part = status_file(stage, name).with_extension("part");
    fs::write(&part, status)?;
    fs::rename(part, status_file(stage, name)).context("giving the status its name")
}

/// Clients of `web`.
pub fn clients() -> Load {
    Load::to(TARGET.parse().expect("an address")).pause(Duration::from_millis(1))
}

/// Opens this many connections; none may be lost.
pub fn connect(net: &NetNs, count: u64) -> Result<Tally> {
    let tally = clients().pause(Duration::ZERO).count(count).run(net)?;
    none_lost(&tally)?;
    Ok(tally)
}

/// Opens this many connections; this version must answer each.
pub fn all_by(net: &NetNs, count: u64, wanted: &str) -> Result<Tally> {
    let tally = connect(net, count)?;
    ensure!(answered_by_version(&tally, wanted) == count, "all are to be answered by {wanted}: {tally}");
    Ok(tally)
}

/// No connection was refused, reset or timed out, or answered by another server.
pub fn none_lost(tally: &Tally) -> Result<()> {
    ensure!(tally.losses.is_empty() && tally.disguised.is_empty(), "connections were lost or disguised: {tally}");
    Ok(())
}

/// Connections that the backends of a version have answered.
pub fn answered_by_version(tally: &Tally, wanted: &str) -> u64 {
    tally.by_name.iter().filter(|(name, _)| version(name) == wanted).map(|(_, count)| count).sum()
}

/// A connection to `web` that stays open.
pub fn hold(net: &NetNs) -> Result<TcpStream> {
    net.run(|| TcpStream::connect(TARGET)).context("a connection to hold")
}

/// A service of two versions, all of it on the first one.
#[derive(Debug)]
pub struct Scene {
    /// The host and the daemon.
    pub stage: Stage,
    /// `v1-1`, which has all traffic.
    pub old: Backend,
    /// `v2-1`.
    pub new: Backend,
    /// The counts of its clients.
    pub total: Tally,
}

impl Scene {
    /// A scene whose second version passes its checks, or not.
    pub fn new(ready: bool) -> Result<Self> {
        let stage = Stage::configured(CHECKED)?;
        let old = web(&stage, "v1-1").start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        stage.daemon.order_done("shift web v1=1")?;
        if !ready {
            answer(&stage, "v2-1", "503 Not Yet")?;
        }
        let new = web(&stage, "v2-1").start(&stage)?;
        stage.daemon.wait_state("web", "v2-1", if ready { "standby" } else { "unhealthy" })?;
        Ok(Self { stage, old, new, total: Tally::default() })
    }

    /// New connections must all reach this version.
    pub fn all_by(&mut self, version: &str) -> Result<()> {
        self.total.merge(all_by(self.stage.host.net(), CONNECTIONS, version)?);
        Ok(())
    }

    /// The kernel has counted exactly the connections of the clients, over all daemons.
    pub fn counts_agree(&self, held: u64) -> Result<()> {
        let service = self.stage.daemon.wait_idle("web")?;
        ensure!(service.opened() == self.total.answered() + held, "{} and {held} held: {service:#?}", self.total);
        ensure!(service.counter("refused_no_backend") == 0, "{service:#?}");
        Ok(())
    }
}

impl Daemon {
    /// Gives an order for `web` through the API, and returns its number.
    pub fn begin(&self, order: &Value) -> Result<u64> {
        let (status, answer) = self.api("/v1/services/web/orders", Some(order))?;
        ensure!(status == 200, "{order}: {status} {answer}");
        answer["id"].as_u64().context("an operation without a number")
    }

    /// The state of an operation.
    pub fn operation(&self, id: u64) -> Result<Operation> {
        let (status, answer) = self.api(&format!("/v1/operations/{id}"), None)?;
        ensure!(status == 200, "operation {id}: {status} {answer}");
        serde_json::from_value(answer).context("reading an operation")
    }

    /// Waits until an operation is as described.
    pub fn wait_operation(&self, id: u64, what: &str, is: impl Fn(&Operation) -> bool) -> Result<Operation> {
        let mut last = None;
        let seen = wait::until_ok(what, || {
            let operation = self.operation(id)?;
            let found = is(&operation).then(|| operation.clone());
            last = Some(operation);
            Ok(found)
        });
        seen.with_context(|| format!("{last:?}\n{}", self.log_tail()))
    }

    /// Waits until an operation has ended, which must be with this outcome.
    pub fn wait_ended(&self, id: u64, outcome: &str) -> Result<Operation> {
        let operation = self.wait_operation(id, "the operation to end", |operation| operation.end.is_some())?;
        match &operation.end {
            Some(end) if end.outcome == outcome => Ok(operation),
            end => bail!("ended as {end:?}, not as {outcome}\n{}", self.log_tail()),
        }
    }

    /// A service in the status, as JSON.
    pub fn said_of(&self, service: &str) -> Result<Value> {
        let (status, answer) = self.api("/v1/status", None)?;
        ensure!(status == 200, "{status} {answer}");
        let services = answer["services"].as_array().cloned().unwrap_or_default();
        services.into_iter().find(|one| one["name"] == service).with_context(|| format!("no {service} in {answer}"))
    }

    /// The decision of a service.
    pub fn decision(&self, service: &str) -> Result<Value> {
        Ok(self.said_of(service)?["decision"].clone())
    }
}
