//! Drains that close idle connections (`--close-idle`) and old ones (`--max-age`): unmodified servers close them in their ordinary way, at the pace that was ordered,
//! and no request is lost, however fast it came after the answer before.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    container::Spec, daemon::Stage, exec::Exec, image::Image, load::Load, netns::NetNs, process::raise_files, report,
    require, scale, server, tools, wait,
};

/// Both answer `/slow` after three seconds.
const NODE: &str = "const server = require('http').createServer((request, response) => {
        setTimeout(() => response.end('node\\n'), request.url == '/slow' ? 3000 : 0);
    });
    server.keepAliveTimeout = 600000;
    server.listen(8080);";
const PYTHON: &str = "
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        time.sleep(3 if self.path == '/slow' else 0)
        self.send_response(200)
        self.send_header('Content-Length', '7')
        self.end_headers()
        self.wfile.write(b'python\\n')
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
Server(('0.0.0.0', 8080), Handler).serve_forever()
";

/// A connection that is kept.
struct Client {
    stream: TcpStream,
    server: String,
    waits: bool,
}

impl Client {
    fn open(net: &NetNs, target: SocketAddr) -> Result<Self> {
        let stream = net.run(|| TcpStream::connect(target))?;
        stream.set_read_timeout(Some(wait::STUCK))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, server: String::new(), waits: false };
        client.ask("/")?;
        client.server = client.answer()?.context("closed before its first answer")?;
        Ok(client)
    }

    fn ask(&mut self, path: &str) -> Result<()> {
        Ok(write!(self.stream, "GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")?)
    }

    /// The first word of the answer's body; nothing if the server has closed instead.
    fn answer(&mut self) -> Result<Option<String>> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.stream.read(&mut byte)? {
                0 if head.is_empty() => return Ok(None),
                0 => anyhow::bail!("closed within an answer"),
                _ => head.push(byte[0]),
            }
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
        let mut body = vec![0; length.parse()?];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Some(body.split_whitespace().next().unwrap_or_default().to_owned()))
    }

    /// The server closes the connection as it ends one, after it has answered.
    fn ends(&mut self) -> Result<()> {
        if self.waits {
            ensure!(self.answer()?.is_some(), "{} closed in place of an answer", self.server);
        }
        ensure!(self.answer().with_context(|| self.server.clone())?.is_none(), "{} said something else", self.server);
        Ok(())
    }
}

#[test]
fn servers_close_what_is_idle_and_answer_what_waits() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["nginx", "python3", "node", "caddy"]));
    raise_files()?;
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let caddy = "echo caddy >/www/index.html; exec caddy file-server --listen :8080 --root /www";
    let of = |spec: Spec| spec.service("web", "80:8080").version("v1");
    let _old = [
        stage.engine().start_container(&of(server::nginx("nginx", 8080)))?,
        stage.engine().start_container(&of(server::python_program("python", PYTHON)))?,
        stage.engine().start_container(&of(Spec::new(Image::Caddy, "caddy").args(&[
            "/bin/busybox",
            "sh",
            "-c",
            caddy,
        ])))?,
        // Behind a bridge.
        stage.engine().start_container(
            &of(Spec::new(Image::Node, "node").args(&[
                "/bin/busybox",
                "sh",
                "-c",
                &format!("exec node -e \"{NODE}\""),
            ]))
            .network("bridge")
            .label("pod-steer.via", "forward"),
        )?,
    ];
    stage.daemon.wait_ready("web", 4)?;
    let number = scale::of(80, 5_000);
    let mut clients = (0..number).map(|_| Client::open(&client.ns, target)).collect::<Result<Vec<_>>>()?;
    let mut servers: BTreeMap<&str, usize> = BTreeMap::new();
    clients.iter().for_each(|client| *servers.entry(&client.server).or_default() += 1);
    ensure!(servers.len() == 4, "{servers:?}");
    report::figure("idle connections", format!("{servers:?}"));
    let new = server::named("new", "[::]:8080").service("web", "80:8080").version("v2");
    let _new = stage.engine().start_container(&new)?;
    stage.daemon.wait_ready("web", 5)?;
    // Every third one asks again at once after an answer, and waits.
    for client in clients.iter_mut().step_by(3) {
        client.ask("/")?;
        client.answer()?.context("closed")?;
        client.ask("/slow")?;
        client.waits = true;
    }
    let load = Load::to(target).threads(1).start(&client.ns)?;
    let rate = scale::of("100/s", "600/s");
    let ordered = stage.daemon.order(&format!("deploy web v2 --close-idle=500ms --rate {rate} --drain-timeout 25s"))?;
    let load = load.stop()?;
    let ordered = ordered.expect(0).with_context(|| {
        clients.iter().for_each(|client| drop(client.stream.set_read_timeout(Some(Duration::from_millis(100)))));
        let left = clients.iter_mut().filter_map(|client| {
            client.ends().err().map(|error| format!("{} waits: {}: {error:#}", client.server, client.waits))
        });
        left.collect::<Vec<_>>().join("; ")
    })?;
    ensure!(load.losses.is_empty(), "{load}");
    report::figure("deploy that closes idle connections", ordered.stdout.trim_end().replace('\n', "; "));
    ensure!(ordered.stdout.contains("closed when idle"), "{}", ordered.stdout);
    for client in &mut clients {
        client.ends()?;
    }
    Ok(())
}

#[test]
fn idle_connections_are_closed_at_the_rate() -> Result<()> {
    let stage = Stage::without_engine()?;
    let _server = Exec::new("v1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let target: SocketAddr = ([127, 0, 0, 1], 80).into();
    let open = |number: usize| (0..number).map(|_| Client::open(stage.host.net(), target)).collect::<Result<Vec<_>>>();
    let mut clients = open(60)?;
    for bad in [
        "--close-idle",
        "--close-idle=soon --drain-timeout 1s",
        "--rate 5/s --drain-timeout 1s",
        "--close-idle=0s --rate 5/s --drain-timeout 1s",
        "--close-idle --rate x --drain-timeout 1s",
        "--close-idle --rate 0/s --drain-timeout 1s",
        "--max-age 1h",
        "--max-age old --drain-timeout 1s",
        "--max-age 0s --rate 5/s --drain-timeout 1s",
    ] {
        stage.daemon.order(&format!("drain web {bad}"))?.expect(2)?;
    }
    ensure!(stage.daemon.history("web")?.is_empty(), "bad input was recorded");
    sleep(Duration::from_millis(300));
    let ordered = stage.daemon.order("drain web --close-idle=100ms --rate 20/s --drain-timeout 60s")?.expect(0)?;
    // The first quarter of a second has its part at once.
    let least = Duration::from_millis(60 * 1_000 / 20 - 2 * 250);
    ensure!(ordered.took() >= least, "60 connections at 20 a second took {:?}", ordered.took());
    ensure!(ordered.stdout.contains("60 connections, 60 of them closed when idle"), "{}", ordered.stdout);
    clients.iter_mut().try_for_each(Client::ends)?;

    // What talks is not closed, and left at the deadline. The daemon's death changes nothing.
    stage.daemon.order_done("resume web")?;
    let mut clients = open(4)?;
    thread::scope(|scope| -> Result<()> {
        let drain = scope.spawn(|| stage.daemon.order("drain web --close-idle=8s --drain-timeout 15s"));
        while !drain.is_finished() {
            sleep(Duration::from_millis(100));
            clients[0].ask("/")?;
            clients[0].answer()?.context("a connection that talks was closed")?;
        }
        let ordered = drain.join().ok().context("a thread panicked")??.expect(3)?;
        ensure!(ordered.stdout.contains("1 connection remained"), "{}", ordered.stdout);
        clients[1..].iter_mut().try_for_each(Client::ends)
    })
}

#[test]
fn a_service_has_its_idle_connections_closed_in_every_drain() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("[service.web.drain]\nclose-idle = '200ms'\n")?;
    let old = Exec::new("v1", "web", "80:8080", "0.0.0.0:8080").flags(&["--version", "v1"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let target: SocketAddr = ([127, 0, 0, 1], 80).into();
    let open = || (0..8).map(|_| Client::open(stage.host.net(), target)).collect::<Result<Vec<_>>>();

    // An order may leave them alone.
    let mut clients = open()?;
    let left = stage.daemon.order("drain web --close-idle=0s --drain-timeout 1s")?.expect(3)?;
    ensure!(left.stdout.contains("8 connections remained"), "{}", left.stdout);
    stage.daemon.order_done("resume web")?;
    let ended = stage.daemon.order("drain web --drain-timeout 30s")?.expect(0)?;
    ensure!(ended.stdout.contains("8 connections, 8 of them closed when idle"), "{}", ended.stdout);
    clients.iter_mut().try_for_each(Client::ends)?;
    stage.daemon.order_done("resume web")?;

    // A label counts before the table of the service.
    drop(old);
    let labelled = |version: &str| {
        Exec::new(version, "web", "80:8080", "0.0.0.0:8080").flags(&[
            "--version",
            version,
            "--drain-close-idle",
            "100ms",
        ])
    };
    let _old = labelled("v2").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut clients = open()?;
    let _new = labelled("v3").start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let deployed = stage.daemon.order("deploy web v3 --rate 100/s --drain-timeout 30s")?.expect(0)?;
    ensure!(deployed.stdout.contains("closed when idle"), "{}", deployed.stdout);
    clients.iter_mut().try_for_each(Client::ends)
}

/// Asks again and again, and is never idle for long, until its server closes the connection. When that was, and which server has the next one.
fn ask_until_closed(mut client: Client, net: &NetNs, target: SocketAddr) -> Result<(Instant, String)> {
    let begun = Instant::now();
    while begun.elapsed() < wait::STUCK {
        sleep(Duration::from_millis(300));
        // One that asks in the moment in which its server closes gets no answer, or a reset.
        if client.ask("/").is_err() || !matches!(client.answer(), Ok(Some(_))) {
            return Ok((Instant::now(), Client::open(net, target)?.server));
        }
    }
    anyhow::bail!("{} closes nothing", client.server)
}

#[test]
fn old_connections_are_closed_between_requests() -> Result<()> {
    const AGE: Duration = Duration::from_secs(8);
    let stage = Stage::configured("[service.web.drain]\nmax-age = '8s'\n")?;
    let version = |name| Exec::new(name, "web", "80:8080", "0.0.0.0:8080").flags(&["--version", name]).start(&stage);
    let _old = version("v1")?;
    stage.daemon.wait_ready("web", 1)?;
    let (net, target) = (stage.host.net(), SocketAddr::from(([127, 0, 0, 1], 80)));
    let open = |number: usize| (0..number).map(|_| Client::open(net, target)).collect::<Result<Vec<_>>>();
    let ends = thread::scope(|scope| -> Result<_> {
        let ask = |clients: Vec<Client>| {
            clients.into_iter().map(|one| scope.spawn(move || ask_until_closed(one, net, target))).collect::<Vec<_>>()
        };
        let old = ask(open(6)?);
        sleep(AGE + Duration::from_millis(1_500));
        ensure!(!old.iter().any(|one| one.is_finished()), "a connection was closed without a drain");
        let _new = version("v2")?;
        stage.daemon.wait_ready("web", 2)?;
        stage.daemon.order_done("shift web v1=100")?;
        let opened = Instant::now();
        let young = ask(open(6)?);
        let load = Load::to(target).threads(1).start(net)?;
        let ordered = stage.daemon.order("deploy web v2 --rate 100/s --drain-timeout 60s")?;
        let load = load.stop()?;
        ensure!(load.losses.is_empty(), "{load}");
        let ordered = ordered.expect(0)?;
        ensure!(ordered.stdout.contains("12 of them closed when old"), "{}", ordered.stdout);
        report::figure("deploy that closes old connections", ordered.stdout.trim_end().replace('\n', "; "));
        let join = |all: Vec<thread::ScopedJoinHandle<'_, Result<(Instant, String)>>>| {
            let joined = all.into_iter().map(|one| one.join().ok().context("a thread panicked")?);
            joined.collect::<Result<Vec<_>>>()
        };
        Ok((opened, join(old)?, join(young)?))
    })?;
    let (opened, old, young) = ends;
    for (closed, server) in old.iter().chain(&young) {
        ensure!(server == "v2", "{server} has the next connection, after {:?}", closed.duration_since(opened));
    }
    let first = young.iter().map(|(closed, _)| *closed).min().context("none")?;
    ensure!(first >= opened + AGE, "closed after {:?}", first - opened);
    ensure!(old.iter().all(|(closed, _)| *closed < first), "young connections were closed before old ones");
    Ok(())
}
