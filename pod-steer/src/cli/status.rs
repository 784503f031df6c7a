//! `pod-steer status`

use std::fmt::Write as _;

use super::{
    Failure, Outcome,
    args::{StatusArgs, StatusFormat},
    block_on, decisions, print,
    table::{self, Cell},
    terminal,
};
use crate::{
    api::{
        client,
        types::{BackendStatus, ServiceStatus, Status, SubjectCondition},
    },
    condition::Severity,
    near, ports,
    world::State,
};

pub(super) fn status(args: &StatusArgs) -> Outcome {
    let mut status: Status = block_on(async { Ok(client::get(&args.socket.socket, "/v1/status").await?) })?;
    if let Some(service) = &args.service {
        only(&mut status, service).map_err(Failure::Input)?;
    }
    let colours = terminal::colours(&std::io::stdout());
    match args.output {
        StatusFormat::Json => print(&format!("{}\n", serde_json::to_string_pretty(&status)?)),
        StatusFormat::Table => print(&render(&status, false, colours, terminal::columns())),
        StatusFormat::Wide => print(&render(&status, true, colours, None)),
    }
}

/// Removes all other services and their conditions.
fn only(status: &mut Status, service: &str) -> Result<(), String> {
    let names: Vec<&str> = status.services.iter().map(|service| service.name.as_str()).collect();
    if !names.contains(&service) {
        return Err(near::no_service(service, &names));
    }
    let others: Vec<String> = status
        .services
        .iter()
        .filter(|other| other.name != service)
        .flat_map(|other| other.backends.iter().map(|backend| format!("backend {} of {}", backend.name, other.name)))
        .collect();
    // A service may have a condition and no backend.
    let own = format!("service {service}");
    let is_others = |subject: &String| others.contains(subject) || subject.starts_with("service ") && *subject != own;
    status.conditions.retain(|of| !is_others(&of.subject));
    status.services.retain(|other| other.name == service);
    Ok(())
}

fn render(status: &Status, wide: bool, colours: bool, columns: Option<usize>) -> String {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let width = columns.unwrap_or(usize::MAX);
    let mut text = first(status, colours, width);
    text.push_str(&under_way(status, now_ms, width));
    text.push('\n');
    if status.services.is_empty() {
        text.push_str("no services; label a container with pod-steer.service, or try `pod-steer exec`\n");
    } else {
        let mut head = vec!["SERVICE", "VERSION", "BACKEND", "SHARE", "OPENED", "LIVE", "STATE"];
        if wide {
            head.extend(["SERVED", "WEIGHT", "SOCKETS", "STEERED", "CLOSED", "MOVED-IN", "MOVED-OUT"]);
            head.extend(["KIND", "ID", "PORTS", "NAMESPACE", "BRIDGE", "ADDRESS"]);
        }
        let rows: Vec<_> = status
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(move |backend| row(service, backend, wide)))
            .collect();
        text.push_str(&table::render(&head, &rows, colours, columns));
    }
    let mut below = String::new();
    for service in &status.services {
        below.push_str(&decisions::lines(service, width));
        for line in reasons(service) {
            let _ = writeln!(below, "{line}");
        }
    }
    if !below.is_empty() {
        let _ = write!(text, "\n{below}");
    }
    if wide {
        for (number, of) in conditions(status, Severity::Info).enumerate() {
            if number == 0 {
                text.push_str("\nfeatures that backends lack\n");
            }
            text.push_str(&condition(of, width));
        }
    }
    text
}

fn conditions(status: &Status, severity: Severity) -> impl Iterator<Item = &SubjectCondition> {
    status.conditions.iter().filter(move |of| of.condition.severity == severity)
}

/// What is wrong and what to do about it, or that nothing is.
fn first(status: &Status, colours: bool, columns: usize) -> String {
    let count = conditions(status, Severity::Warning).count();
    if count == 0 {
        let backends = status.services.iter().flat_map(|service| &service.backends);
        let ready = backends.clone().filter(|backend| backend.state.could_serve()).count();
        return format!("no conditions; {ready} of {} backends can serve\n", backends.count());
    }
    let title = if count == 1 { "1 condition".to_owned() } else { format!("{count} conditions") };
    let mut text = if colours { format!("\x1b[1;33m{title}\x1b[0m\n") } else { format!("{title}\n") };
    conditions(status, Severity::Warning).for_each(|of| text.push_str(&condition(of, columns)));
    text
}

fn condition(SubjectCondition { subject, condition }: &SubjectCondition, columns: usize) -> String {
    let lines = table::wrapped("    ", &format!("{subject}: {condition}"), columns);
    // Only continuation lines are indented further.
    lines.strip_prefix("  ").unwrap_or(&lines).to_owned()
}

/// The operations that are under way.
fn under_way(status: &Status, now_ms: i64, columns: usize) -> String {
    status.services.iter().map(|service| decisions::operation(service, now_ms, columns)).collect()
}

/// Formats a fraction as percent.
fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

fn row(service: &ServiceStatus, backend: &BackendStatus, wide: bool) -> Vec<Cell> {
    let state =
        serde_json::to_value(backend.state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let colour = match backend.state {
        State::Ready => "32",
        State::Unhealthy | State::NotSteered | State::NotListening => "1;31",
        State::Stopping | State::Paused | State::Starting => "33",
        State::Created | State::Exited | State::Standby | State::Drained => "2",
    };
    let mut cells = vec![
        Cell::name(&service.name),
        Cell::name(&backend.version),
        Cell::name(&backend.name),
        Cell::number(percent(backend.share)),
        Cell::number(backend.opened),
        Cell::number(backend.live),
        Cell::text(state).coloured(colour),
    ];
    if wide {
        let namespaces: Vec<&str> = service.namespaces.iter().map(|namespace| namespace.id.as_str()).collect();
        let maps = ports::parse(&service.ports.join(",")).map(|maps| ports::compact(&maps));
        cells.extend([
            Cell::number(percent(backend.served)),
            Cell::number(backend.weight),
            Cell::number(backend.sockets),
            Cell::number(backend.steered),
            Cell::number(backend.closed),
            Cell::number(backend.moved_in),
            Cell::number(backend.moved_out),
            Cell::text(&backend.kind),
            Cell::text(backend.id.chars().take(12).collect::<String>()),
            Cell::text(maps.unwrap_or_else(|_| service.ports.join(","))),
            Cell::text(namespaces.join(",")),
            Cell::text(backend.bridge.as_ref().map_or("", |bridge| bridge.name.as_str())),
            Cell::text(backend.bridge.as_ref().map(|bridge| bridge.addresses.join(",")).unwrap_or_default()),
        ]);
    }
    cells
}

/// Lookups that did not find a socket at once, by reason.
pub(super) fn reasons(service: &ServiceStatus) -> Vec<String> {
    let counters = &service.counters;
    let all = [
        (counters.refused_no_backend, "refused: no backend could serve"),
        (counters.passed_no_backend, "passed to the kernel's own lookup: no backend could serve"),
        (
            counters.passed_no_daemon,
            "passed to the kernel's own lookup: no backend could serve and no daemon was running",
        ),
        (counters.stale_slots, "slots skipped: their socket had closed; the next one was tried in the same lookup"),
        (counters.assign_eafnosupport, "slots skipped: an IPv6-only socket and an IPv4 client"),
        (counters.assign_esocktnosupport, "slots skipped: the socket no longer listened"),
        (counters.assign_eprototype, "slots skipped: the socket speaks another protocol"),
        (counters.assign_eexist, "lookups decided by another BPF program"),
        (counters.paused, "held (the client retries): the service was paused"),
        (counters.network_no_backend, "chosen by weight instead of by network: the network's version had no backend"),
        (counters.assign_other, "slots skipped for another reason"),
        (counters.not_forwarded, "slots skipped: the packet came by a device from which nothing is forwarded"),
        (counters.no_destination, "slots skipped: the backend has no address of the client's family"),
        (counters.flows_full, "connections that other packets may evict: the map of flows was full"),
        (counters.not_rewritten, "packets dropped: the kernel had no memory to rewrite them"),
        (counters.ports_exhausted, "SYNs dropped: every source port that the client could get was in use"),
        (counters.adopted, "connections found again by their server's socket"),
        (
            counters.adopt_limited,
            "packets of unknown connections for which no server was looked for: there were too many",
        ),
    ];
    all.into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{}: {count} {why}", service.name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::{Condition, Reason};

    fn status() -> Status {
        let of = |subject: &str, condition| SubjectCondition { subject: subject.to_owned(), condition };
        let waits = "no version that has a share has a backend left, and by the policy `manual` the others wait";
        let conditions = vec![
            of("service web", Condition::new(Reason::VersionWaits, waits, "deploy one of them")),
            of("backend a of web", Condition::without_remedy(Reason::PortWithoutListener, "it does not listen on 81")),
            of("backend b of api", Condition::new(Reason::NoCgroup, "it has no cgroup of its own", "restart it")),
            of("service api", Condition::without_remedy(Reason::ChangeRefused, "a map is full")),
            of("engine /run/docker.sock", Condition::without_remedy(Reason::EngineUnreachable, "cannot be reached")),
        ];
        Status { version: String::new(), pid: 1, services: Vec::new(), conditions }
    }

    #[test]
    fn a_condition_is_a_line_with_its_subject() {
        let parts = |wide, columns| {
            let text = render(&status(), wide, false, columns);
            text.split("\n\n").map(str::to_owned).collect::<Vec<String>>()
        };
        let waits = "service web: no version that has a share has a backend left, and by the policy `manual` the others wait; deploy \
                     one of them";
        let others = "  backend b of api: it has no cgroup of its own; restart it\n  service api: a map is full\n  \
                      engine /run/docker.sock: cannot be reached\n";
        let before = |lines: &str| format!("4 conditions\n  {lines}\n{others}").trim_end().to_owned();
        assert_eq!(parts(false, Some(200))[0], before(waits));
        let narrow = "service web: no version that has a share has a backend left, and by the\n    \
                      policy `manual` the others wait; deploy one of them";
        assert_eq!(parts(false, Some(80))[0], before(narrow));
        assert_eq!(parts(true, None)[0], before(waits));
        let info = "features that backends lack\n  backend a of web: it does not listen on 81\n";
        assert_eq!((parts(true, None).last().unwrap().as_str(), parts(false, None).len()), (info, 2));
        let healthy = Status { conditions: Vec::new(), ..status() };
        assert!(render(&healthy, false, false, None).starts_with("no conditions; 0 of 0 backends can serve\n\n"));
    }

    #[test]
    fn conditions_of_other_services_are_left_out() {
        let mut status = status();
        let service = |name: &str, backend: &str| -> ServiceStatus {
            let json = serde_json::json!({
                "name": name, "ports": [], "namespaces": [], "counters": crate::api::types::ServiceCountersStatus::default(),
                "backends": [{
                    "id": backend, "name": backend, "kind": "exec", "engine": null, "version": "v1", "weight": 1, "state": "ready",
                    "sockets": 1, "steered": 0, "opened": 0, "closed": 0, "live": 0, "moved_in": 0, "moved_out": 0,
                    "moved_half_open": 0, "not_moved": 0, "share": 0.0,
                }],
            });
            serde_json::from_value(json).unwrap()
        };
        status.services = vec![service("web", "a"), service("api", "b")];
        let of_none = Condition::without_remedy(Reason::ChangeRefused, "a map is full");
        status.conditions.push(SubjectCondition { subject: "service old".to_owned(), condition: of_none });
        only(&mut status, "web").unwrap();
        let subjects: Vec<&str> = status.conditions.iter().map(|of| of.subject.as_str()).collect();
        assert_eq!(subjects, ["service web", "backend a of web", "engine /run/docker.sock"]);
        assert_eq!(status.services.len(), 1);
    }
}
