//! The section `control-plane`: how fast the daemon follows changes, and its cost. Everything is measured from outside: a process prints
//! when its `listen()` returned, and a client sends requests until that process answers.

mod churn;
mod many;
mod noisy;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use pod_steer_tests::{
    daemon::{Daemon, Stage},
    say::thousands,
};

use crate::report::{Better, Column, Figure, Row, Section};

use crate::{measure::costs, options::Options};
use noisy::Noise;

/// What is measured here.
pub const SECTIONS: &[&str] = &["control-plane"];

const COLUMNS: [(&str, &str); 10] = [
    ("steered_p50_ms", "listen() to steered, p50, ms"),
    ("steered_p99_ms", "listen() to steered, p99, ms"),
    ("switch_ms", "one more listens, to steered, ms"),
    ("start_cpu_ms", "daemon's CPU for one process, ms"),
    ("all_ms", "the last listen() to all steered, ms"),
    ("cold_start_ms", "start after kill -9, to all adopted, ms"),
    ("idle_cpu_pct", "daemon's CPU when nothing changes, %"),
    ("noise_cpu_pct", "daemon's CPU beside the noise, %"),
    ("daemon_mib", "daemon's memory, MiB"),
    ("maps_mib", "kernel maps, MiB"),
];

const ABOUT: &str = "How fast the daemon follows, measured from outside: a server notes when its listen() returned, and a \
    client that asks again 20 µs after each answer of another notes when it opened the first connection that this server answered. \"Churn\": \
    processes that start by `pod-steer exec`, listen, and are killed, one after the other, each in a service of its own. \
    \"Beside\": the same, while a backend of another service makes noise. The \
    other rows are one service with so many backends or sockets; what is added there has half of the weight, so that the \
    client finds it soon. A cold start is a daemon that is started after the last one was killed with SIGKILL: until the \
    command line says that every socket is known. There are no clients meanwhile. Memory is the daemon's PSS. Kernel maps are \
    those by which all BPF maps of the machine have grown since before the daemon was started: on a quiet machine no other \
    program loads any.";

/// If no map was freed for so long, the maps of the last daemon are gone.
const MAPS_SETTLED: Duration = Duration::from_secs(2);
/// The longest wait, on machines where other programs create maps all the time.
const MAPS_SETTLE_MAX: Duration = Duration::from_secs(30);

/// Measured values of one row.
type Values = Vec<(&'static str, Figure)>;

/// Measures it.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    let mut rows = Vec::new();
    let mut add = |name: &str, title: String, values: Values| {
        let values = values.into_iter().map(|(key, figure)| (key.to_owned(), figure)).collect();
        rows.push(Row { name: name.to_owned(), title, base: None, values, rounds: BTreeMap::new(), note: None });
    };
    let processes = if options.quick { 100 } else { 1_000 };
    eprintln!("   control plane: {processes} processes come and go");
    add("churn", format!("{} processes in turn", thousands(processes as u64)), churn::measure(processes)?);
    let quiet = if options.quick { 30 } else { 300 };
    for (noise, name, title) in [
        (Noise::Ports, "noisy-ports", "beside 260 listeners for 1,024 ports, 2 changes a second"),
        (Noise::Loop, "noisy-loop", "beside a loop of listen() and close()"),
    ] {
        eprintln!("   control plane: {title}");
        add(name, title.to_owned(), noisy::measure(noise, quiet)?);
    }
    let backends = if options.quick { 200 } else { 1_000 };
    eprintln!("   control plane: {backends} backends");
    add(
        &format!("backends-{backends}"),
        format!("{} backends", thousands(backends as u64)),
        many::backends(backends, options.quick)?,
    );
    let each = if options.quick { 100 } else { 1_000 };
    eprintln!("   control plane: {} sockets", 10 * each);
    let sockets = 10 * each;
    add(
        &format!("sockets-{sockets}"),
        format!("{} sockets of 10 backends", thousands(sockets as u64)),
        many::sockets(each, options.quick)?,
    );
    let column = |(key, title): (&str, &str)| Column { key: key.into(), title: title.into(), better: Better::Lower };
    Ok(vec![Section {
        name: SECTIONS[0].to_owned(),
        title: "The control plane".to_owned(),
        about: ABOUT.to_owned(),
        columns: COLUMNS.map(column).into(),
        rows,
        skipped: Vec::new(),
    }])
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn memory_mib(daemon: &Daemon) -> Result<Figure> {
    Ok(Figure::one(costs::memory_b(&[daemon.pid()])? as f64 / f64::from(1 << 20)))
}

/// Bytes of the kernel's maps before a daemon is started. The kernel frees the maps of the last daemon only after its end.
fn maps_before_b() -> Result<u64> {
    let (deadline, mut last_b) = (Instant::now() + MAPS_SETTLE_MAX, costs::kernel_maps_b()?);
    loop {
        std::thread::sleep(MAPS_SETTLED);
        let now_b = costs::kernel_maps_b()?;
        if now_b == last_b || Instant::now() > deadline {
            return Ok(now_b);
        }
        last_b = now_b;
    }
}

/// By how much the kernel's maps have grown.
fn maps_mib(before_b: u64) -> Result<Figure> {
    let grown_b = costs::kernel_maps_b()?.saturating_sub(before_b);
    Ok(Figure::one(grown_b as f64 / f64::from(1 << 20)))
}

/// The daemon's share of one CPU while nothing happens.
fn idle_cpu_pct(stage: &Stage, quick: bool) -> Result<Figure> {
    let time = Duration::from_secs(if quick { 3 } else { 20 });
    // After a change the daemon looks once more after a moment.
    std::thread::sleep(Duration::from_secs(2));
    cpu_pct(stage, time)
}

/// The daemon's share of one CPU during this time.
fn cpu_pct(stage: &Stage, time: Duration) -> Result<Figure> {
    let before = costs::processes_cpu_s(&[stage.daemon.pid()])?;
    std::thread::sleep(time);
    let after = costs::processes_cpu_s(&[stage.daemon.pid()])?;
    Ok(Figure::one((after - before) / time.as_secs_f64() * 100.0))
}
