//! A Compose project with a network of its own: a web service that finds its database by name serves the host's port, without
//! `network_mode` and without `ports`.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    engine::{Engine, Options},
    host::Host,
    image::Image,
    load::Load,
    netns::NetNs,
    process::run,
    report, require,
    rollouts::none_lost,
    tools, wait,
};

const PROJECT: &str = r#"
services:
  db:
    image: python
    command: [python3, /app/db.py]
    volumes: ["./app:/app:ro"]

  web-v1:
    image: python
    command: [python3, /app/web.py, v1]
    volumes: ["./app:/app:ro"]
    depends_on: [db]
    labels: &labels
      pod-steer.service: shop
      pod-steer.ports: "80:8080"
      pod-steer.rollout: manual
      pod-steer.version: v1
      pod-steer.via: forward

  web-v2:
    profiles: [next]
    image: python
    command: [python3, /app/web.py, v2]
    volumes: ["./app:/app:ro"]
    labels:
      <<: *labels
      pod-steer.version: v2
"#;

/// Answers each connection with a row.
const DB: &str = r#"
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
server = socket.create_server(("", 5432), backlog=512)
while True:
    client, _ = server.accept()
    client.sendall(b"row 7\n")
    client.close()
"#;

/// Asks `db` for a row, and answers with its own version and its client's address. Without the row its answer is an error.
const WEB: &str = r#"
import signal, socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Server(ThreadingHTTPServer):
    request_queue_size = 512

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with socket.create_connection(("db", 5432)) as db:
            row = db.makefile().readline()
        found = row == "row 7\n"
        body = "%s %s:%d\n" % (sys.argv[1], *self.client_address) if found else "db said %r\n" % row
        self.send_response(200 if found else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
Server(("", 8080), Handler).serve_forever()
"#;

/// `docker-compose` in a directory of the host's.
struct Project<'a> {
    stage: &'a Stage,
    dir: PathBuf,
}

impl<'a> Project<'a> {
    fn new(stage: &'a Stage) -> Result<Self> {
        let dir = stage.host.dir().join("project");
        fs::create_dir_all(dir.join("app"))?;
        for (name, text) in [("compose.yaml", PROJECT), ("app/db.py", DB), ("app/web.py", WEB)] {
            fs::write(dir.join(name), text)?;
        }
        stage.engine().import(Image::Python)?;
        Ok(Self { stage, dir })
    }

    /// `docker-compose ARGS`, separated by spaces.
    fn run(&self, args: &str) -> Result<String> {
        let docker = self.stage.engine().docker();
        let mut compose = self.stage.host.command("docker-compose")?;
        compose.arg("-f").arg(self.dir.join("compose.yaml")).args(args.split(' '));
        compose.env("DOCKER_HOST", docker.url()).env("DOCKER_CONFIG", docker.socket().with_file_name("docker-config"));
        run(&mut compose)
    }
}

/// The version and the state of each backend.
fn backends(stage: &Stage) -> Result<Vec<(String, String)>> {
    let status = stage.daemon.status()?;
    let backends = status.service("shop").map_or(&[][..], |service| &service.backends);
    let mut backends: Vec<_> = backends.iter().map(|one| (one.version.clone(), one.state.clone())).collect();
    backends.sort();
    Ok(backends)
}

/// Waits until there are so many backends of each version in these states.
fn wait_backends(stage: &Stage, wanted: &[(&str, &str, usize)]) -> Result<()> {
    let wanted = wanted.iter().flat_map(|(version, state, count)| std::iter::repeat_n((*version, *state), *count));
    let mut wanted: Vec<_> = wanted.map(|(version, state)| (version.to_owned(), state.to_owned())).collect();
    wanted.sort();
    wait::until_ok("the backends of the project", || Ok((backends(stage)? == wanted).then_some(())))
        .with_context(|| format!("{:?} instead of {wanted:?}\n{}", backends(stage), stage.daemon.log_tail()))
}

#[test]
fn a_project_with_its_own_network_is_deployed_under_load() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["docker-compose", "python3", "iptables"]));
    let host = Arc::new(Host::new()?);
    let engine = Engine::start_with(&host, Options::publishing())?;
    let stage = Stage::with(host, Some(engine))?;
    let client = stage.host.new_client()?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let project = Project::new(&stage)?;

    project.run("up -d --scale web-v1=2")?;
    wait_backends(&stage, &[("v1", "ready", 2)])?;
    let first = Load::to(target).threads(2).count(100).run(&client.ns)?;
    none_lost(&first)?;
    ensure!(first.answered_by("v1") == 100, "{first}");
    resolves_by_docker(&stage)?;

    // The next version beside it, then in its place.
    let load = Load::to(target).threads(2).start(&client.ns)?;
    project.run("up -d --no-deps --scale web-v2=2 web-v2")?;
    wait_backends(&stage, &[("v1", "ready", 2), ("v2", "standby", 2)])?;
    stage.daemon.order_done("deploy shop v2 --timeout 20s")?;
    let after = Load::to(target).count(100).run(&client.ns)?;
    ensure!(after.answered_by("v2") == 100, "{after}");
    project.run("up -d --no-deps --scale web-v1=0 web-v1")?;
    wait_backends(&stage, &[("v2", "ready", 2)])?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(tally.answered_by("v1") > 50 && tally.answered_by("v2") > 50, "{tally}");
    report::figure("deploy of a Compose project", &tally);

    let service = stage.daemon.wait_idle("shop")?;
    for counter in ["refused_no_backend", "flows_full", "not_rewritten", "ports_exhausted", "not_forwarded"] {
        ensure!(service.counter(counter) == 0, "{service:#?}");
    }
    // The backends that were removed have taken their counts with them.
    let opened = service.opened();
    ensure!(opened > 0 && opened <= first.answered() + tally.answered() + after.answered(), "{opened}");

    project.run("--profile next down")?;
    wait_backends(&stage, &[])?;
    let none = Load::to(target).count(3).timeout(std::time::Duration::from_secs(2)).run(&client.ns)?;
    ensure!(none.answered() == 0, "{none}");
    Ok(())
}

/// Docker's resolver has its rules in the namespace of each container, besides the rewriting of forwarded packets.
fn resolves_by_docker(stage: &Stage) -> Result<()> {
    let docker = stage.engine().docker();
    let pids = docker.run(&["ps", "--quiet", "--filter", "label=pod-steer.service=shop"])?;
    for id in pids.lines() {
        let pid = docker.run(&["inspect", "--format", "{{.State.Pid}}", id])?;
        let rules = run(NetNs::of_pid(pid.parse()?)?.command("iptables")?.args(["-t", "nat", "-S"]))?;
        ensure!(rules.contains("-j DNAT --to-destination 127.0.0.11:"), "{rules}");
    }
    Ok(())
}
