//! Drains that close idle connections, for servers of further kinds: what their clients see, and that no request is lost.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::Exec,
    process::{Process, raise_files},
    report, require, scale, tools, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Debian's, which has the modules of its packages. There may be another one before it.
const PYTHON: &str = "/usr/bin/python3";
/// A request for it takes three seconds.
const SLOW: &str = "/slow";

const GUNICORN: &str = "
import time
def app(environ, start_response):
    time.sleep(3 if environ['PATH_INFO'] == '/slow' else 0)
    start_response('200 OK', [('Content-Length', '3')])
    return [b'v1\\n']
";

const JVM: &str = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;
public class Server {
    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 4096);
        server.setExecutor(Executors.newCachedThreadPool());
        server.createContext("/", exchange -> {
            try {
                Thread.sleep(exchange.getRequestURI().getPath().equals("/slow") ? 3000 : 0);
            } catch (InterruptedException error) {
                throw new RuntimeException(error);
            }
            exchange.sendResponseHeaders(200, 3);
            exchange.getResponseBody().write("v1\n".getBytes());
            exchange.close();
        });
        server.start();
    }
}
"#;

/// Answers each message with its version; `slow` after three seconds.
const WEBSOCKET: &str = "
import asyncio, sys, websockets
async def serve(socket):
    async for message in socket:
        await asyncio.sleep(3 if message == 'slow' else 0)
        await socket.send(sys.argv[1])
async def main():
    async with websockets.serve(serve, '0.0.0.0', 8080, ping_interval=None, backlog=4096):
        await asyncio.Future()
asyncio.run(main())
";

/// Of so many clients, each asks twice, every third one slowly. They wait for the end, and connect again. Says `ready` when all have an answer.
const WEBSOCKETS: &str = "
import asyncio, json, sys, websockets
from collections import Counter
ends, answers, again, ready = Counter(), Counter(), Counter(), 0
async def connect(gate):
    async with gate:
        return await websockets.connect('ws://127.0.0.1:80', ping_interval=None)
async def client(number, count, gate):
    global ready
    socket = await connect(gate)
    await socket.send('now')
    answers[await socket.recv()] += 1
    if number % 3 == 0:
        await socket.send('slow')
    ready += 1
    if ready == count:
        print('ready', flush=True)
    if number % 3 == 0:
        answers[await socket.recv()] += 1
    try:
        await socket.recv()
    except websockets.ConnectionClosed as end:
        ends[end.rcvd.code if end.rcvd else 1006] += 1
    socket = await connect(gate)
    await socket.send('now')
    again[await socket.recv()] += 1
async def main(count):
    gate = asyncio.Semaphore(64)
    await asyncio.gather(*(client(number, count, gate) for number in range(count)))
asyncio.run(main(int(sys.argv[1])))
print(json.dumps({'ends': ends, 'answers': answers, 'again': again}), flush=True)
";

/// The same of gRPC: a unary call, without a schema.
const GRPC: &str = "
import grpc, sys, time
from concurrent import futures
class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        def answer(request, context):
            time.sleep(3 if request == b'slow' else 0)
            return sys.argv[1].encode()
        return grpc.unary_unary_rpc_method_handler(answer)
server = grpc.server(futures.ThreadPoolExecutor(512), handlers=(Handler(),), options=[('grpc.so_reuseport', 0)])
server.add_insecure_port('0.0.0.0:8080')
server.start()
server.wait_for_termination()
";

/// Channels of their own. After a signal, each is asked again, once.
const CHANNELS: &str = "
import grpc, json, signal, sys
from collections import Counter
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
answers, again, failed, count = Counter(), Counter(), Counter(), int(sys.argv[1])
retry = {'maxAttempts': 3, 'initialBackoff': '0.1s', 'maxBackoff': '1s', 'backoffMultiplier': 2, 'retryableStatusCodes': ['UNAVAILABLE']}
config = json.dumps({'methodConfig': [{'name': [{}], 'retryPolicy': retry}]})
one = [('grpc.use_local_subchannel_pool', 1)] + ([('grpc.service_config', config)] if sys.argv[2] == 'retry' else [])
calls = [grpc.insecure_channel('127.0.0.1:80', options=one).unary_unary('/web/Name') for _ in range(count)]
for call in calls:
    answers[call(b'now').decode()] += 1
slow = [call.future(b'slow') for call in calls[::3]]
print('ready', flush=True)
for call in slow:
    answers[call.result().decode()] += 1
signal.sigwait([signal.SIGUSR1])
for call in calls:
    try:
        again[call(b'now').decode()] += 1
    except grpc.RpcError as error:
        failed[f'{error.code().name}: {error.details()}'] += 1
print(json.dumps({'answers': answers, 'again': again, 'failed': failed}), flush=True)
";

/// A program as backend of `web`.
fn start(stage: &Stage, version: &str, program: &[&str]) -> Result<Process> {
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", version, "--version", version, "--"]);
    stage.host.start(version, command.args(program))
}

/// Clients as a program, when all of them have their first answer.
fn clients(stage: &Stage, program: &str, arguments: &[&str]) -> Result<Process> {
    let mut command = stage.host.command(PYTHON)?;
    let clients = stage.host.start("clients", command.args(["-u", "-c", program]).args(arguments))?;
    wait::until("the clients", || clients.stdout().contains("ready").then_some(()))
        .with_context(|| clients.stderr())?;
    Ok(clients)
}

/// What they say in the end.
fn said(clients: &Process) -> Result<Value> {
    let last = wait::until("the clients' end", || {
        let stdout = clients.stdout();
        stdout.lines().find(|line| line.starts_with('{')).map(str::to_owned)
    });
    Ok(serde_json::from_str(&last.with_context(|| clients.stderr())?)?)
}

/// Deploys the second version, and its words about the connections of the first one.
fn deploy(stage: &Stage, after: &str) -> Result<()> {
    let order = format!("deploy web v2 --close-idle={after} --rate 600/s --drain-timeout 40s");
    let ordered = stage.daemon.order(&order)?.expect(0)?;
    let closed = ordered.stdout.lines().find(|line| line.contains("closed when idle"));
    report::figure("deploy", closed.with_context(|| format!("nothing was closed: {}", ordered.stdout))?.trim());
    Ok(())
}

/// A kept connection by HTTP/1.1, after its first answer; `waits` for a slow one then.
fn open(stage: &Stage, waits: bool) -> Result<TcpStream> {
    let mut stream = stage.host.net().run(|| TcpStream::connect("127.0.0.1:80"))?;
    stream.set_read_timeout(Some(wait::STUCK))?;
    ask(&mut stream, "/")?;
    ensure!(body(&mut stream)?.as_deref() == Some("v1\n"), "another answer");
    if waits {
        ask(&mut stream, SLOW)?;
    }
    Ok(stream)
}

fn ask(stream: &mut TcpStream, path: &str) -> Result<()> {
    Ok(write!(stream, "GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")?)
}

/// The body of an answer, whose length is known; nothing if the server has closed instead.
fn body(stream: &mut TcpStream) -> Result<Option<String>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte)? {
            0 if head.is_empty() => return Ok(None),
            0 => anyhow::bail!("closed within an answer"),
            _ => head.push(byte[0]),
        }
    }
    let mut body = [0; 3];
    stream.read_exact(&mut body)?;
    Ok(Some(String::from_utf8_lossy(&body).into_owned()))
}

/// Kept connections of a server by HTTP/1.1: each request is answered, and each connection ended in the ordinary way.
fn closes(program: impl FnOnce(&Stage) -> Result<Process>, count: usize) -> Result<()> {
    raise_files()?;
    let stage = Stage::without_engine()?;
    let _old = program(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let mut clients =
        (0..count).map(|number| Ok((open(&stage, number % 3 == 0)?, number % 3 == 0))).collect::<Result<Vec<_>>>()?;
    let _new = Exec::new("v2", "web", "80:8080", "[::]:8080").flags(&["--version", "v2"]).start(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    deploy(&stage, "500ms")?;
    for (number, (stream, waits)) in clients.iter_mut().enumerate() {
        if *waits {
            ensure!(body(stream)?.is_some(), "client {number}: closed in place of an answer");
        }
        ensure!(body(stream).with_context(|| format!("client {number}"))?.is_none(), "it said something else");
    }
    Ok(())
}

#[test]
fn servers_with_threads_close_what_is_idle() -> Result<()> {
    require!(tools::root_and(&["ip", "gunicorn"]));
    let count: usize = scale::of(30, 5_000);
    let gunicorn = |stage: &Stage| {
        let dir = stage.host.dir();
        fs::write(dir.join("app.py"), GUNICORN)?;
        let (dir, threads) = (dir.display().to_string(), (count / 3 + 8).to_string());
        let program = ["gunicorn", "--chdir", &dir, "--bind", "0.0.0.0:8080", "--worker-class", "gthread", "--threads"];
        let more = [&threads, "--keep-alive", "600", "--worker-connections", "8000", "--backlog", "4096", "app:app"];
        start(stage, "v1", &[&program[..], &more[..]].concat())
    };
    closes(gunicorn, count)?;
    // To install a JVM takes as long as many tests.
    if scale::is_soak() {
        require!(tools::root_and(&["java"]));
        let jvm = |stage: &Stage| {
            let path = stage.host.dir().join("Server.java");
            fs::write(&path, JVM)?;
            let keeps = "-Dsun.net.httpserver.maxIdleConnections=8000";
            start(stage, "v1", &["java", "-Dsun.net.httpserver.idleInterval=600", keeps, &path.display().to_string()])
        };
        closes(jvm, count)?;
    }
    Ok(())
}

#[test]
fn web_sockets_end_and_come_back_to_the_new_version() -> Result<()> {
    require!(tools::root_and(&["ip", PYTHON]));
    raise_files()?;
    let stage = Stage::without_engine()?;
    let count: usize = scale::of(30, 5_000);
    let _old = start(&stage, "v1", &[PYTHON, "-u", "-c", WEBSOCKET, "v1"])?;
    stage.daemon.wait_ready("web", 1)?;
    let clients = clients(&stage, WEBSOCKETS, &[&count.to_string()])?;
    let _new = start(&stage, "v2", &[PYTHON, "-u", "-c", WEBSOCKET, "v2"])?;
    stage.daemon.wait_ready("web", 2)?;
    deploy(&stage, "500ms")?;
    let said = said(&clients)?;
    report::figure("clients of a WebSocket", &said);
    // An end without a close frame, as the documentation says.
    ensure!(said["ends"]["1006"] == count && said["again"]["v2"] == count, "{said}");
    ensure!(said["answers"]["v1"] == count + count.div_ceil(3), "a request was lost: {said}");
    Ok(())
}

/// Channels of gRPC whose server closes their connections; says what became of the next call on each.
fn channels_again(retries: &str, count: usize) -> Result<Value> {
    raise_files()?;
    let stage = Stage::without_engine()?;
    let _old = start(&stage, "v1", &[PYTHON, "-u", "-c", GRPC, "v1"])?;
    stage.daemon.wait_ready("web", 1)?;
    let clients = clients(&stage, CHANNELS, &[&count.to_string(), retries])?;
    let _new = start(&stage, "v2", &[PYTHON, "-u", "-c", GRPC, "v2"])?;
    stage.daemon.wait_ready("web", 2)?;
    // Longer than the slowest call: a server by HTTP/2 sends frames of its own while it works on one.
    deploy(&stage, "5s")?;
    clients.signal(Signal::USR1)?;
    let said = said(&clients)?;
    report::figure(&format!("channels of gRPC, retries: {retries}"), &said);
    ensure!(said["answers"]["v1"] == count + count.div_ceil(3), "a call was lost: {said}");
    Ok(said)
}

#[test]
fn channels_of_grpc_that_retry_lose_no_call() -> Result<()> {
    require!(tools::root_and(&["ip", PYTHON]));
    let count: usize = scale::of(30, 1_000);
    let said = channels_again("retry", count)?;
    ensure!(said["again"]["v2"] == count && said["failed"] == json!({}), "{said}");
    Ok(())
}

#[test]
fn channels_of_grpc_without_retries_may_lose_the_next_call() -> Result<()> {
    require!(tools::root_and(&["ip", PYTHON]));
    let said = channels_again("none", 30)?;
    // This library looks at its connections during calls only, so the first call finds out for all of them.
    let failed: u64 = said["failed"].as_object().context("an object")?.values().filter_map(Value::as_u64).sum();
    let unavailable =
        said["failed"].as_object().is_some_and(|all| all.keys().all(|key| key.starts_with("UNAVAILABLE")));
    ensure!(unavailable, "{said}");
    ensure!(failed <= 1 && said["again"]["v2"] == 30 - failed, "{said}");
    Ok(())
}
