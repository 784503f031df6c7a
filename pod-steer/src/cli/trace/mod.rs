//! `pod-steer trace`: decisions as they happen. `kernel/trace.rs` attaches the programs that report them, and `decision` writes each.

mod decision;

use std::{
    io,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use pod_steer_ebpf::TRACE_REASONS;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    time::{ClockId, Timespec, clock_gettime},
};

use super::{
    Failure, Outcome,
    args::trace::TraceArgs,
    explain::Names,
    print,
    steered::{Steered, check_state},
    terminal::{note, warn},
};
use crate::{
    clock,
    ids::{BackendIndex, NetnsCookie, ServiceIndex},
    kernel::{
        KernelError,
        trace::{Tracer, Wanted, forwarding},
    },
    links,
};
use decision::Decision;

/// The names of services and backends are read again after this time: an index may have become another's.
const NAMES_KEPT: Duration = Duration::from_secs(1);
/// So often it is looked how many decisions were lost, and whether the namespace is still steered as it was.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// So many decisions are printed at once, at most.
const BATCH_MAX: u64 = 256;
/// So many names are listed in an error.
const LISTED_MAX: usize = 20;

/// Prints decisions until it is interrupted, has printed enough, or has no reader any more.
pub(super) fn trace(args: &TraceArgs) -> Outcome {
    let dir = &args.bpffs;
    check_state(dir)?;
    let wanted = wanted(args, &Names::noted(dir).map_err(unreadable)?).map_err(Failure::Input)?;
    let steered = Steered::open(dir, args.namespace.as_deref())?;
    let netns = steered.netns;
    let tracer = steered.run(|| {
        let devices = links::devices()?;
        Ok(Tracer::attach(dir, &steered.ns, netns.cookie, &devices, wanted))
    })?;
    let tracer = tracer.map_err(|error| Failure::Failed(error.into()))?;
    begin(dir, netns.cookie);
    follow(args, tracer)
}

/// Tells that the programs are attached, and which decisions they do not see.
fn begin(dir: &Path, netns: NetnsCookie) {
    match forwarding(dir, netns) {
        (true, true) => note("connections to containers with via=peer are not seen"),
        (true, false) => note("connections that are forwarded to containers are not seen: that needs Linux 6.6"),
        _ => {}
    }
    note("tracing new connections; Ctrl-C ends it");
}

fn follow(args: &TraceArgs, mut tracer: Tracer) -> Outcome {
    let (mut left, mut lost) = (args.count.unwrap_or(u64::MAX), 0);
    let mut names = Names::default();
    let mut read: Option<Instant> = None;
    loop {
        let mut lines = String::new();
        for _ in 0..left.min(BATCH_MAX) {
            let Some(traced) = tracer.take() else { break };
            if read.is_none_or(|read| read.elapsed() > NAMES_KEPT) {
                names = match Names::noted(&args.bpffs) {
                    // The state is unloaded.
                    Err(_) if !tracer.is_behind() => return Err(no_longer()),
                    noted => noted.map_err(unreadable)?,
                };
                read = Some(Instant::now());
            }
            let decision = Decision::new(&traced, &names, wall_ms(traced.time_ns));
            if args.json {
                lines += &serde_json::to_string(&decision)?;
                lines.push('\n');
            } else {
                lines += &decision.line();
            }
            left -= 1;
        }
        let now = tracer.lost();
        if now != lost {
            warn(&format!("{} decisions were lost: they came faster than they were printed", now - lost));
            if args.json {
                lines += &format!("{{\"lost\":{}}}\n", now - lost);
            }
            lost = now;
        }
        let is_idle = lines.is_empty();
        print(&lines)?;
        if is_idle && !tracer.is_behind() {
            return Err(no_longer());
        }
        if left == 0 || is_idle && !wait(&tracer)? {
            return Ok(());
        }
    }
}

/// Waits for a decision; not for long, since lost ones wake nothing. False if standard output has no reader any more.
fn wait(tracer: &Tracer) -> io::Result<bool> {
    let stdout = io::stdout();
    let (ring, stdout) = (tracer.as_fd(), stdout.as_fd());
    // An error or a hang-up is reported without being asked for.
    let mut fds = [PollFd::new(&ring, PollFlags::IN), PollFd::new(&stdout, PollFlags::empty())];
    match poll(&mut fds, Some(&LOOK_EVERY)) {
        Ok(_) | Err(Errno::INTR) => Ok(!fds[1].revents().intersects(PollFlags::ERR | PollFlags::HUP)),
        Err(errno) => Err(errno.into()),
    }
}

/// The wall clock's time of a time by the kernel's monotonic clock.
fn wall_ms(monotonic_ns: u64) -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns = now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec);
    clock::wall_ms() - now_ns.saturating_sub_unsigned(monotonic_ns) / 1_000_000
}

/// What the arguments ask for, by the names of services and backends.
fn wanted(args: &TraceArgs, names: &Names) -> Result<Wanted, String> {
    let service = args.service.as_deref().map(|wanted| {
        let found = names.services.iter().find(|(_, name)| *name == wanted).map(|(index, _)| ServiceIndex(*index));
        found.ok_or_else(|| unknown("service", wanted, names.services.values()))
    });
    let service = service.transpose()?;
    let backend = args.backend.as_deref().map(|wanted| {
        let own = |service: &str| args.service.as_deref().is_none_or(|only| only == service);
        let backends = || names.backends.iter().filter(|(_, backend)| own(&backend.service));
        // The newest one, if there are several: its index was given last.
        let found = backends().filter(|(_, backend)| backend.name == wanted).map(|(index, _)| *index).max();
        let known = backends().map(|(_, backend)| &backend.name);
        found.map(BackendIndex).ok_or_else(|| unknown("backend", wanted, known))
    });
    let bits = args.reason.iter().filter_map(|name| TRACE_REASONS.iter().position(|known| known == name));
    let reasons = bits.fold(0, |bits, bit| bits | 1 << bit);
    Ok(Wanted { service, backend: backend.transpose()?, reasons: if reasons == 0 { u32::MAX } else { reasons } })
}

fn unknown<'a>(what: &str, wanted: &str, known: impl Iterator<Item = &'a String>) -> String {
    let mut known: Vec<&str> = known.map(String::as_str).collect();
    known.sort_unstable();
    known.dedup();
    let more = known.len().saturating_sub(LISTED_MAX);
    known.truncate(LISTED_MAX);
    let list = match (&known[..], more) {
        ([], _) => "there is none".to_owned(),
        (known, 0) => format!("there are: {}", known.join(", ")),
        (known, more) => format!("there are: {} and {more} more", known.join(", ")),
    };
    format!("there is no {what} `{wanted}`; {list}")
}

fn no_longer() -> Failure {
    Failure::Failed(anyhow!(
        "connections of this network namespace are no longer steered, or by another program than before; start it again"
    ))
}

fn unreadable(error: KernelError) -> Failure {
    Failure::Input(crate::chain(&error))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{
        super::{
            args::{Cli, Command},
            explain::Backend,
        },
        *,
    };

    fn args(line: &str) -> TraceArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Trace(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn names() -> Names {
        let mut names = Names::default();
        for (index, name) in [(1, "web"), (2, "api")] {
            names.services.insert(index, name.to_owned());
            let backend = |version: &str| Backend {
                name: format!("{name}-1"),
                version: version.to_owned(),
                service: name.to_owned(),
                state: None,
            };
            names.backends.insert(10 * index, backend("v1"));
        }
        names
    }

    #[test]
    fn names_are_looked_up() {
        let wanted = |line: &str| wanted(&args(line), &names());
        let all = wanted("pod-steer trace").unwrap();
        assert!(all.service.is_none() && all.backend.is_none() && all.reasons == u32::MAX);
        let one = wanted("pod-steer trace --service web --backend web-1 --reason paused --reason steered").unwrap();
        assert_eq!((one.service, one.backend, one.reasons), (Some(ServiceIndex(1)), Some(BackendIndex(10)), 5));
        assert_eq!(wanted("pod-steer trace --service x").unwrap_err(), "there is no service `x`; there are: api, web");
        assert_eq!(
            wanted("pod-steer trace --service web --backend api-1").unwrap_err(),
            "there is no backend `api-1`; there are: web-1"
        );
        assert_eq!(unknown("service", "x", [].iter()), "there is no service `x`; there is none");
        let many: Vec<String> = (0..25).map(|number| format!("s{number:02}")).collect();
        assert!(unknown("service", "x", many.iter()).ends_with("s18, s19 and 5 more"));
    }
}
