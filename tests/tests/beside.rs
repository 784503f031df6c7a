//! A change of one service plans only that service again and leaves the others as they are.

use std::{fs, io::Write as _, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::python,
    listeners::{expect, unmanaged},
    process::run,
    require,
    rollouts::web,
    tools, wait,
};

/// A backend that opens and closes a listener about 200 times a second, which is within the limit.
const BUSY: &str = "import socket, time
while True:
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('0.0.0.0', 9000))
    s.listen()
    s.close()
    time.sleep(0.005)";

#[test]
fn a_slow_start_continues_beside_a_busy_service() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::configured("[service.web]\nslow-start = '12s'\n")?;
    let _first = web(&stage, "v1-1").start(&stage)?;
    // By the API: a process for each look would miss steps on a busy machine.
    let share = || -> Result<f64> {
        let web = stage.daemon.said_of("web")?;
        let mut backends = web["backends"].as_array().into_iter().flatten();
        backends.find(|one| one["name"] == "v1-2").and_then(|one| one["share"].as_f64()).context("no share")
    };
    stage.daemon.wait_ready("web", 1)?;
    // Wait until its own slow start is over.
    thread::sleep(Duration::from_secs(13));
    let _busy = python(&stage, "busy", "90:9000", BUSY)?;
    stage.daemon.wait_for("the busy service", |status| status.service("busy").map(drop))?;
    let _second = web(&stage, "v1-2").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    // A resync, twice a minute, would set the whole share at once.
    let mut steps = vec![share()?];
    wait::until_ok("the whole share", || {
        let now = share()?;
        steps.extend(Some(now).filter(|now| steps.last() != Some(now)));
        Ok((now > 0.49).then_some(()))
    })?;
    ensure!(steps.len() >= 6, "it grows step by step: {steps:?}");
    Ok(())
}

/// A backend that listens on port 9000, and opens another listener there for each line it reads.
const AGAIN: &str = "import socket, time
held = []
def listen():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(('0.0.0.0', 9000))
    s.listen()
    held.append(s)
    print('listens', len(held))
listen()
for line in open('FIFO'): listen()";

/// The daemon detaches from a namespace when its last claim ends, while backends without a claim still run there.
#[test]
fn a_listener_keeps_its_port_when_the_claims_beside_it_end() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let (fifo, go) = (stage.host.dir().join("again"), stage.host.dir().join("go"));
    run(stage.host.command("mkfifo")?.arg(&fifo))?;
    let mut command = stage.daemon.cli()?;
    let program = AGAIN.replace("FIFO", &fifo.display().to_string());
    let wait_and_run = format!("until [ -e {} ]; do sleep 0.1; done; exec python3 -u -c \"$0\"", go.display());
    command.args(["exec", "--service", "late", "--ports", "80:9000", "--name", "late-1", "--", "sh", "-c"]);
    let late = stage.host.start("late", command.args([&wait_and_run, &program]))?;
    stage.daemon.wait_for("the late backend", |status| status.service("late").map(drop))?;
    let _unmanaged = unmanaged(&stage, stage.host.net(), "stranger", &["0.0.0.0:80"])?;
    // Its start makes the daemon enumerate the namespace's listeners.
    let claiming = python(
        &stage,
        "claiming",
        "90:9090",
        &AGAIN.replace("9000", "9090").replace("for line in open('FIFO'): listen()", "time.sleep(600)"),
    )?;
    stage.daemon.wait_ready("claiming", 1)?;
    fs::write(&go, "")?;
    let mut again = fs::File::options().write(true).open(&fifo).context("the late server does not read")?;
    let says = |count: u32| {
        wait::until("late to listen", || late.stdout().contains(&format!("listens {count}")).then_some(()))
    };
    says(1)?;
    drop(claiming);
    stage.daemon.wait_for("the claim to end", |status| status.service("claiming").is_none().then_some(()))?;
    writeln!(again, "again")?;
    says(2)?;
    stage.daemon.wait_for("both sockets", |status| (status.backend("late", "late-1").sockets == 2).then_some(()))?;
    expect(stage.host.net(), &[("127.0.0.1:80", Some("stranger@0.0.0.0:80"))])?;
    let said = stage.daemon.status()?.backend("late", "late-1").warnings().join(" ");
    ensure!(said.contains("does not manage already listens on port 80"), "{said}");
    Ok(())
}
