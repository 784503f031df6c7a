//! Converts answers and events of the Docker API to the values of an engine. No I/O.

use std::collections::BTreeMap;

use super::answers::{Details, Event};
use crate::{
    engine::{Change, Container, Happened, ImageLabels, Sandbox, SandboxState},
    labels,
    text::{NAME_CHARS_MAX, shown},
    world::{Health, Network, Phase},
};

/// Parses the engine's description of a sandbox.
pub fn sandbox(details: Details) -> Option<Sandbox> {
    let state = details.state?;
    let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    let state = match pid {
        Some(pid) => SandboxState::Running(pid),
        None if state.running == Some(false) => SandboxState::Stopped,
        None => return None,
    };
    Some(Sandbox { id: details.id.filter(|id| is_id(id))?, name: name(&details.name.unwrap_or_default()), state })
}

/// Digits of a container's full id.
const ID_DIGITS: usize = 64;

/// Whether a text is the full id of a container, as Docker and Podman make them.
pub fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The name of a container, as it can be shown.
fn name(given: &str) -> String {
    shown(given.trim_start_matches('/'), NAME_CHARS_MAX)
}

/// Parses an event; `None` if it is of no interest.
pub fn happened(engine: &str, event: Event) -> Option<Happened> {
    let action = event.action?;
    let actor = event.actor?;
    let attributes = actor.attributes.unwrap_or_default();
    let at_ns = event.time_nano.filter(|ns| *ns > 0);
    if event.kind.as_deref() == Some("network") {
        return network_changed(&action, actor.id, attributes, at_ns);
    }
    let id = actor.id.filter(|id| is_id(id))?;
    let change = match action.split(':').next()?.trim() {
        "create" => Change::Created,
        "start" => Change::Started,
        // Podman does not report the signal. If the container ends, that has an event of its own.
        "kill" => Change::Signalled(attributes.get("signal").and_then(|s| signal(s))?),
        // Podman says `died` and `remove`.
        "die" | "died" => Change::Died,
        "pause" => Change::Paused,
        "unpause" => Change::Unpaused,
        "rename" => Change::Renamed,
        "destroy" | "remove" => Change::Removed,
        // Docker puts the result after the colon. Podman has a separate field `HealthStatus`. Without either, the container has
        // to be inspected.
        "health_status" => {
            let result = action.split_once(':').map(|(_, result)| result);
            let result = result.or_else(|| attributes.get("health_status").map(String::as_str));
            result.and_then(health_of).map_or(Change::HealthUnknown, Change::Health)
        }
        _ => return None,
    };
    let mine = attributes.keys().any(|key| key.starts_with(labels::PREFIX)).then(|| {
        let created_ms = at_ns.map_or(0, |ns| ns / 1_000_000);
        Box::new(announced(engine, &id, attributes, created_ms))
    });
    Some(Happened { id, change, at_ns, mine })
}

/// Parses an event of a network. Its subject is the network in Docker's events, and the container in Podman's.
fn network_changed(
    action: &str,
    actor: Option<String>,
    mut attributes: BTreeMap<String, String>,
    at_ns: Option<i64>,
) -> Option<Happened> {
    if !matches!(action, "connect" | "disconnect") {
        return None;
    }
    let id = attributes.remove("container").or(actor).filter(|id| is_id(id))?;
    Some(Happened { id, change: Change::NetworkChanged, at_ns, mine: None })
}

fn health_of(word: &str) -> Option<Health> {
    match word.trim() {
        "healthy" => Some(Health::Healthy),
        "unhealthy" => Some(Health::Unhealthy),
        "starting" => Some(Health::Starting),
        _ => None,
    }
}

/// Describes a container by its event alone. The attributes of an event include the labels.
fn announced(engine: &str, id: &str, mut attributes: BTreeMap<String, String>, created_ms: i64) -> Container {
    let name = attributes.remove("name").map_or_else(|| short(id).to_owned(), |given| name(&given));
    let image = attributes.remove("image").unwrap_or_default();
    attributes.retain(|key, _| key.starts_with(labels::PREFIX));
    Container {
        id: id.to_owned(),
        name,
        engine: engine.to_owned(),
        created_ms,
        started_ns: 0,
        labels: attributes,
        image_labels: ImageLabels::default(),
        image,
        image_id: String::new(),
        phase: Phase::Created,
        phase_is_current: true,
        health: Health::Unchecked,
        health_failure: None,
        pid: None,
        network: Network::Unknown,
        joined: None,
        sandbox: None,
        cgroup_parent: String::new(),
        stop_signal: None,
        stop_timeout_s: None,
        is_transient: false,
    }
}

/// Parses the engine's description of a container; `None` if it has no pod-steer label.
pub fn container(engine: &str, details: Details) -> Option<Container> {
    let id = details.id.filter(|id| is_id(id))?;
    let config = details.config.unwrap_or_default();
    let labels = config.labels.unwrap_or_default().0;
    if labels.is_empty() {
        return None;
    }
    let state = details.state.unwrap_or_default();
    let phase = match state.status.as_deref() {
        Some("created") => Phase::Created,
        Some("paused") => Phase::Paused,
        // Podman's word for one that was told to stop, and runs still.
        Some("running" | "stopping") => Phase::Running,
        _ if state.running == Some(true) => Phase::Running,
        _ if state.started_at.as_deref().is_none_or(|at| at.starts_with("0001-")) => Phase::Created,
        _ => Phase::Exited,
    };
    let checks = state.health.unwrap_or_default();
    let health = checks.status.as_deref().and_then(health_of).unwrap_or(Health::Unchecked);
    // The newest result is the last one. A result that passed has an event of its own.
    let last = checks.log.unwrap_or_default().0.filter(|last| last.exit_code != Some(0));
    let health_failure = last.filter(|_| health == Health::Unhealthy).map(|last| {
        super::failure::describe(last.exit_code.unwrap_or_default(), last.output.as_deref().unwrap_or_default())
    });
    let host = details.host_config.unwrap_or_default();
    Some(Container {
        name: name(&details.name.unwrap_or_default()),
        engine: engine.to_owned(),
        created_ms: details.created.as_deref().and_then(unix_milliseconds).unwrap_or_default(),
        started_ns: state.started_at.as_deref().and_then(unix_nanoseconds).unwrap_or_default().max(0),
        labels,
        image_labels: ImageLabels::default(),
        image: config.image.unwrap_or_default(),
        image_id: details.image.unwrap_or_default(),
        phase,
        phase_is_current: true,
        health,
        health_failure,
        pid: state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
        network: network(host.network_mode.as_deref().unwrap_or_default()),
        joined: host.network_mode.as_deref().and_then(|mode| mode.strip_prefix("container:")).map(str::to_owned),
        sandbox: None,
        cgroup_parent: host.cgroup_parent.unwrap_or_default(),
        stop_signal: config.stop_signal.as_deref().and_then(signal),
        stop_timeout_s: config.stop_timeout,
        is_transient: host.auto_remove.unwrap_or_default(),
        id,
    })
}

fn network(mode: &str) -> Network {
    match mode.split(':').next().unwrap_or_default() {
        "host" => Network::Host,
        "container" | "ns" => Network::Joined,
        _ => Network::Own,
    }
}

/// The number of a signal that an engine names: `15`, `TERM`, `SIGTERM`, `sigterm`, `SIGRTMIN+3`, `RTMAX-1`.
fn signal(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |base: i32, offset: &str| match offset {
        "" => Some(base),
        offset => {
            let number = base.checked_add(offset.parse().ok()?)?;
            (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
        }
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(SIGRTMIN, offset.strip_prefix('+').unwrap_or(offset));
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(SIGRTMAX, offset);
    }
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The first real-time signal that C libraries leave to programs, and the last one.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

const SIGNALS: [(&str, i32); 32] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Seconds since 1970 of a time as engines write it (RFC 3339, any zone).
pub fn unix_seconds(time: &str) -> Option<i64> {
    unix_milliseconds(time).map(|ms| ms.div_euclid(1000))
}

/// Milliseconds since 1970 of a time as engines write it (RFC 3339, any zone).
fn unix_milliseconds(time: &str) -> Option<i64> {
    time.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

/// Nanoseconds since 1970 of a time as engines write it (RFC 3339, any zone). Engines have a year 1 for a time that was never.
fn unix_nanoseconds(time: &str) -> Option<i64> {
    i64::try_from(time.parse::<jiff::Timestamp>().ok()?.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests;
