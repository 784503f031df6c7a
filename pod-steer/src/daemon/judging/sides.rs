//! The versions that a step compares, as their programs count: their samples, the ages of their requests, and what the others did before.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pod_steer_ebpf::GENERATIONS;
use tracing::warn;

use crate::{
    ids::CgroupId,
    judge::Side,
    kernel::observer::{Attachment, Observer},
};

/// Connections a second of one version that are looked at.
const SAMPLED_PER_S: f64 = 1_000.0;
/// Connections a second of both samples together at which a step begins again with smaller ones: what was counted before would have another age
/// on average.
const SAMPLED_PER_S_MAX: f64 = 4.0 * SAMPLED_PER_S;
/// The length of a generation of requests, and of how many generations the requests are too young to be overdue: the others have waited for
/// ten seconds at least.
const GENERATION: Duration = Duration::from_secs(5);
const YOUNG: usize = 3;
/// How often numbers are noted that need no more.
const NOTED_EVERY: Duration = Duration::from_secs(1);
/// What the others did is kept at ages that grow by this, in percent.
const AGES_GROW_PERCENT: u32 = 10;

pub(super) struct Sides {
    pub reads_http: bool,
    pub new: Version,
    pub old: Old,
    /// When the connections in the samples were counted, and how many there were of each side.
    pub sampled: (Instant, [u64; 2]),
    /// Why some backends are not observed.
    pub failed: Option<String>,
}

/// The versions that the new one is compared with.
pub(super) enum Old {
    /// They get clients now.
    Now { version: Box<Version>, before: Vec<Before> },
    /// They did before. The new version at the age of one of them, and which.
    Then { before: Vec<Before>, one_of: u32, reached: Option<(Box<Side>, usize)> },
}

/// What they had done at an age.
pub(super) struct Before {
    age: Duration,
    /// The generation of requests: in another one, others are overdue.
    generation: u32,
    pub side: Side,
}

/// One version, or all others.
pub(super) struct Version {
    pub observer: Observer,
    pub attached: BTreeMap<CgroupId, (PathBuf, Attachment)>,
    /// The present generation of requests, and since when it is.
    generation: (u32, Instant),
    /// How many connections had been opened when this one and each of those before it began, as many as are young.
    opened: [u64; YOUNG],
    noted: Instant,
    pub one_of: u32,
    /// How long its processes had waited when it was attached, and lately.
    waited: Option<([u64; 2], [u64; 2])>,
}

impl Version {
    pub fn new(observer: Observer, per_s: f64, now: Instant) -> Self {
        let (attached, opened) = (BTreeMap::new(), [0; YOUNG]);
        let mut version = Self {
            observer,
            attached,
            generation: (Observer::FIRST_GENERATION, now),
            opened,
            noted: now,
            one_of: 1,
            waited: None,
        };
        version.sample(one_of(per_s / SAMPLED_PER_S));
        version
    }

    fn sample(&mut self, one_of: u32) {
        self.one_of = one_of;
        if let Err(error) = self.observer.sample_one_of(one_of) {
            warn!(error = %crate::chain(&error), "the size of the sample could not be set");
        }
    }

    pub fn note(&mut self, now: Instant) {
        // By the time since the beginning, so that both sides are in the same one at the same age.
        while now.duration_since(self.generation.1) >= GENERATION {
            self.generation = (self.generation.0.wrapping_add(1).max(1), self.generation.1 + GENERATION);
            self.opened.rotate_right(1);
            self.opened[0] = self.observer.observed().opened;
            if let Err(error) = self.observer.begin_generation(self.generation.0) {
                warn!(error = %crate::chain(&error), "the age of requests cannot be told");
            }
        }
        if now.duration_since(self.noted) < NOTED_EVERY {
            return;
        }
        self.noted = now;
        let lately = pressure(self.attached.values().map(|(path, _)| path.as_path()));
        self.waited = lately.map(|lately| (self.waited.map_or(lately, |(first, _)| first), lately));
    }

    fn before(&self, age: Duration) -> Before {
        Before { age, generation: self.generation.0, side: self.side() }
    }

    pub fn side(&self) -> Side {
        let observed = self.observer.observed();
        // Connections that were opened before the oldest generation of those that are too young.
        let old_connections = self.opened[YOUNG - 1];
        let is_young =
            |at: usize| (0..YOUNG).any(|age| (self.generation.0 as usize).wrapping_sub(age) % GENERATIONS == at);
        let old = observed.waiting.iter().enumerate().filter(|(at, _)| !is_young(*at)).map(|(_, number)| *number);
        // The processors are not read at once, so a sum may seem to be below zero.
        let overdue = u64::try_from(old.fold(0, u64::wrapping_add).cast_signed()).unwrap_or(0);
        let pressure_us = self.waited.map(|(first, lately)| [0, 1].map(|at| lately[at].saturating_sub(first[at])));
        Side { observed, old_connections, overdue: overdue.min(old_connections), pressure_us }
    }
}

impl Old {
    /// How they are compared in a step in which they get nothing.
    pub fn then(self, age: Duration) -> Self {
        match self {
            Self::Now { version, mut before } => {
                before.push(version.before(age));
                Self::Then { before, one_of: version.one_of, reached: None }
            }
            Self::Then { before, one_of, .. } => Self::Then { before, one_of, reached: None },
        }
    }
}

impl Sides {
    pub fn note(&mut self, age: Duration, now: Instant) {
        self.new.note(now);
        match &mut self.old {
            Old::Now { version, before } => {
                version.note(now);
                let last = before.last().map_or(Duration::ZERO, |before| before.age);
                if age >= NOTED_EVERY.max(last * (100 + AGES_GROW_PERCENT) / 100) {
                    before.push(version.before(age));
                }
            }
            Old::Then { before, reached, .. } => {
                let generation = self.new.generation.0;
                let last = before.iter().rposition(|before| before.age <= age && before.generation == generation);
                if let Some(last) = last.filter(|last| reached.as_ref().is_none_or(|(_, at)| at < last)) {
                    *reached = Some((Box::new(self.new.side()), last));
                }
            }
        }
    }

    /// How many connections both sides get a second, if they are too many for these samples.
    pub fn crowd(&mut self, now: Instant) -> Option<[f64; 2]> {
        let Old::Now { version: old, .. } = &self.old else { return None };
        let passed = now.duration_since(self.sampled.0);
        if passed < NOTED_EVERY {
            return None;
        }
        let opened = [&self.new, old].map(|version| version.observer.observed().opened);
        let [new, other] = [0, 1].map(|at| opened[at].saturating_sub(self.sampled.1[at]) as f64 / passed.as_secs_f64());
        self.sampled = (now, opened);
        let all = [new * f64::from(self.new.one_of), other * f64::from(old.one_of)];
        (new + other > SAMPLED_PER_S_MAX).then_some(all)
    }
}

/// A part of connections as the sample has it: a power of two.
fn one_of(part: f64) -> u32 {
    (part.ceil().clamp(1.0, f64::from(1u32 << 16)) as u32).next_power_of_two()
}

/// How long the processes of cgroups have waited for a processor and for memory since they began, in microseconds
/// (`Documentation/accounting/psi.rst`); nothing where the kernel does not count it.
fn pressure<'a>(cgroups: impl Iterator<Item = &'a Path>) -> Option<[u64; 2]> {
    let total = |cgroup: &Path, file: &str| {
        let text = fs::read_to_string(cgroup.join(file)).ok()?;
        let some = text.lines().find(|line| line.starts_with("some "))?;
        some.split_whitespace().find_map(|word| word.strip_prefix("total="))?.parse::<u64>().ok()
    };
    let mut sum = None;
    for cgroup in cgroups {
        let own = [total(cgroup, "cpu.pressure")?, total(cgroup, "memory.pressure")?];
        let [cpu, memory] = sum.unwrap_or([0, 0]);
        sum = Some([cpu + own[0], memory + own[1]]);
    }
    sum
}
