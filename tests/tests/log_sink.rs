//! A log that cannot be written loses log lines only: the daemon continues to steer, and logs again later.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    process::run,
    require,
    rollouts::{clients, none_lost, web},
    tools, wait,
};
use rustix::process::Signal;

/// Makes the daemon log: backends come and go, and orders are given.
fn work(stage: &Stage, round: u32) -> Result<()> {
    let name = format!("v1-{round}");
    let load = clients().start(stage.host.net())?;
    let mut second = web(stage, &name).start(stage)?;
    stage.daemon.wait_ready("web", 2)?;
    stage.daemon.order_done("pause web")?;
    stage.daemon.order_done("unpause web")?;
    // No connection may come while its listener closes: Linux may lose one then (`journal::Killed`).
    stage.daemon.order_done(&format!("drain web --backend {name} --drain-timeout 60s"))?;
    second.process.signal(Signal::TERM)?;
    second.process.wait(Duration::from_secs(20))?;
    stage.daemon.wait_ready("web", 1)?;
    none_lost(&load.stop()?)
}

fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

#[test]
fn a_pipe_that_is_closed_or_not_read() -> Result<()> {
    require!(tools::root_and(&["ip", "mkfifo"]));
    let mut stage = Stage::without_engine()?;
    let _first = web(&stage, "v1-first").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let fifo = stage.host.dir().join("log");
    run(std::process::Command::new("mkfifo").arg(&fifo))?;
    // Opened for reading and writing, so that the daemon's open() does not wait for a reader.
    let unread = File::options().read(true).write(true).open(&fifo)?;
    stage.daemon.terminate()?;
    stage.daemon.restart_with_log(&fifo)?;
    let pid = stage.daemon.pid();

    // The pipe is not read: 64 KiB fit, then lines are dropped.
    for round in 0..3 {
        work(&stage, round)?;
    }
    // Close the last read end.
    drop(unread);
    work(&stage, 3)?;
    let before = cpu_ticks(pid)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(cpu_ticks(pid)? - before < 50, "an idle daemon must not spin over its log");
    ensure!(stage.daemon.status()?.pid == pid, "it is the same daemon");

    // Read again.
    let mut reader = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&fifo)?;
    work(&stage, 4)?;
    let mut log = String::new();
    wait::until_ok("the log to go on", || {
        let mut part = vec![0; 4096];
        let count = match reader.read(&mut part) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            read => read?,
        };
        log.push_str(&String::from_utf8_lossy(&part[..count]));
        Ok((log.contains("log lines were lost") && log.contains("v1-4")).then_some(()))
    })?;
    stage.daemon.terminate()
}

#[test]
fn a_full_disk() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let _first = web(&stage, "v1-first").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.terminate()?;
    stage.daemon.restart_with_log(Path::new("/dev/full"))?;
    let pid = stage.daemon.pid();
    work(&stage, 0)?;
    ensure!(stage.daemon.status()?.pid == pid, "it is the same daemon");
    stage.daemon.terminate()
}

#[test]
fn commands_whose_reader_has_gone() -> Result<()> {
    require!(tools::root_and(&["ip", "sh"]));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let closed = |command: &str| -> Result<(String, String)> {
        let mut shell = stage.host.command("sh")?;
        // The inner shell waits until the reader has ended.
        let script = format!("{{ sleep 0.3; {command} 2>\"$ERR\"; echo $? >\"$CODE\"; }} | true");
        let (err, code) = (stage.host.dir().join("err"), stage.host.dir().join("code"));
        shell.args(["-c", &script]).env("ERR", &err).env("CODE", &code).env("P", tools::pod_steer()?);
        run(shell.env("POD_STEER_SOCKET", stage.daemon.socket()))?;
        let code = wait::until_ok("the command to end", || {
            let text = fs::read_to_string(&code).unwrap_or_default();
            Ok(text.ends_with('\n').then(|| text.trim().to_owned()))
        })?;
        fs::remove_file(stage.host.dir().join("code"))?;
        Ok((code, fs::read_to_string(err)?))
    };
    for command in ["status", "status -o json", "history", "doctor", "openapi", "version", "--help", "-V"] {
        let (code, said) = closed(&format!("\"$P\" {command}"))?;
        ensure!(code == "0" && said.is_empty(), "{command}: {code} {said}");
    }
    // The command still follows its order to the end and exits with the order's code.
    let (code, said) = closed("\"$P\" deploy web v2")?;
    ensure!(code == "0" && said.is_empty(), "deploy: {code} {said}");
    let last = stage.daemon.history("web")?.pop();
    ensure!(last.is_some_and(|last| last.order == "deploy" && last.end.is_some()), "the deploy has ended");
    // The same for standard error.
    let mut shell = stage.host.command("sh")?;
    shell.args(["-c", "\"$P\" deploy web v9 2>/dev/full"]).env("P", tools::pod_steer()?);
    let failed = pod_steer_tests::process::output(shell.env("POD_STEER_SOCKET", stage.daemon.socket()))?;
    ensure!(failed.status.code() == Some(2), "{failed:?}");
    // Data that cannot be written is an error.
    let mut shell = stage.host.command("sh")?;
    shell.args(["-c", "\"$P\" status >/dev/full"]).env("P", tools::pod_steer()?);
    let failed = pod_steer_tests::process::output(shell.env("POD_STEER_SOCKET", stage.daemon.socket()))?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(failed.status.code() == Some(1) && said.contains("cannot write to standard output"), "{said}");
    Ok(())
}
