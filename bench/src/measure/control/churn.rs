//! Processes that start, listen and are killed, one after the other.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Exec, first_answer},
};

use crate::report::{Figure, quantile};

use super::{Values, maps_before_b, maps_mib, memory_mib, ms};
use crate::measure::costs;

/// Ports below the ephemeral range, one for each service.
const PORTS: std::ops::Range<u16> = 2_000..10_000;

pub fn measure(processes: usize) -> Result<Values> {
    let maps_b = maps_before_b()?;
    let stage = Stage::without_engine()?;
    // As on a machine in use: another backend makes the daemon attach to the namespace first.
    let _steady = Exec::new("steady", "steady", "1999:1999", "0.0.0.0:1999").start(&stage)?;
    let before = costs::processes_cpu_s(&[stage.daemon.pid()])?;
    let mut times = Vec::new();
    for (number, port) in (0..processes).zip(PORTS.cycle()) {
        times.push(ms(one(&stage, &format!("web-{number}"), port)?));
    }
    let cpu_s = costs::processes_cpu_s(&[stage.daemon.pid()])? - before;
    let mut values = percentiles(times);
    values.push(("start_cpu_ms", Figure::one(cpu_s * 1e3 / processes as f64)));
    values.push(("daemon_mib", memory_mib(&stage.daemon)?));
    values.push(("maps_mib", maps_mib(maps_b)?));
    Ok(values)
}

/// The median and the 99th percentile of the times of [`one`].
pub fn percentiles(mut times: Vec<f64>) -> Values {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let value = Figure::one(times[((times.len() - 1) as f64 * part).round() as usize]);
        Figure { known: quantile(&times, part), ..value }
    };
    vec![("steered_p50_ms", at(0.5)), ("steered_p99_ms", at(0.99))]
}

/// The time from `listen()` to the first steered connection.
pub fn one(stage: &Stage, name: &str, port: u16) -> Result<Duration> {
    let (target, ports) = (SocketAddr::from(([127, 0, 0, 1], port)), format!("{port}:8080"));
    let (mut backend, opened) = thread::scope(|scope| {
        let client = scope.spawn(|| stage.host.net().run(|| first_answer(target, name)));
        let backend = Exec::new(name, name, &ports, "0.0.0.0:8080").launch(stage);
        let opened = client.join().map_err(|_| anyhow!("the client panicked"))??;
        Ok::<_, anyhow::Error>((backend?, opened))
    })?;
    let listened = backend.listening()?.context("it answered, so it listens")?;
    backend.process.kill()?;
    Ok(Duration::from_nanos(opened.saturating_sub(listened)))
}
