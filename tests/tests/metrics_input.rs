//! Bad input to the metrics: it gets one clear line, and changes nothing. The TCP port serves one page, to few clients at a time.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::{BPFFS, Stage},
    host::Host,
    process::{output, run},
    require,
    rollouts::web,
    tools, wait,
};
use serde_json::Value;

const METRICS: u16 = 9464;
/// As many clients as the port serves at a time.
const CLIENTS_MAX: usize = 16;

/// The only line that a command prints, which must exit with 2.
fn refused(command: &mut Command) -> Result<String> {
    let said = output(command)?;
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(said.status.code() == Some(2) && said.stdout.is_empty(), "{}: {text}", said.status);
    ensure!(text.trim_end().lines().count() == 1, "{text}");
    Ok(text)
}

#[test]
fn the_port_serves_one_page_to_this_machine_and_takes_no_orders() -> Result<()> {
    require!(tools::root_and(&["curl"]));
    let stage = Stage::configured(&format!("metrics = \"{METRICS}\"\n"))?;
    let code = |args: &[&str]| -> Result<String> {
        let mut curl = stage.host.command("curl")?;
        let said = output(curl.args(["-s", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}"]).args(args))?;
        Ok(String::from_utf8_lossy(&said.stdout).into_owned())
    };
    let url = |path: &str| format!("http://127.0.0.1:{METRICS}{path}");
    ensure!(code(&[&url("/metrics")])? == "200" && code(&["-I", &url("/metrics")])? == "200");
    for path in ["/", "/v1/status", "/v1/unload", "/v1/history", "/v1/metrics"] {
        ensure!(code(&[&url(path)])? == "404", "{path}");
        ensure!(code(&["-X", "POST", "-d", "{}", &url(path)])? == "404", "{path}");
    }
    ensure!(code(&["-X", "POST", "-d", "{}", &url("/metrics")])? == "405");
    let long = format!("X-Long: {}", "x".repeat(32 * 1024));
    // The answer is lost if the kernel resets the connection, because not all of the head was read.
    let answer = code(&["-H", &long, &url("/metrics")])?;
    ensure!(["431", "000"].contains(&answer.as_str()), "a head of 32 KiB is answered by {answer}");
    // Only the loopback address has the port.
    let client = stage.host.new_client()?;
    let refused = client.ns.run(|| TcpStream::connect((client.host_ip4, METRICS)));
    ensure!(refused.is_err(), "the port is open to other machines");
    // A connection is for one request.
    let answer = stage.host.net().run(|| -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    ensure!(answer.matches("HTTP/1.1").count() == 1, "{answer}");
    // Clients that ask for nothing keep others waiting for the time limit of a head, and not longer.
    let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS));
    let idle = stage.host.net().run(|| (0..CLIENTS_MAX).map(|_| connect()).collect::<Result<Vec<_>, _>>())?;
    let begun = Instant::now();
    ensure!(code(&[&url("/metrics")])? == "200");
    ensure!(begun.elapsed() > Duration::from_secs(3), "more than {CLIENTS_MAX} clients are served at a time");
    drop(idle);
    Ok(())
}

#[test]
fn a_bad_address_for_metrics_is_one_line_and_changes_nothing() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Host::new()?;
    let daemon = |address: &str| -> Result<Command> {
        let mut command = host.command(tools::pod_steer()?)?;
        command.args(["run", "--engine", "none", "--bpffs", BPFFS, "--runtime-dir", "/run/pod-steer", "--state-dir"]);
        command.arg(host.dir().join("state")).arg(format!("--metrics={address}"));
        Ok(command)
    };
    for wrong in ["", "x", "0", "-1", "127.0.0.1", "127.0.0.1:0", "70000", "localhost:80", "127.0.0.1:80:80", "a\nb"] {
        let said = refused(&mut daemon(wrong)?)?;
        ensure!(said.contains("is not an address and a port"), "{wrong}: {said}");
    }
    let taken = host.net().run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, METRICS)))?;
    let said = refused(&mut daemon("9464")?)?;
    ensure!(said.contains("metrics cannot be served on 127.0.0.1:9464") && said.contains("in use"), "{said}");
    drop(taken);
    let said = refused(&mut daemon("192.0.2.1:9464")?)?;
    ensure!(said.contains("192.0.2.1:9464"), "{said}");
    // The runtime directory has the lock of the daemon that runs.
    for made in [host.path(BPFFS), host.path("/run/pod-steer/api.sock"), host.dir().join("state")] {
        ensure!(!made.exists(), "{} was made", made.display());
    }
    Ok(())
}

#[test]
fn a_port_that_was_taken_meanwhile_does_not_keep_a_daemon_from_adopting() -> Result<()> {
    require!(tools::root_and(&["curl"]));
    let mut stage = Stage::configured(&format!("metrics = \"{METRICS}\"\n"))?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.kill()?;
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, METRICS));
    let taken = stage.host.net().run(|| wait::until_ok("the port to be free", || Ok(bind().ok())))?;
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(
        stage.daemon.log().contains("metrics are not served before this address is free"),
        "{}",
        stage.daemon.log()
    );
    drop(taken);
    let answered = || -> Result<Option<()>> {
        let mut curl = stage.host.command("curl")?;
        let said = output(curl.args(["-sf", "-o", "/dev/null", &format!("http://127.0.0.1:{METRICS}/metrics")]))?;
        Ok(said.status.success().then_some(()))
    };
    wait::until_ok("the port to be served", answered)
}

/// The keys of a map, as `bpftool` prints them.
fn keys(stage: &Stage, pin: &str) -> Result<Vec<Vec<String>>> {
    let dump: Value =
        serde_json::from_str(&run(stage.host.command("bpftool")?.args(["-j", "map", "dump", "pinned", pin]))?)?;
    let bytes = |entry: &Value| entry["key"].as_array()?.iter().map(|byte| Some(byte.as_str()?.to_owned())).collect();
    Ok(dump.as_array().context("a list of entries")?.iter().filter_map(bytes).collect())
}

#[test]
fn half_a_state_is_read_as_far_as_it_goes_or_refused_in_one_line() -> Result<()> {
    require!(tools::root_and(&["bpftool", "promtool"]));
    let mut stage = Stage::without_engine()?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let metrics = |stage: &Stage| -> Result<Command> {
        let mut command = stage.daemon.cli()?;
        command.args(["metrics", "--bpffs", BPFFS]);
        Ok(command)
    };
    ensure!(run(&mut metrics(&stage)?)?.contains("backend=\"v1-1\""));
    stage.daemon.kill()?;
    ensure!(run(&mut metrics(&stage)?)?.contains("backend=\"v1-1\""));
    // A daemon dies while it writes notes: the parts behind the first one are there, and that is missing.
    let notes = format!("{BPFFS}/maps/NOTES");
    let first_parts = keys(&stage, &notes)?.into_iter().filter(|key| key[8..12].iter().all(|byte| byte == "0x00"));
    for key in first_parts {
        run(stage.host.command("bpftool")?.args(["map", "delete", "pinned", &notes, "key"]).args(&key))?;
    }
    let page = run(&mut metrics(&stage)?)?;
    ensure!(!page.contains("v1-1") && page.contains("pod_steer_up 0.0"), "{page}");
    // A pin is missing, or is of something else.
    let pin = |name: &str| stage.host.path(BPFFS).join("maps").join(name);
    fs::rename(pin("SERVICE_TOTALS"), pin("aside"))?;
    let said = refused(&mut metrics(&stage)?)?;
    ensure!(said.contains("SERVICE_TOTALS") && said.contains("No such file"), "{said}");
    fs::rename(pin("NOTES"), pin("SERVICE_TOTALS"))?;
    let said = refused(&mut metrics(&stage)?)?;
    ensure!(said.contains("SERVICE_TOTALS"), "{said}");
    ensure!(pin("aside").exists() && !pin("NOTES").exists(), "reading changes nothing");
    // Nothing is pinned at all.
    for dir in [Path::new("/sys/fs/bpf/none"), Path::new("/sys/fs/bpf"), Path::new("/dev/null")] {
        let mut command = stage.daemon.cli()?;
        let said = refused(command.args(["metrics", "--bpffs"]).arg(dir))?;
        ensure!(said.contains("pod-steer run") && said.contains(&dir.display().to_string()), "{said}");
    }
    Ok(())
}
