//! Tests of the API as it is served, with a loop that gives canned answers.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::{client::ClientError, *};
use crate::rollout::{Operation, Order, Phase, Traffic};

/// A served API in a thread of its own, until it is dropped.
pub(crate) struct Served {
    pub(crate) socket: PathBuf,
    pub(crate) events: broadcast::Sender<EventRecord>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// `answers` is the daemon's loop.
    pub(crate) fn start(name: &str, answers: impl FnMut(Ask) + Send + 'static) -> Self {
        let socket = std::env::temp_dir().join(format!("pod-steer-api-{}-{name}.sock", std::process::id()));
        Self::start_at(&socket, answers)
    }

    pub(crate) fn start_at(socket: &Path, mut answers: impl FnMut(Ask) + Send + 'static) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (asks, mut queue) = mpsc::channel(8);
        let (events, _) = broadcast::channel(8);
        let shared = Shared::new(asks, events.clone(), Access::default());
        let (end, ended) = oneshot::channel();
        let daemon = async move {
            let (_never, asked_to_end) = oneshot::channel();
            let work = async {
                while let Some(ask) = queue.recv().await {
                    answers(ask);
                }
            };
            tokio::select! {
                () = serve(UnixListener::from_std(listener).unwrap(), None, shared, asked_to_end) => {}
                () = work => {}
                _ = ended => {}
            }
        };
        let thread = std::thread::spawn(|| block_on(daemon));
        Self { socket: socket.to_owned(), events, end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// An operation as it begins.
pub(crate) fn operation(service: &str, who: &str, order: Order) -> Operation {
    Operation {
        id: 1,
        service: service.to_owned(),
        who: who.to_owned(),
        begun_ms: 0,
        order,
        before: Traffic::default(),
        undrained: Default::default(),
        recreation: None,
        phase: Phase::Waiting { since_ms: 0, deadline_ms: i64::MAX, backends: 1 },
        steps: Vec::new(),
        end: None,
        not_stored: None,
    }
}

/// Answers an order by the name of its service.
fn by_service(ask: Ask) {
    match ask {
        Ask::Order(ask) => drop(ask.answer.send(match ask.service.as_str() {
            "nope" => Err(OrderError::Input("no service `nope`".into())),
            "held" => Err(OrderError::Held("deploy v2 goes on; by root".into())),
            "failed" => Err(OrderError::Failed("the kernel did not take it".into())),
            service => Ok(operation(service, &ask.who, ask.order)),
        })),
        Ask::Operation(_, answer) => drop(answer.send(None)),
        Ask::History(service, answer) => {
            drop(answer.send(Ok(vec![operation(
                service.as_deref().unwrap_or("all"),
                "",
                Order::Pause(Default::default()),
            )])));
        }
        // A dropped reply channel means that the daemon exits.
        _ => {}
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn raw(socket: &Path, method: &str, path: &str, accept: &str) -> hyper::Response<hyper::body::Incoming> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(UnixStream::connect(socket).await.unwrap())).await.unwrap();
    tokio::spawn(connection);
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
    let request = Request::builder().method(method).uri(path).header("host", "x").header("accept", accept);
    sender.send_request(request.body(Full::new(bytes::Bytes::new())).unwrap()).await.unwrap()
}

#[test]
fn each_refusal_has_its_status() {
    let served = Served::start("orders", by_service);
    let order = |service: &str| {
        let path = format!("/v1/services/{}/orders", client::encoded(service));
        block_on(client::post::<Operation>(&served.socket, &path, &Order::Rollback))
    };
    let done = order("web").unwrap();
    assert_eq!((done.service.as_str(), &done.order), ("web", &Order::Rollback));
    let pid = std::process::id();
    assert!(done.who.contains(&format!("pid {pid})")) && done.who.contains("uid "), "{}", done.who);
    for (name, said) in
        [("nope", "`nope`"), ("two words", "\"two words\" is refused"), ("a\x1b[2J/..", "\\u{1b}[2J/..")]
    {
        let input = order(name).unwrap_err();
        assert!(input.is_bad_input() && input.to_string().contains(said), "{input}");
    }
    let held = order("held").unwrap_err();
    assert!(matches!(&held, ClientError::Failed(text) if text.contains("by root")), "{held}");
    assert!(matches!(order("failed").unwrap_err(), ClientError::Failed(_)));
    let get = |path: &str| block_on(client::get::<Value>(&served.socket, path));
    assert_eq!(get("/v1/history").unwrap()[0]["service"], "all");
    assert_eq!(get("/v1/history?service=a%20b").unwrap()[0]["service"], "a b");
    for path in ["/v1/operations/7", "/v1/operations/x"] {
        let error = get(path).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("there is no operation"), "{error}");
    }
    assert!(get("/v1/nonsense").unwrap_err().to_string().contains("another release"));
    assert!(get("/v1/status").unwrap_err().may_pass());
}

#[test]
fn events_are_json_lines_or_server_sent_events() {
    let served = Served::start("events", by_service);
    block_on(async {
        for (accept, kind) in [("*/*", "application/x-ndjson"), ("text/event-stream", "text/event-stream")] {
            let response = raw(&served.socket, "get", "/v1/events", accept).await;
            assert_eq!(response.headers()["content-type"], kind);
            let record = EventRecord {
                time: "now".into(),
                service: "web".into(),
                backend: String::new(),
                event: "ready".into(),
                reason: None,
                detail: "a\nb".into(),
            };
            served.events.send(record.clone()).unwrap();
            let mut body = response.into_body();
            let frame = timeout(Duration::from_secs(10), body.frame()).await.unwrap().unwrap().unwrap();
            let text = String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap();
            let data = if accept == "*/*" {
                text.as_str()
            } else {
                assert!(
                    text.contains("id: 1\n") && text.contains("event: ready\n") && text.ends_with("\n\n"),
                    "{text}"
                );
                text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap()
            };
            assert_eq!(serde_json::from_str::<EventRecord>(data).unwrap(), record);
        }
    });
}

#[test]
fn the_document_and_the_router_agree() {
    let document: Value = serde_json::from_str(openapi::document()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let described: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())))
        .collect();
    let expected = [
        ("get", "/v1/status"),
        ("get", "/v1/live"),
        ("get", "/v1/sockets"),
        ("get", "/v1/metrics"),
        ("get", "/v1/events"),
        ("post", "/v1/services/{service}/orders"),
        ("get", "/v1/operations/{id}"),
        ("get", "/v1/history"),
        ("post", "/v1/exec"),
        ("post", "/v1/register"),
        ("post", "/v1/unload"),
        ("get", "/v1/openapi.json"),
        ("get", "/"),
    ];
    assert_eq!(described, expected.map(|(method, path)| (method.to_owned(), path.to_owned())).into());
    // The router serves what is described, by that method and no other.
    let served = Served::start("document", by_service);
    for (method, path) in &described {
        let path = path.replace("{service}", "web").replace("{id}", "1");
        let status = |method: &str| block_on(raw(&served.socket, method, &path, "*/*")).status().as_u16();
        assert_ne!(status(method), 405, "{method} {path}");
        assert_eq!(status("delete"), 405, "delete {path}");
    }
    let from_api = block_on(client::get::<Value>(&served.socket, "/v1/openapi.json")).unwrap();
    assert_eq!(from_api, document);
    // All references resolve.
    let text = openapi::document();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
    for name in ["Order", "Operation", "OperationStatus", "Status", "Decision", "EventRecord", "ErrorBody"] {
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[test]
fn every_refusal_is_one_line_of_json() {
    let served = Served::start("refusals", by_service);
    for (method, path, status) in [
        ("get", "/v1/operations/%FF", 400),
        ("post", "/v1/services/%FF/orders", 400),
        ("get", "/v1/history?service=a&service=b", 400),
        ("get", "/v1/history?servce=a", 400),
        ("delete", "/v1/status", 405),
        ("get", "/v1/nonsense", 404),
    ] {
        let (answered, body) = block_on(async {
            let response = raw(&served.socket, method, path, "*/*").await;
            (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes())
        });
        assert_eq!(answered, status, "{method} {path}");
        let error = serde_json::from_slice::<ErrorBody>(&body).expect(path).error;
        assert_eq!(error.lines().count(), 1, "{method} {path}: {error}");
    }
}
