//! Tests of the fixtures: they do what the other tests rely on, and leave nothing behind.

use std::{fs, panic, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use pod_steer_tests::{
    cgroup2, engine::Engine, host::Host, load::Load, podman::Podman, process::run, report, require, server, tools, wait,
};

/// Everything that a host may leave: its directory, its cgroup, its processes, its mounts.
fn traces(host: &Host) -> (PathBuf, PathBuf) {
    (host.dir().to_owned(), host.cgroup().to_owned())
}

fn assert_gone((dir, cgroup): &(PathBuf, PathBuf)) {
    assert!(!dir.exists(), "{} is left", dir.display());
    assert!(!cgroup.exists(), "{} is left", cgroup.display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "a mount is left");
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let dir = dir.to_str().unwrap();
    let left: Vec<_> = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect();
    let left: Vec<_> = left.iter().filter(|line| line.contains(dir)).collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
}

#[test]
fn every_server_answers_from_a_container() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["nginx", "python3", "ldd"]));
    let host = Host::new()?;
    let traces = traces(&host);
    let engine = Engine::start(&host)?;
    let specs = [
        server::named("named-1", "0.0.0.0:8001"),
        server::busybox("busybox-1", 8002),
        server::python("python-1", 8003),
        server::nginx("nginx-1", 8004),
    ];
    for (spec, port) in specs.iter().zip(8001..) {
        let container = engine.start_container(spec)?;
        let target = format!("127.0.0.1:{port}").parse()?;
        let answered = wait::until("the first answer", || {
            let tally = Load::to(target).count(1).run(host.net()).ok()?;
            (tally.answered() == 1).then_some(tally)
        });
        let answered = answered.with_context(|| container.logs().unwrap_or_default())?;
        assert_eq!(answered.answered_by(&container.name), 1, "{answered}");
        assert!(answered.disguised.is_empty(), "{answered}");
    }
    drop(engine);
    drop(host);
    assert_gone(&traces);
    Ok(())
}

#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    require!(tools::docker());
    let host = Host::new()?;
    let traces = traces(&host);
    let result = panic::catch_unwind(move || {
        let host = host;
        let engine = Engine::start(&host).unwrap();
        let spec = server::named("named-1", "0.0.0.0:8080");
        let pid = engine.start_container(&spec).map(|container| container.pid().unwrap()).unwrap();
        let _left_running = engine.start_container(&server::busybox("busybox-1", 8081)).unwrap();
        assert_eq!(pid, 0, "this panic is part of the test");
    });
    assert!(result.is_err());
    assert_gone(&traces);
    Ok(())
}

#[test]
fn clients_keep_their_address() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Host::new()?;
    let client = host.new_client()?;
    let mut command = host.command(tools::named_server()?)?;
    command.args(["--name", "direct", "--listen", "[::]:8080"]);
    let server = host.start("direct", &mut command)?;
    wait::until("the server to listen", || server.stdout().contains("listening").then_some(()))?;
    for ip in [client.host_ip4, client.host_ip6] {
        let tally = Load::to((ip, 8080).into()).count(100).threads(2).run(&client.ns)?;
        assert_eq!(tally.answered_by("direct"), 100, "{tally}");
        assert!(tally.disguised.is_empty(), "{:?}", tally.disguised);
        let tally = Load::to((ip, 8080).into()).count(10).requests(20).run(&client.ns)?;
        assert_eq!(tally.requests_by_name["direct"], 200, "{tally}");
    }
    let refused = Load::to((client.host_ip4, 8081).into()).count(3).run(&client.ns)?;
    assert_eq!(refused.refused(), 3, "{refused}");
    Ok(())
}

#[test]
fn the_host_is_as_a_modern_machine() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let host = Host::new()?;
    let cgroup = run(host.command("cat")?.arg("/proc/self/cgroup"))?;
    assert!(cgroup.ends_with(&format!("0::/{}\n", cgroup2::PROCESSES)), "{cgroup}");
    let mounts = run(host.command("cat")?.arg("/proc/self/mountinfo"))?;
    for expected in [" /sys/fs/cgroup rw,relatime - cgroup2 ", " /sys/fs/bpf rw,relatime - bpf "] {
        assert_eq!(mounts.matches(expected).count(), 1, "{mounts}");
    }
    Ok(())
}

#[test]
fn podman_runs_containers() -> Result<()> {
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox"]));
    let host = Host::new()?;
    let traces = traces(&host);
    let podman = Podman::start(&host)?;
    podman.import(pod_steer_tests::image::Image::Busybox)?;
    let container = podman.docker().start(&server::busybox("busybox-1", 8080))?;
    let target = "127.0.0.1:8080".parse()?;
    wait::until("the first answer", || {
        let tally = Load::to(target).count(1).run(host.net()).ok()?;
        (tally.answered_by(&container.name) == 1).then_some(())
    })?;
    drop((container, podman));
    drop(host);
    assert_gone(&traces);
    Ok(())
}

/// Within this time the test kills its copy, which then has not ended yet.
const KILLED_WITHIN: Duration = Duration::from_secs(600);

#[test]
fn a_test_process_that_is_killed_leaves_nothing_behind() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    // Run this test binary again, as a process that makes a host and waits to be killed.
    if std::env::var_os("MAKE_A_HOST_AND_WAIT").is_some() {
        let host = Host::new()?;
        let _sleeping = host.start("sleep", host.command("sleep")?.arg("600"))?;
        report::figure("host", host.cgroup().display());
        fs::write(std::env::var_os("MAKE_A_HOST_AND_WAIT").unwrap(), host.cgroup().to_str().unwrap())?;
        std::thread::sleep(KILLED_WITHIN);
        return Ok(());
    }
    let own = Host::new()?;
    let told = own.dir().join("told");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "a_test_process_that_is_killed_leaves_nothing_behind", "--nocapture"]);
    let mut test = own.start("killed", command.env("MAKE_A_HOST_AND_WAIT", &told))?;
    let cgroup = wait::until("the host", || fs::read_to_string(&told).ok().filter(|path| !path.is_empty()))?;
    let cgroup = PathBuf::from(cgroup);
    assert!(cgroup.is_dir());
    test.kill()?;
    let dir = std::env::temp_dir().join(cgroup.file_name().unwrap());
    wait::until("the host to be gone", || (!cgroup.exists() && !dir.exists()).then_some(()))?;
    Ok(())
}
