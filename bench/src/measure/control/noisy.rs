//! Processes that start and listen, one after the other, beside a backend of another service that changes constantly.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{daemon::Stage, exec::listening_ns, process::Process, tools, wait};

use super::{
    Values,
    churn::{one, percentiles},
    cpu_pct, maps_before_b, maps_mib, memory_mib, ms,
};

/// Ports of the noisy service: the most that a declaration may have.
const PORTS: std::ops::Range<u16> = 20_000..21_024;
/// Its listeners, all on the port behind these.
const SOCKETS: usize = 260;

/// Ports of the other services, one for each process.
const QUIET: std::ops::Range<u16> = 2_000..10_000;
/// How long the daemon's CPU time is measured beside the noise alone.
const NOISE_TIME: Duration = Duration::from_secs(5);

/// Opens a number of sockets on one port. `steady` replaces one twice a second, `loop` as often as it can.
const NOISE: &str = "\
import socket, sys, time
def opened():
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(('0.0.0.0', 8070))
    one.listen(16)
    return one
sockets = [opened() for _ in range(int(sys.argv[1]))]
print('listening', time.clock_gettime_ns(time.CLOCK_MONOTONIC), flush=True)
while True:
    if sys.argv[2] == 'steady':
        time.sleep(0.5)
    sockets.pop(0).close()
    sockets.append(opened())
";

/// The behaviour of the backend beside them.
#[derive(Clone, Copy)]
pub enum Noise {
    /// 260 listeners behind 1,024 ports, two changes a second.
    Ports,
    /// It closes and opens listeners as fast as it can.
    Loop,
}

pub fn measure(noise: Noise, processes: usize) -> Result<Values> {
    let maps_b = maps_before_b()?;
    let stage = Stage::without_engine()?;
    let (ports, sockets, how) = match noise {
        Noise::Ports => (PORTS.map(|port| format!("{port}:8070")).collect::<Vec<_>>().join(","), SOCKETS, "steady"),
        Noise::Loop => ("20000:8070".to_owned(), 1, "loop"),
    };
    let mut exec = exec(&stage, &ports)?;
    exec.args(["python3", "-c", NOISE, &sockets.to_string(), how]);
    let mut noisy: Process = stage.host.start("noisy", &mut exec)?;
    let listened = wait::until("the noisy backend to listen", || listening_ns(&noisy.stdout()));
    listened.with_context(|| noisy.stderr())?;
    let times = (0..processes).zip(QUIET).map(|(number, port)| Ok(ms(one(&stage, &format!("quiet-{number}"), port)?)));
    let mut values = percentiles(times.collect::<Result<_>>()?);
    values.push(("noise_cpu_pct", cpu_pct(&stage, NOISE_TIME)?));
    values.push(("daemon_mib", memory_mib(&stage.daemon)?));
    values.push(("maps_mib", maps_mib(maps_b)?));
    ensure!(!noisy.has_ended()?, "the noisy backend has ended: {}", noisy.stderr());
    Ok(values)
}

/// `pod-steer exec ... --` of the noisy backend.
fn exec(stage: &Stage, ports: &str) -> Result<Command> {
    let mut command = stage.host.command(tools::pod_steer()?)?;
    command.env("POD_STEER_SOCKET", stage.daemon.socket());
    command.args(["exec", "--service", "noisy", "--ports", ports, "--name", "noisy", "--"]);
    Ok(command)
}
