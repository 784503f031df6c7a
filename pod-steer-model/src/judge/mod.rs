//! Judges a version by how it treats its clients, beside another that served in the same time. Pure.
//!
//! Each kind of fault has a test of its own (`tests.rs`). An order's judgements share one probability of an error over its steps, over the
//! looks within a step, and over the kinds: by the inequality of Boole, a version that is no worse is found worse in at most
//! [`ERROR`] of all canaries.
#![forbid(unsafe_code)]

mod quantile;
mod share;
#[cfg(test)]
mod tests;
mod words;

use pod_steer_ebpf::Observed;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The probability that a version which is no worse is found worse, over a whole canary. Connections count as independent: a
/// client that repeats what fails counts as often as it tries.
pub const ERROR: f64 = 0.001;
/// The kinds of faults: resets, empty answers, clients that left, requests without an answer, answers of 5xx, slow ones.
const KINDS: f64 = 6.0;
/// Connections, or answers, of each version below which it is not judged.
pub const SAMPLE_MIN: u64 = 50;
/// A share of faults must be larger by this part of all: a difference may be certain and still not matter.
const MORE_MIN: f64 = 0.001;
/// Requests that may go unanswered for a while (long polls) make a version worse only if the share of connections with one is larger by this part
/// of all, and twice as large.
const UNANSWERED_MIN: f64 = 0.01;
/// A first byte is slower only if it is later by this, however short its time was.
pub const SLOWER_MIN_NS: u64 = 1_000_000;
/// The largest part by which a version may be told to be slower, in percent.
pub const SLOWDOWN_MAX: u32 = 10_000;
/// The next look is when the sample has grown by this, in percent.
const GROWTH_PERCENT: u64 = 25;

/// Whether a canary judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Each step compares the versions. A step with too few connections to tell goes on, and says so.
    #[default]
    On,
    /// A step in which nothing could be judged rolls back.
    Required,
    /// Versions are not compared.
    Off,
}

/// How a version is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Judging {
    /// Whether it is.
    pub mode: Mode,
    /// By how many percent the 99th percentile of its time to the first byte may be longer.
    #[schema(minimum = 1, maximum = 10_000)]
    pub max_slowdown_percent: u32,
}

impl Default for Judging {
    fn default() -> Self {
        Self { mode: Mode::default(), max_slowdown_percent: 25 }
    }
}

/// One version in the time that is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// What the kernel counted.
    pub observed: Observed,
    /// Connections that are older than a while, and those of them whose client has waited for an answer for as long.
    pub old_connections: u64,
    /// See `old_connections`.
    pub overdue: u64,
    /// How long its processes have waited for a processor and for memory, in microseconds; nothing where the kernel does not tell.
    pub pressure_us: Option<[u64; 2]>,
}

/// Both versions in the time that is judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// The version that is tried.
    pub new: Side,
    /// The one that it is compared with.
    pub old: Side,
    /// The name of the other one, or of the others.
    pub others: String,
    /// The other one is as it was before: it gets nothing now.
    pub is_before: bool,
    /// One of so many connections of each was looked at.
    pub one_of: [u32; 2],
    /// The first line of answers was read.
    pub reads_http: bool,
    /// Why a version is not observed, if one is not.
    pub unobserved: Option<String>,
}

impl Compared {
    /// The size of the new version's sample, for the time of the next look.
    pub fn size(&self) -> u64 {
        size(&self.new)
    }

    /// Whether there is enough of both versions for a look.
    pub fn is_enough(&self) -> bool {
        size(&self.new).min(size(&self.old)) >= SAMPLE_MIN
    }

    /// Whether the sample has grown enough since it was looked at with the size `before`. A smaller one is counted anew.
    pub fn is_due(&self, before: u64) -> bool {
        let grown = before.saturating_add(before.saturating_mul(GROWTH_PERCENT) / 100);
        self.is_enough() && !(before..grown).contains(&self.size())
    }
}

fn size(side: &Side) -> u64 {
    side.observed.opened + side.observed.answered + side.observed.ended
}

/// The result of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What the version is worse in, with the figures; nothing if it is not found worse.
    pub worse: Option<String>,
    /// That its answers begin later, with the figures, if they do and the others are as they were before: the machine may have been less busy
    /// then.
    pub slower: Option<String>,
    /// The figures.
    pub figures: String,
    /// What could not be judged, and why; empty if everything was.
    pub unjudged: Vec<String>,
    /// Nothing at all could be judged.
    pub is_blind: bool,
}

/// The probability of an error that one look of a kind may have: look `number` from 1, of one of `steps` steps.
fn error_of(steps: usize, number: u32) -> f64 {
    let number = f64::from(number.max(1));
    ERROR / (steps.max(1) as f64) / KINDS / (number * (number + 1.0))
}

/// Looks at both versions: the look `number`, from 1, in one of `steps` steps.
pub fn judge(version: &str, compared: &Compared, judging: &Judging, steps: usize, number: u32) -> Judgement {
    let error = error_of(steps, number);
    let mut judgement = Judgement {
        worse: None,
        slower: None,
        figures: words::figures(version, compared),
        unjudged: Vec::new(),
        is_blind: true,
    };
    judgement.unjudged.extend(compared.unobserved.clone());
    if compared.others.is_empty() {
        return judgement;
    }
    for kind in share::KINDS {
        let (new, old) = ((kind.share)(&compared.new, compared), (kind.share)(&compared.old, compared));
        match share::is_larger(new, old, &kind, error) {
            Some(true) if kind.also_is_larger(&compared.new, &compared.old) => {
                judgement.worse.get_or_insert_with(|| words::more(version, compared, &kind, new, old));
                judgement.is_blind = false;
            }
            Some(_) => judgement.is_blind = false,
            None => judgement.unjudged.extend(words::too_few(&kind, new, old, compared)),
        }
    }
    judgement.unjudged.extend(words::unread(compared));
    let (new, old) = (&compared.new.observed.first_byte, &compared.old.observed.first_byte);
    match quantile::is_slower(new, old, judging.max_slowdown_percent, error) {
        Some(Some(slow)) => {
            let verdict = if compared.is_before { &mut judgement.slower } else { &mut judgement.worse };
            verdict.get_or_insert_with(|| words::slower(version, compared, judging, &slow));
            judgement.is_blind = false;
        }
        Some(None) => judgement.is_blind = false,
        None => judgement.unjudged.push(words::too_few_times(new, old, error)),
    }
    judgement
}
