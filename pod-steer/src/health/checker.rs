//! Probes one backend periodically and reports changes of its health.

use std::{fs::File, io, sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{CheckKind, CheckSpec, Outcome, Target, Threshold, Way, probe};
use crate::{
    duration,
    engine::{self, Commands},
    kernel::Probes,
    netns::Netns,
    process_set::{ProcessSet, open_netns},
    sys,
    world::Health,
};

/// The error of a check whose kind does not fit its subject. No code creates such a check.
const NOTHING: &str = "the check has nothing to probe";

/// A check and its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// How.
    pub spec: CheckSpec,
    /// What.
    pub subject: Subject,
}

/// What is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A socket.
    Socket {
        /// The socket.
        target: Target,
        /// Its namespace.
        netns: Netns,
        /// The processes of its backend, through which that namespace is opened.
        owner: ProcessSet,
    },
    /// A container, in which commands are run.
    Container {
        /// Address of its engine's API.
        engine: String,
        /// Its full id.
        id: String,
    },
}

/// The health of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In one word.
    pub health: Health,
    /// Why the last probe failed, if it did.
    pub failure: Option<String>,
}

/// Probes forever, starting from the known health, and reports each change of it.
pub async fn follow<F>(job: Job, probes: Probes, believed: Health, tell: impl Fn(Verdict) -> F)
where
    F: Future<Output = ()>,
{
    let mut threshold = Threshold::new(believed, job.spec.healthy, job.spec.unhealthy);
    let mut told = Verdict { health: believed, failure: None };
    let mut prober = Prober::new(&job, probes);
    let mut ticks = interval(Duration::from_millis(job.spec.interval_ms.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let probed = timeout(Duration::from_millis(job.spec.timeout_ms), prober.probe(&job)).await;
        let verdict = match probed.unwrap_or_else(|_| late(job.spec.timeout_ms)) {
            Outcome::Passed => Verdict { health: threshold.take(true), failure: None },
            Outcome::Failed(failure) => Verdict { health: threshold.take(false), failure: Some(failure) },
            Outcome::Unknown(failure) => Verdict { health: told.health, failure: Some(failure) },
        };
        if verdict != told {
            told = verdict.clone();
            tell(verdict).await;
        }
    }
}

fn late(timeout_ms: u64) -> Outcome {
    Outcome::Failed(format!("no answer within {}", duration::show_ms(timeout_ms)))
}

/// State kept from one probe to the next.
enum Prober {
    /// The way to a socket, once it is known.
    Socket(Probes, Option<Way>),
    Container(Commands),
}

impl Prober {
    fn new(job: &Job, probes: Probes) -> Self {
        match &job.subject {
            Subject::Socket { .. } => Self::Socket(probes, None),
            Subject::Container { engine, id } => Self::Container(engine::commands(engine, id)),
        }
    }

    async fn probe(&mut self, job: &Job) -> Outcome {
        match (self, &job.spec.kind, &job.subject) {
            (Self::Container(commands), CheckKind::Exec { command }, _) => commands.run(command).await,
            (Self::Socket(probes, way), kind, Subject::Socket { target, netns, owner }) => {
                if way.is_none() {
                    match namespace(*netns, owner.clone()).await {
                        Ok(ns) => *way = Some(Way { probes: probes.clone(), target: *target, ns }),
                        Err(error) => return Outcome::Unknown(format!("cannot send a probe: {error}")),
                    }
                }
                match (way, kind) {
                    (Some(way), CheckKind::Tcp) => probe::tcp(way).await,
                    (Some(way), CheckKind::Http { path, host, status }) => {
                        probe::http(way, path, host.as_deref(), *status).await
                    }
                    _ => Outcome::Unknown(NOTHING.to_owned()),
                }
            }
            _ => Outcome::Unknown(NOTHING.to_owned()),
        }
    }
}

/// The file of a namespace, unless it is our own.
async fn namespace(netns: Netns, owner: ProcessSet) -> io::Result<Option<Arc<File>>> {
    if sys::own_netns_cookie()? == netns.cookie {
        return Ok(None);
    }
    spawn_blocking(move || open_netns(netns, &[owner]))
        .await
        .map_err(io::Error::other)?
        .map(|file| Some(Arc::new(file)))
}
