use std::{path::PathBuf, time::Duration};

use super::*;
use crate::{
    api::{Ask, OrderError},
    api::{
        tests::{Served, operation},
        types::OperationStatus,
    },
    cli::args::SocketArgs,
    rollout::{End, Phase, Step},
};

fn service(name: &str, socket: &Path) -> ServiceArgs {
    ServiceArgs { socket: SocketArgs { socket: socket.to_owned() }, service: name.to_owned() }
}

fn status(operation: Operation) -> OperationStatus {
    OperationStatus {
        operation,
        ready: 1,
        wanted: 3,
        left: 0,
        held: 0,
        waiting_for: "2 more ready backends of v2".into(),
    }
}

fn step(name: &str) -> Step {
    Step { name: name.into(), took_us: 400, detail: String::new() }
}

/// A daemon that completes one step with each request and ends with this outcome.
fn stepping(order: Order, outcome: Outcome) -> impl FnMut(Ask) + Send + 'static {
    let mut asked = 0;
    move |ask| match ask {
        Ask::Order(ask) => drop(ask.answer.send(match ask.service.as_str() {
            "web" => Ok(operation("web", &ask.who, ask.order)),
            "held" => Err(OrderError::Held("deploy v2 of web goes on; by root".into())),
            name => Err(OrderError::Input(format!("there is no service `{name}`; there are web, held"))),
        })),
        Ask::Operation(1, answer) => {
            asked += 1;
            let mut operation = operation("web", "root", order.clone());
            operation.steps = ["ready", "switched"].map(step).into_iter().take(asked - 1).collect();
            if asked > 3 {
                operation.phase = Phase::Ended;
                operation.end = Some(End { outcome, at_ms: 1, message: "v2 has it all".into() });
            }
            drop(answer.send(Some(status(operation))));
        }
        _ => {}
    }
}

fn code(ended: &Ended) -> u8 {
    match ended {
        Ok(()) => 0,
        Err(Failure::Said(code)) => *code,
        Err(Failure::Input(_)) => 2,
        Err(Failure::Failed(_)) => 1,
    }
}

fn text(ended: &Ended) -> String {
    match ended {
        Err(Failure::Failed(error)) => error.to_string(),
        Err(Failure::Input(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}

#[test]
fn an_end_is_an_exit_code() {
    let outcomes =
        [(Outcome::Done, 0), (Outcome::Left, 3), (Outcome::Failed, 1), (Outcome::WentBack, 1), (Outcome::Aborted, 1)];
    for (outcome, expected) in outcomes {
        let served = Served::start(&format!("end-{outcome:?}"), stepping(Order::Rollback, outcome));
        for output in [OutputFormat::Text, OutputFormat::Json] {
            let ended = carry_out(&service("web", &served.socket), &Order::Rollback, output, false);
            assert_eq!(code(&ended), expected, "{outcome:?}: {ended:?}");
        }
    }
}

#[test]
fn refusals_have_different_exit_codes() {
    let served = Served::start("refusals", stepping(Order::Rollback, Outcome::Done));
    let held = plain(&service("held", &served.socket), &Order::Pause(Default::default()));
    assert!(code(&held) == 1 && text(&held).contains("by root"), "{held:?}");
    let unknown = plain(&service("nope", &served.socket), &Order::Pause(Default::default()));
    assert!(code(&unknown) == 2 && text(&unknown).contains("`nope`; there are web"), "{unknown:?}");
    let no_name = plain(&service("two words/..", &served.socket), &Order::Pause(Default::default()));
    assert!(code(&no_name) == 2 && text(&no_name).contains("\"two words/..\" is refused"), "{no_name:?}");
    let detached = carry_out(&service("web", &served.socket), &Order::Rollback, OutputFormat::Text, true);
    assert_eq!(code(&detached), 0);
    let no_daemon = plain(&service("web", &PathBuf::from("/none/api.sock")), &Order::Pause(Default::default()));
    assert!(code(&no_daemon) == 1 && text(&no_daemon).contains("/none/api.sock"), "{no_daemon:?}");
}

#[test]
fn the_daemon_may_restart_meanwhile() {
    let silent = |ask: Ask| match ask {
        Ask::Order(ask) => drop(ask.answer.send(Ok(operation("web", &ask.who, ask.order)))),
        Ask::Operation(_, answer) => {
            drop(answer.send(Some(status(operation("web", "", Order::Pause(Default::default()))))))
        }
        _ => {}
    };
    let first = Served::start("restart", silent);
    let socket = first.socket.clone();
    let args = service("web", &socket);
    let following = std::thread::spawn(move || plain(&args, &Order::Pause(Default::default())));
    std::thread::sleep(Duration::from_millis(300));
    drop(first);
    std::thread::sleep(Duration::from_millis(600));
    assert!(!following.is_finished(), "the client waits for the daemon");
    let _second = Served::start_at(&socket, stepping(Order::Pause(Default::default()), Outcome::Left));
    assert_eq!(code(&following.join().unwrap()), 3);
}

#[test]
fn an_operation_that_the_daemon_does_not_know() {
    let forgetful = |ask: Ask| match ask {
        Ask::Order(ask) => drop(ask.answer.send(Ok(operation("web", &ask.who, ask.order)))),
        Ask::Operation(_, answer) => drop(answer.send(None)),
        _ => {}
    };
    let served = Served::start("forgetful", forgetful);
    let ended = plain(&service("web", &served.socket), &Order::Pause(Default::default()));
    assert!(code(&ended) == 1 && text(&ended).contains("pod-steer status"), "{ended:?}");
}
