//! A running backend that does not listen, or no longer listens, on its declared ports.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    container::Spec, daemon::Stage, exec::Exec, image::Image, load::Load, process::run, require, rollouts, server,
    tools, wait,
};

/// Listens on the first port at once, and on the second one while a file exists.
const ON_DEMAND: &str = r#"
import os, socket, sys, time
first, second, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def listen(port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("0.0.0.0", port)); s.listen(8); return s
keep, other = listen(first), None
print("up", flush=True)
while True:
    if os.path.exists(file) and other is None: other = listen(second)
    if not os.path.exists(file) and other is not None: other.close(); other = None
    time.sleep(0.02)
"#;

#[test]
fn a_server_on_another_port_says_which() -> Result<()> {
    require!(tools::root_and(&["ip", "python3"]));
    let stage = Stage::without_engine()?;
    let file = stage.host.dir().join("listen");
    let mut command = stage.daemon.cli()?;
    command.args([
        "exec",
        "--service",
        "web",
        "--ports",
        "80:8812",
        "--name",
        "odd-1",
        "--",
        "python3",
        "-c",
        ON_DEMAND,
    ]);
    command.args(["9999", "8812"]).arg(&file);
    let odd = stage.host.start("odd-1", &mut command)?;
    wait::until("the server", || odd.stdout().contains("up").then_some(()))?;
    stage.daemon.wait_state("web", "odd-1", "not-listening")?;
    let said = stage.daemon.status()?.said_about("odd-1").join("\n");
    ensure!(said.contains("it listens on 9999, not on 8812") && said.contains("80:9999"), "{said}");
    let table = stage.daemon.order_done("status")?.stdout;
    ensure!(table.contains("not-listening") && table.contains("listens on 9999, not on 8812"), "{table}");
    // A deploy that waits for it reports that too.
    let failed = stage.daemon.order("deploy web unversioned --timeout 1s")?.expect(1)?;
    ensure!(failed.stderr.contains("listens on 9999, not on 8812"), "{}", failed.stderr);

    std::fs::write(&file, "")?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(stage.daemon.status()?.said_about("odd-1").is_empty(), "nothing is wrong any more");
    std::fs::remove_file(&file)?;
    stage.daemon.wait_state("web", "odd-1", "not-listening")?;
    stage.daemon.wait_for("the reason", |status| {
        let said = status.said_about("odd-1").join("\n");
        said.contains("it no longer listens on 8812, but on 9999").then_some(())
    })?;
    std::fs::write(&file, "")?;
    stage.daemon.wait_ready("web", 1)?;
    Ok(())
}

#[test]
fn a_server_that_listens_nowhere_yet_is_starting() -> Result<()> {
    require!(tools::root_and(&["ip", "sleep"]));
    let stage = Stage::without_engine()?;
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8812", "--name", "slow-1", "--", "sleep", "1000"]);
    let _slow = stage.host.start("slow-1", &mut command)?;
    stage.daemon.wait_state("web", "slow-1", "starting")?;
    // Another backend's listener does not count.
    let _other = Exec::new("api-1", "api", "81:9999", "0.0.0.0:9999").start(&stage)?;
    stage.daemon.wait_ready("api", 1)?;
    std::thread::sleep(std::time::Duration::from_secs(4));
    let status = stage.daemon.status()?;
    ensure!(status.backend("web", "slow-1").state == "starting", "{status}");
    ensure!(status.said_about("slow-1").is_empty(), "{status}");
    Ok(())
}

#[test]
fn an_app_whose_sandbox_was_started_again() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let sandbox = Spec::new(Image::Busybox, "pod-1").network("bridge").args(&["/bin/busybox", "sleep", "1000"]);
    let pod = stage.engine().start_container(&sandbox)?;
    let app = |name: &str| {
        let spec = server::named(name, "0.0.0.0:8080").network(format!("container:{}", pod.id));
        stage.engine().start_container(&spec.service("web", "80:8080"))
    };
    let (left, again) = (app("web-1")?, app("web-2")?);
    stage.daemon.wait_ready("web", 2)?;

    let docker = |args: &[&str]| run(stage.engine().docker().command().args(args));
    docker(&["restart", "--time", "0", &pod.id])?;
    for name in ["web-1", "web-2"] {
        // First it may be said to have stopped.
        stage.daemon.wait_for("the reason", |status| {
            let said = status.said_about(name).join("\n");
            let is_named = said.contains("an earlier start of pod-1") && said.contains("restart it");
            (status.backend("web", name).state == "not-steered" && is_named).then_some(())
        })?;
    }
    docker(&["restart", "--time", "0", &again.id])?;
    stage.daemon.wait_ready("web", 1)?;
    ensure!(stage.daemon.status()?.said_about("web-2").is_empty(), "it was restarted");
    let client = stage.host.new_client()?;
    stage.host.net().sysctl("net.ipv4.ip_forward", "1")?;
    let tally = Load::to((pod.ip()?, 80).into()).count(50).run(&client.ns)?;
    ensure!(tally.answered_by("web-2") == 50, "{tally}");
    rollouts::none_lost(&tally)?;
    // The next daemon reports it too.
    let mut stage = stage;
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    stage.daemon.wait_state("web", "web-1", "not-steered")?;
    drop(left);
    Ok(())
}

#[test]
fn an_app_whose_sandbox_has_stopped_or_was_removed() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker()?;
    let sandbox = Spec::new(Image::Busybox, "pod-1").network("bridge").args(&["/bin/busybox", "sleep", "1000"]);
    let pod = stage.engine().start_container(&sandbox)?;
    let app = server::named("web-1", "0.0.0.0:8080").network(format!("container:{}", pod.id));
    let app = stage.engine().start_container(&app.service("web", "80:8080"))?;
    stage.daemon.wait_ready("web", 1)?;

    run(stage.engine().docker().command().args(["stop", "--time", "0", &pod.id]))?;
    let says = |stage: &Stage, what: &str| -> Result<()> {
        stage.daemon.wait_for("the fault and the remedy", |status| {
            let said = status.said_about("web-1").join("\n");
            (status.backend("web", "web-1").state == "not-steered" && said.contains(what)).then_some(())
        })
    };
    says(&stage, "which has stopped, so no client arrives there; start pod-1, then restart it")?;
    run(stage.engine().docker().command().args(["rm", "--force", &pod.id]))?;
    says(&stage, "the container pod-1, which was removed, so no client arrives there; create it again")?;
    // The next daemon knows only its id.
    stage.daemon.kill()?;
    stage.daemon.restart()?;
    says(&stage, &format!("the container {}, which was removed", &pod.id[..12]))?;
    drop(app);
    Ok(())
}

#[test]
fn a_port_on_which_a_ready_backend_does_not_listen_is_named() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let _part = Exec::new("part-1", "web", "81:8813,82:8814", "0.0.0.0:8813").start(&stage)?;
    let status = stage.daemon.wait_ready("web", 1)?;
    ensure!(
        status.backends[0].infos() == ["it does not listen on 8814, so it gets no clients of port 82"],
        "{status:?}"
    );
    Ok(())
}

#[test]
fn a_process_that_listens_elsewhere_is_not_registered() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::without_engine()?;
    let mut server = stage.host.command(tools::named_server()?)?;
    let server = stage.host.start("odd-1", server.args(["--name", "odd-1", "--listen", "0.0.0.0:9998"]))?;
    wait::until("the server to listen", || server.stdout().contains("listening ").then_some(()))?;
    let order = format!("register --pid {} --service web --ports 81:8813", server.pid());
    let refused = stage.daemon.order(&order)?;
    let text = format!("process {} listens on 9998, not on 8813;", server.pid());
    ensure!(refused.stderr.contains(&text), "{}", refused.stderr);
    ensure!(stage.daemon.status()?.service("web").is_none(), "nothing was registered");
    Ok(())
}
