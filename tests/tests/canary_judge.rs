//! Canaries that the kernel's counts judge: of a version that is worse, in each way, and of one that is not.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_steer_tests::{
    bpf::{self, Object},
    daemon::Stage,
    exec::Backend,
    load::Running,
    report, require,
    rollouts::{TARGET, all_by, clients, web},
    scale, tools, wait,
};
use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};

/// Settings under which the status of answers is read.
const HTTP: &str = "[service.web]\nobserve = 'http'\n";
/// Longer than a version that is worse is let serve.
const STEP: Duration = Duration::from_secs(100);

/// Two versions, each with these further arguments for its server, and clients of the first one.
struct Scene {
    stage: Stage,
    load: Running,
    _backends: [Backend; 2],
}

impl Scene {
    fn new(old: &[&str], new: &[&str]) -> Result<Self> {
        let stage = Stage::configured(HTTP)?;
        let first = web(&stage, "v1-1").server(old).start(&stage)?;
        stage.daemon.wait_ready("web", 1)?;
        stage.daemon.order_done("shift web v1=1")?;
        let second = web(&stage, "v2-1").server(new).start(&stage)?;
        stage.daemon.wait_state("web", "v2-1", "standby")?;
        // Those that get no answer leave after a while.
        let load = clients().threads(8).requests(2).timeout(Duration::from_secs(2)).start(stage.host.net())?;
        Ok(Self { stage, load, _backends: [first, second] })
    }

    /// The last order, in the history.
    fn last(&self) -> Result<Value> {
        let (status, answer) = self.stage.daemon.api("/v1/history?service=web", None)?;
        ensure!(status == 200, "{status} {answer}");
        answer.as_array().and_then(|all| all.last()).cloned().context("an order in the history")
    }

    /// A canary must find its version worse, for a reason with these words, and go back within its first step.
    fn goes_back(self, why: &str) -> Result<()> {
        let every = STEP.as_secs();
        let canary = self.stage.daemon.order(&format!("canary web v2 --steps 40%,100% --every {every}s"))?;
        let took = canary.took();
        let said = canary.expect(1)?;
        ensure!(took < STEP, "it went back only after {took:?}");
        ensure!(
            format!("{}{}", said.stdout, said.stderr).contains(why),
            "`{why}` is not in: {}{}",
            said.stdout,
            said.stderr
        );
        let last = self.last()?;
        ensure!(last["end"]["outcome"] == "went-back", "{last}");
        let message = last["end"]["message"].as_str().unwrap_or_default().to_owned();
        ensure!(message.contains(why) && message.contains("canaries"), "{message}");
        report::figure(&format!("went back after {:.1} s", took.as_secs_f64()), message);
        drop(self.load);
        all_by(self.stage.host.net(), 100, "v1").map(drop)
    }
}

/// Whether the daemon has programs of a judgement.
fn is_judging(stage: &Stage) -> Result<bool> {
    let owned = bpf::of_daemon(&stage.host, stage.daemon.pid())?;
    Ok(owned.values().any(|object| matches!(object, Object::Program { name, .. } if name.starts_with("judge_"))))
}

fn fault(kind: &str, every: &str) -> Vec<String> {
    ["--fault", kind, "--fault-every", every].map(str::to_owned).to_vec()
}

fn goes_back(kind: &str, every: &str, why: &str) -> Result<()> {
    let new = fault(kind, every);
    Scene::new(&[], &new.iter().map(String::as_str).collect::<Vec<_>>())?.goes_back(why)
}

#[test]
fn a_version_that_answers_five_percent_with_500() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    goes_back("error", "20", "answers with 5xx on more connections")
}

#[test]
fn a_version_that_resets_two_percent() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    goes_back("reset", "50", "resets more connections")
}

#[test]
fn a_version_that_closes_without_an_answer() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    goes_back("close", "20", "closes more connections without an answer")
}

#[test]
fn a_version_that_does_not_answer() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    goes_back("hang", "10", "has more clients that left without an answer")
}

#[test]
fn a_version_that_is_forty_percent_slower_at_the_99th_percentile() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let (old, new) = (fault("slow=100", "40"), fault("slow=140", "40"));
    let [old, new] = [&old, &new].map(|all| all.iter().map(String::as_str).collect::<Vec<_>>());
    Scene::new(&old, &new)?.goes_back("is slower by more than 25%")
}

#[test]
fn an_equal_version_is_kept() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // Versions that are not without fault, and equal.
    let bad = fault("error", "20");
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    let scene = Scene::new(&bad, &bad)?;
    let runs = if scale::is_soak() { 50 } else { 1 };
    for run in 0..runs {
        let to = if run % 2 == 0 { "v2" } else { "v1" };
        scene.stage.daemon.order_done(&format!("canary web {to} --steps 20%,60%,100% --every 3s"))?;
        let last = scene.last()?;
        let steps = last["steps_done"].as_array().cloned().unwrap_or_default();
        // In the last step the others are as they were before, when the machine may have been less busy.
        let judged: Vec<&Value> =
            steps.iter().filter(|step| step["name"] == "no worse" || step["name"] == "slower").collect();
        ensure!(judged.len() == 3, "each step is judged: {last}");
        if run == 0 {
            report::figure("the second step", judged[1]["detail"].as_str().unwrap_or_default());
        }
    }
    report::figure("canaries of an equal version, of which none went back", runs);
    Ok(())
}

/// How a client ends its connection when it has its answer.
#[derive(Clone, Copy, Debug)]
enum Last {
    /// It has closed its direction behind its request.
    HalfClosed,
    /// With data of its own that nothing answers, as TLS and WebSockets have it.
    Word,
    /// With a reset.
    Reset,
}

/// One connection; the client leaves in its way when it has the answer, and waits for nothing more.
fn connection(last: Last) -> Result<()> {
    let mut stream = TcpStream::connect(TARGET)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let upgrade = if matches!(last, Last::Word) { "Connection: Upgrade\r\nUpgrade: echo\r\n" } else { "" };
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: web\r\n{upgrade}\r\n").as_bytes())?;
    if matches!(last, Last::HalfClosed) {
        stream.shutdown(Shutdown::Write)?;
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == if upgrade.is_empty() { b"HTTP/1.1 200" } else { b"HTTP/1.1 101" }, "{answer:?}");
    if matches!(last, Last::Word) {
        // With something unread, it would reset the connection.
        let mut head = answer.to_vec();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
    }
    match last {
        Last::HalfClosed => stream.read_to_end(&mut Vec::new()).map(drop)?,
        // The server's answer to it meets a client that has gone.
        Last::Word => stream.write_all(b"bye")?,
        Last::Reset => set_socket_linger(&stream, Some(Duration::ZERO))?,
    }
    Ok(())
}

#[test]
fn how_clients_leave_is_no_fault_of_a_version() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let scene = Scene::new(&[], &[])?;
    let stop = Arc::new(AtomicBool::new(false));
    let all = [Last::HalfClosed, Last::Word, Last::Reset];
    let leaving = all.map(|last| {
        let (stop, ns) = (Arc::clone(&stop), scene.stage.host.net().try_clone());
        thread::spawn(move || {
            ns?.enter()?;
            let mut connections = 0u64;
            while !stop.load(Ordering::Relaxed) {
                connection(last).with_context(|| format!("{last:?}"))?;
                connections += 1;
                thread::sleep(Duration::from_millis(1));
            }
            anyhow::Ok(connections)
        })
    });
    let done = scene.stage.daemon.order_done("canary web v2 --steps 30%,60%,100% --every 3s");
    stop.store(true, Ordering::Relaxed);
    for (last, client) in all.iter().zip(leaving) {
        let connections = client.join().map_err(|_| anyhow!("a client panicked"))??;
        ensure!(connections > 100, "{last:?}: {connections} connections");
    }
    done?;
    let last = scene.last()?;
    let steps = last["steps_done"].as_array().cloned().unwrap_or_default();
    let judged: Vec<&str> = steps.iter().filter_map(|step| step["detail"].as_str()).collect();
    let judged: Vec<&str> = judged.into_iter().filter(|detail| detail.contains(" without an answer")).collect();
    ensure!(judged.len() == 3, "each step is judged: {last}");
    report::figure("the second step", judged[1]);
    for detail in judged {
        // Of each version. What a server sends to a client that has gone is none of its faults.
        ensure!(detail.matches(" 0 reset, 0 without an answer,").count() == 2, "{detail}");
    }
    Ok(())
}

#[test]
fn a_deploy_that_is_watched_goes_back() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let new = fault("reset", "20");
    let scene = Scene::new(&[], &new.iter().map(String::as_str).collect::<Vec<_>>())?;
    // A version that is as good as the one before stays, and the old one is only stopped then.
    let good = web(&scene.stage, "v3-1").start(&scene.stage)?;
    scene.stage.daemon.wait_state("web", "v3-1", "standby")?;
    let said = scene.stage.daemon.order_done("deploy web v3 --watch 8s --drain-timeout 5s")?;
    // The machine may have become busier since the old one was observed. That is recorded, and is no reason to go back.
    ensure!(["no worse", "slower"].iter().any(|name| said.stdout.contains(name)), "{}", said.stdout);
    all_by(scene.stage.host.net(), 100, "v3")?;
    let said = scene.stage.daemon.order("deploy web v2 --watch 8s --stop-old")?.expect(1)?;
    ensure!(
        format!("{}{}", said.stdout, said.stderr).contains("resets more connections"),
        "{}{}",
        said.stdout,
        said.stderr
    );
    drop(scene.load);
    all_by(scene.stage.host.net(), 100, "v3")?;
    drop(good);
    Ok(())
}

#[test]
fn a_step_without_clients_is_not_judged() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let scene = Scene::new(&[], &[])?;
    scene.load.stop()?;
    let stage = scene.stage;
    let required = stage.daemon.order("canary web v2 --steps 50%,100% --every 1s --judge required")?.expect(1)?;
    ensure!(required.stderr.contains("v2 could not be judged"), "{}{}", required.stdout, required.stderr);
    all_by(stage.host.net(), 20, "v1")?;
    stage.daemon.order_done("canary web v2 --steps 50%,100% --every 1s")?;
    let (_, history) = stage.daemon.api("/v1/history?service=web", None)?;
    ensure!(history.to_string().contains("not judged"), "{history}");
    // The programs are there only while versions are compared: those of others pay nothing.
    let order = |mode: &str| {
        let judge = json!({ "mode": mode, "max_slowdown_percent": 25 });
        json!({ "order": "canary", "version": "v1", "steps": [5_000, 10_000], "every_ms": 60_000, "timeout_ms": 60_000, "judge": judge })
    };
    for (mode, judges) in [("on", true), ("off", false)] {
        ensure!(!is_judging(&stage)?, "nothing is compared");
        let id = stage.daemon.begin(&order(mode))?;
        stage.daemon.wait_operation(id, "the first step", |operation| operation.phase.name == "stepping")?;
        wait::until_ok("the programs", || Ok((is_judging(&stage)? == judges).then_some(())))?;
        stage.daemon.order_done("rollback web")?;
        wait::until_ok("the programs to be gone", || Ok((!is_judging(&stage)?).then_some(())))?;
    }
    Ok(())
}
