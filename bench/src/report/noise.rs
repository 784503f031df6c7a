//! Statistics of rounds: quotients of two measures round by round, and the confidence interval of their median.

use super::{Row, Spread};

/// The confidence level of [`interval`].
const SURE: f64 = 0.95;

/// One measure divided by another one, round by round, since a disturbance of a round affects both. `None` where their rounds do not
/// correspond, or are not in the report.
pub fn quotients((own, of): (&Row, &str), (other, over): (&Row, &str)) -> Option<Vec<f64>> {
    let (own, other) = (own.rounds.get(of)?, other.rounds.get(over)?);
    let quotients = own.iter().zip(other).map(|(own, other)| own / other).filter(|quotient| quotient.is_finite());
    Some(quotients.collect()).filter(|found: &Vec<f64>| own.len() == other.len() && !found.is_empty())
}

/// The median of some rounds, and the confidence interval of 95% for the median of all possible rounds. `None` for fewer than six rounds,
/// which are too few.
pub fn interval(rounds: &[f64]) -> Option<Spread> {
    quantile(rounds, 0.5)
}

/// The same for another quantile: 0.99 is the 99th percentile.
///
/// How many of n samples are below the true quantile p is binomial, B(n, p), whatever their own distribution is. So the sample of
/// rank l is above it with the chance P(B < l), and that of rank u below it with P(B ≥ u). The ranks are the closest with which
/// neither is more than 2.5%. See David and Nagaraja, Order Statistics, 3rd edition, 7.1: distribution-free confidence
/// intervals for quantiles.
pub fn quantile(samples: &[f64], part: f64) -> Option<Spread> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|number| number.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = ranks(sorted.len(), part)?;
    // As [`Spread::of`] has it for the median.
    let middle = sorted[((sorted.len() - 1) as f64 * part).floor() as usize];
    Some(Spread { median: middle, low: sorted[low - 1], high: sorted[high - 1] })
}

/// The ranks, from 1, of the interval's ends; `None` if the samples are too few.
fn ranks(count: usize, part: f64) -> Option<(usize, usize)> {
    let tail = (1.0 - SURE) / 2.0;
    // The chance that exactly `below` samples are below the quantile, as a logarithm: it is far too small a number in the tails.
    let mut chance = count as f64 * (1.0 - part).ln();
    let (mut at_most, mut low) = (0.0, 0);
    for below in 0..count {
        at_most += chance.exp();
        if at_most <= tail {
            low = below + 1;
        }
        if 1.0 - at_most <= tail {
            return (low > 0).then_some((low, below + 1));
        }
        chance += ((count - below) as f64 / (below + 1) as f64).ln() + (part / (1.0 - part)).ln();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn ranks_are_those_of_the_tables() {
        // From the tables for the sign test at 95%.
        let known = [(6, 1), (7, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8), (100, 40)];
        for (rounds, rank) in known {
            assert_eq!(ranks(rounds, 0.5), Some((rank, rounds + 1 - rank)), "{rounds} rounds");
        }
        assert_eq!([ranks(0, 0.5), ranks(1, 0.5), ranks(5, 0.5)], [None; 3]);
        // In a hundred samples, none need be above the 99th percentile.
        assert_eq!(ranks(100, 0.99), None);
        assert_eq!(ranks(1000, 0.99), Some((983, 997)));
        assert!(ranks(5000, 0.5).is_some_and(|(low, high)| low + high == 5001));
    }

    #[test]
    fn the_median_is_known_within_some_rounds() {
        let rounds: Vec<f64> = [9, 1, 8, 2, 7, 3, 6, 4, 5].map(f64::from).into();
        assert_eq!(interval(&rounds), Some(Spread { median: 5.0, low: 2.0, high: 8.0 }));
        assert_eq!(interval(&rounds).map(|known| known.reach()), Some(0.6));
        assert_eq!([interval(&rounds[..5]), interval(&[]), interval(&[f64::NAN; 9])], [None; 3]);
    }

    #[test]
    fn quotients_are_those_of_one_round() {
        let mut report = sample::report();
        let mut row = |name: &str, rounds: &[f64]| {
            let row = sample::row(&mut report, "new-connections", name);
            row.rounds.insert("requests_per_s".to_owned(), rounds.to_vec());
            row.clone()
        };
        let (ours, direct) = (row("pod-steer", &[90.0, 40.0, 5.0]), row("direct", &[100.0, 50.0, 0.0]));
        let key = "requests_per_s";
        assert_eq!(quotients((&ours, key), (&direct, key)), Some(vec![0.9, 0.8]));
        assert_eq!(quotients((&ours, key), (&direct, "p99_us")), None);
        assert_eq!(quotients((&ours, key), (&row("haproxy", &[1.0]), key)), None);
    }
}
