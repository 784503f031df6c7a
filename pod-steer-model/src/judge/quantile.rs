//! Whether the 99th percentile of a time is longer by more than a part: without an assumption about how the times are distributed, from
//! histograms. Of the old version's percentile an upper bound is taken, and of the new version's times the share that is longer than the
//! bound with its allowance: if that share is more than a hundredth for certain, so is the percentile longer.
#![forbid(unsafe_code)]

use pod_steer_ebpf::{FIRST_BYTE_BUCKETS, first_byte_end_ns};
use statrs::distribution::{Binomial, DiscreteCDF as _};

use super::SLOWER_MIN_NS;

/// The part of all times that the percentile leaves above.
const ABOVE: f64 = 0.01;

/// A percentile that is too long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slow {
    /// The new version's, at least; the old one's, at most; in nanoseconds.
    pub new_ns: u64,
    /// See `new_ns`.
    pub old_ns: u64,
}

/// Whether the first percentile is longer than the second one by more than so many percent, with this probability of an error; nothing if a
/// sample is too small.
pub fn is_slower(
    new: &[u64; FIRST_BYTE_BUCKETS],
    old: &[u64; FIRST_BYTE_BUCKETS],
    max_percent: u32,
    error: f64,
) -> Option<Option<Slow>> {
    if new.iter().sum::<u64>() < smallest(error) {
        return None;
    }
    let old_ns = upper_bound(old, error / 2.0)?;
    let allowed = u128::from(old_ns) * u128::from(max_percent) / 100;
    let allowed = u64::try_from(allowed).unwrap_or(u64::MAX).max(SLOWER_MIN_NS);
    let limit_ns = old_ns.saturating_add(allowed);
    let all: u64 = new.iter().sum();
    // The last bucket has all longer times too, and no end that they are below.
    let above: u64 = new.iter().enumerate().filter(|(bucket, _)| start_ns(*bucket) >= limit_ns).map(|(_, n)| n).sum();
    let is_slower = above > 0 && tail(all, ABOVE, above) <= error / 2.0;
    Some(is_slower.then(|| Slow { new_ns: percentile(new).unwrap_or(limit_ns), old_ns }))
}

/// The smallest sample of which the percentile has an upper bound.
pub fn smallest(error: f64) -> u64 {
    ((error / 2.0).ln() / (1.0 - ABOVE).ln()).ceil().max(1.0) as u64
}

/// The 99th percentile of a sample, in nanoseconds: the end of the bucket that it lies in.
pub fn percentile(times: &[u64; FIRST_BYTE_BUCKETS]) -> Option<u64> {
    let all: u64 = times.iter().sum();
    let wanted = (all as f64 * (1.0 - ABOVE)).ceil() as u64;
    let mut below = 0;
    let found = times.iter().position(|number| {
        below += number;
        below >= wanted
    });
    found.filter(|_| all > 0).map(first_byte_end_ns)
}

/// A time that the percentile of all times is below, with this probability of an error: from the order of the sample alone.
fn upper_bound(times: &[u64; FIRST_BYTE_BUCKETS], error: f64) -> Option<u64> {
    let all: u64 = times.iter().sum();
    let mut below = 0;
    for (bucket, number) in times.iter().enumerate() {
        below += number;
        // If the percentile were longer, at least so many would be below this bucket's end with this probability at most.
        if *number > 0 && tail(all, 1.0 - ABOVE, below) <= error {
            return Some(first_byte_end_ns(bucket));
        }
    }
    None
}

/// The probability of at least `least` of `all`, each with the probability `part`.
fn tail(all: u64, part: f64, least: u64) -> f64 {
    let Some(below) = least.checked_sub(1) else { return 1.0 };
    Binomial::new(part, all).map_or(1.0, |distribution| distribution.sf(below))
}

/// Where a bucket begins.
fn start_ns(bucket: usize) -> u64 {
    bucket.checked_sub(1).map_or(0, first_byte_end_ns)
}
