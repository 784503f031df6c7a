//! Backends come and go under load, and no client notices.
//!
//! Only connections that a killed process had accepted may be lost, since no other process has them. The servers' journals list them;
//! see [`Killed`].

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::Container,
    daemon::Stage,
    journal::Killed,
    load::{Load, Loss},
    report, require, server, tools,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const ROUNDS: usize = 50;

/// One generation of a backend: a container and its journal.
struct Generation {
    container: Container,
    journal: PathBuf,
}

fn start(stage: &Stage, name: &str) -> Result<Generation> {
    let directory = stage.host.dir().join("journals");
    std::fs::create_dir_all(&directory)?;
    let args = ["--listen", "0.0.0.0:8080", "--answer-delay-ms", "2", "--journal", &format!("/journals/{name}")];
    let spec = server::named_with(name, &args).service("web", "8080:8080").mount(&directory, "/journals");
    let container = stage.engine().start_container(&spec)?;
    Ok(Generation { container, journal: directory.join(name) })
}

#[test]
fn containers_come_and_go_under_load() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let mut backends = (0..3).map(|n| start(&stage, &format!("web-{n}"))).collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 3)?;
    let short = Load::to("127.0.0.1:8080".parse()?).threads(3).start(stage.host.net())?;
    let kept = Load::to("127.0.0.1:8080".parse()?).threads(2).requests(5).start(stage.host.net())?;

    let mut killed = Vec::new();
    for round in 0..ROUNDS {
        let index = round % backends.len();
        match round % 5 {
            // A server that is told to stop finishes the connections that it has accepted.
            0 => backends[index].container.stop()?,
            1 => {
                backends[index].container.kill("KILL")?;
                killed.push(backends[index].journal.clone());
            }
            // Without the engine, so that no event precedes it.
            2 => {
                kill_directly(&backends[index].container)?;
                killed.push(backends[index].journal.clone());
            }
            3 => {
                backends[index].container.pause()?;
                thread::sleep(Duration::from_millis(100));
                backends[index].container.unpause()?;
                continue;
            }
            // Start another backend, then end the oldest.
            _ => {
                backends.push(start(&stage, &format!("web-more-{round}"))?);
                stage.daemon.wait_ready("web", backends.len())?;
                backends[index].container.stop()?;
                backends.swap_remove(index);
                continue;
            }
        }
        backends[index] = start(&stage, &format!("web-again-{round}"))?;
        stage.daemon.wait_ready("web", backends.len()).with_context(|| format!("round {round}"))?;
    }

    let kept = kept.stop()?;
    let tally = short.stop()?;
    report::figure("churn, short connections", &tally);
    report::figure("churn, connections kept alive", &kept);
    let dead = Killed::read(&killed)?;
    let kills = format!("{} with SIGKILL, {} died between accept and its record", killed.len(), dead.in_between);
    report::figure("churn, kills", kills);
    dead.accounts_for(&tally)?;
    // A server that is told to stop closes idle kept-alive connections. Clients see that, and it is the server's choice.
    let refused = kept.refused() + kept.lost(|loss| matches!(loss, Loss::ConnectTimedOut | Loss::AnswerTimedOut(_)));
    ensure!(refused == 0, "{kept}");
    let service = stage.daemon.wait_for("the service", |status| status.service("web").cloned())?;
    assert_eq!(service.counter("refused_no_backend"), 0);
    Ok(())
}

/// SIGKILL to the container's process.
fn kill_directly(container: &Container) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(container.pid()?)?).context("the container does not run")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    pidfd_send_signal(&pidfd, Signal::KILL).context("killing the container's process")
}
