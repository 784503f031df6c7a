//! A pause in front of unmodified servers in containers: each of them gets held clients when it ends, also one that was started anew meanwhile.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    container::Spec,
    daemon::Stage,
    held::{Waiting, retries, wait_gone, wait_held},
    image::Image,
    report, require, server, tools,
};

const CLIENTS: usize = 120;
/// busybox alone listens for IPv6. It gets those clients, and none of IPv4: its listener is in a group of its own.
const TARGETS: [&str; 2] = ["127.0.0.1:80", "[::1]:80"];
const NODE: &str =
    "require('http').createServer((request, response) => response.end('node\\n')).listen(8080, '0.0.0.0');";

#[test]
fn unmodified_servers_answer_held_clients() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["nginx", "node", "python3"]));
    let stage = Stage::with_docker()?;
    let specs = [
        server::nginx("nginx", 8080),
        server::python("python", 8080),
        server::busybox("busybox", 8080),
        Spec::new(Image::Node, "node").args(&["/bin/busybox", "sh", "-c", &format!("exec node -e \"{NODE}\"")]),
    ];
    let containers = specs
        .into_iter()
        .map(|spec| stage.engine().start_container(&spec.service("web", "80:8080")))
        .collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 4)?;
    let before = retries(&stage)?;
    let paused = stage.daemon.order_done("pause web")?.stdout;
    ensure!(paused.contains("clients of 80 are held"), "{paused}");
    let mut clients = Waiting::connect(stage.host.net(), &TARGETS, CLIENTS)?;
    wait_held(&stage, CLIENTS)?;
    // While all of them are away, no client is refused.
    for container in &containers {
        stage.engine().docker().run(&["restart", "--time", "0", &container.id])?;
    }
    clients.streams.extend(Waiting::connect(stage.host.net(), &TARGETS, CLIENTS)?.streams);
    stage.daemon.wait_for("all servers to listen again", |status| {
        let listen = status.service("web")?.backends.iter().filter(|backend| backend.sockets > 0).count();
        (listen == 4).then_some(())
    })?;
    clients.wait_still()?;
    stage.daemon.order_done("unpause web")?;
    let by_nginx = clients.answered("nginx")?;
    report::figure("of 240 held clients, those that nginx answered, one of four servers", by_nginx);
    let service = stage.daemon.wait_idle("web")?;
    for backend in &service.backends {
        ensure!(backend.moved_in > 0, "{} got no held client: {service:#?}", backend.name);
    }
    ensure!(retries(&stage)? == before, "{} SYNs were repeated", retries(&stage)? - before);
    wait_gone(&stage)
}
