//! One service with very many backends, or sockets.

use std::{
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec, first_answer, listening_ns, now_ns},
    process::Process,
    tools, wait,
};

use crate::report::Figure;

use super::{Values, idle_cpu_pct, maps_before_b, maps_mib, memory_mib, ms};

const PORT: u16 = 8080;
const SERVICE: &str = "web";

/// Opens a number of sockets on one port, prints when the last one listened, and answers like the test server.
const SOCKETS: &str = "\
import select, socket, sys, time
sockets, ready = {}, select.epoll()
for _ in range(int(sys.argv[1])):
    one = socket.socket()
    one.bind(('0.0.0.0', 8080))
    one.listen(16)
    sockets[one.fileno()] = one
    ready.register(one, select.EPOLLIN)
print('listening', time.clock_gettime_ns(time.CLOCK_MONOTONIC), flush=True)
while True:
    for number, _ in ready.poll():
        client, (address, port) = sockets[number].accept()
        client.recv(4096)
        body = f'many {address}:{port}\\n'
        head = f'HTTP/1.1 200 OK\\r\\nContent-Length: {len(body)}\\r\\nConnection: close\\r\\n\\r\\n'
        client.sendall((head + body).encode())
        client.close()
";

/// Many backends with a socket each.
pub fn backends(count: usize, quick: bool) -> Result<Values> {
    let maps_b = maps_before_b()?;
    let mut stage = Stage::without_engine()?;
    let mut running = Vec::new();
    for number in 0..count {
        running.push(server(&format!("web-{number}"), 1).launch(&stage)?);
        // A few at a time, to leave processor time to the daemon.
        if number % 20 == 19 {
            wait::until_ok("the servers to listen", || all_listen(&mut running[number - 19..]))?;
        }
    }
    let ready = count;
    stage.daemon.wait_ready(SERVICE, ready)?;
    let switches = switches(&stage, count as u64, if quick { 5 } else { 30 })?;
    let mut values = vec![
        ("switch_ms", switches),
        ("idle_cpu_pct", idle_cpu_pct(&stage, quick)?),
        ("daemon_mib", memory_mib(&stage.daemon)?),
        ("maps_mib", maps_mib(maps_b)?),
    ];
    values.push(("cold_start_ms", cold_start(&mut stage, ready, count)?));
    Ok(values)
}

/// Ten backends with many sockets each.
pub fn sockets(each: usize, quick: bool) -> Result<Values> {
    const BACKENDS: usize = 10;
    let maps_b = maps_before_b()?;
    let mut stage = Stage::without_engine()?;
    let mut running: Vec<Process> = Vec::new();
    for number in 0..BACKENDS {
        let mut exec = exec(&stage, &format!("many-{number}"))?;
        exec.args(["python3", "-c", SOCKETS, &each.to_string()]);
        running.push(stage.host.start(&format!("many-{number}"), &mut exec)?);
    }
    let mut last = 0;
    for process in &running {
        let listened = wait::until("so many sockets", || listening_ns(&process.stdout()));
        last = last.max(listened.with_context(|| process.stderr())?);
    }
    let count = BACKENDS * each;
    wait_known(&stage, count)?;
    let all = Duration::from_nanos(now_ns().saturating_sub(last));
    let switches = switches(&stage, count as u64, if quick { 5 } else { 30 })?;
    let mut values = vec![
        ("all_ms", Figure::one(ms(all))),
        ("switch_ms", switches),
        ("idle_cpu_pct", idle_cpu_pct(&stage, quick)?),
        ("daemon_mib", memory_mib(&stage.daemon)?),
        ("maps_mib", maps_mib(maps_b)?),
    ];
    values.push(("cold_start_ms", cold_start(&mut stage, BACKENDS, count)?));
    Ok(values)
}

fn server(name: &str, weight: u64) -> Exec<'static> {
    let (ports, weight) = (PORT.to_string(), weight.to_string());
    Exec::new(name, SERVICE, &ports, &format!("0.0.0.0:{PORT}")).flags(&["--weight", &weight])
}

/// `pod-steer exec ... --`, as a process of the host.
fn exec(stage: &Stage, name: &str) -> Result<Command> {
    let mut command = stage.host.command(tools::pod_steer()?)?;
    command.env("POD_STEER_SOCKET", stage.daemon.socket());
    command.args(["exec", "--service", SERVICE, "--ports", &PORT.to_string(), "--name", name, "--"]);
    Ok(command)
}

fn all_listen(backends: &mut [Backend]) -> Result<Option<()>> {
    for backend in backends {
        if backend.listening()?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(()))
}

/// Measures one more backend, with about as much weight as all others together, from its `listen()` to its first connection. Then kills
/// it and starts the next one.
fn switches(stage: &Stage, weight: u64, times: usize) -> Result<Figure> {
    let target = SocketAddr::from(([127, 0, 0, 1], PORT));
    let mut found = Vec::new();
    for number in 0..times {
        let name = format!("more-{number}");
        let (mut backend, opened) = thread::scope(|scope| {
            let client = scope.spawn(|| stage.host.net().run(|| first_answer(target, &name)));
            let backend = server(&name, weight).launch(stage);
            let opened = client.join().map_err(|_| anyhow!("the client panicked"))??;
            Ok::<_, anyhow::Error>((backend?, opened))
        })?;
        let listened = backend.listening()?.context("it answered, so it listens")?;
        found.push(ms(Duration::from_nanos(opened.saturating_sub(listened))));
        backend.process.kill()?;
    }
    Figure::of_samples(&found).context("nothing was measured")
}

/// Waits until the status has so many sockets.
fn wait_known(stage: &Stage, sockets: usize) -> Result<()> {
    stage.daemon.wait_for(&format!("{sockets} sockets"), |status| {
        let backends = &status.service(SERVICE)?.backends;
        (backends.iter().map(|backend| backend.sockets).sum::<u64>() >= sockets as u64).then_some(())
    })
}

/// Kills the daemon and starts the next one.
fn cold_start(stage: &mut Stage, backends: usize, sockets: usize) -> Result<Figure> {
    stage.daemon.kill()?;
    let begun = Instant::now();
    stage.daemon.restart()?;
    wait_known(stage, sockets)?;
    let time = begun.elapsed();
    let service = stage.daemon.wait_ready(SERVICE, backends)?;
    ensure!(service.ready() == backends, "{} of {backends} backends are ready after a restart", service.ready());
    Ok(Figure::one(ms(time)))
}
