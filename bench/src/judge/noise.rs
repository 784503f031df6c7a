//! What the rounds of a run say, taken together: quotients of two measures round by round, and within which bounds their
//! median is known.

use crate::report::{Row, Spread};

/// How sure one can be of [`interval`].
const SURE: f64 = 0.95;

/// One measure divided by another one, round by round: what disturbed a round disturbed both. None where their rounds do not
/// belong together, or are not in the report.
pub fn quotients((own, of): (&Row, &str), (other, over): (&Row, &str)) -> Option<Vec<f64>> {
    let (own, other) = (own.rounds.get(of)?, other.rounds.get(over)?);
    let quotients = own.iter().zip(other).map(|(own, other)| own / other).filter(|quotient| quotient.is_finite());
    Some(quotients.collect()).filter(|found: &Vec<f64>| own.len() == other.len() && !found.is_empty())
}

/// Where the median of all the rounds that there could be is, with a chance of 95%, and the median of those that there were.
///
/// A round is below the true median as often as above it, so how many of n are below it is binomial with chances of ½,
/// whatever the rounds' own distribution is. The k-th least and the k-th greatest round have the true median between them
/// unless fewer than k rounds are on one side of it: the chance is 1 − 2 · P(B(n, ½) < k), and k is the greatest one with
/// which that is enough. Of fewer than six rounds not even the least and the greatest are; they are taken all the same. See David
/// and Nagaraja, Order Statistics, 3rd edition, 7.1: distribution-free confidence intervals for quantiles.
pub fn interval(rounds: &[f64]) -> Option<Spread> {
    let mut sorted: Vec<f64> = rounds.iter().copied().filter(|number| number.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let cut = sorted_out(sorted.len());
    let (low, high) = (*sorted.get(cut)?, *sorted.get(sorted.len() - 1 - cut)?);
    Some(Spread { low, high, ..Spread::of(&sorted)? })
}

/// How many of so many rounds may be left out at each end: k − 1.
fn sorted_out(rounds: usize) -> usize {
    let (mut cut, mut chance, mut fewer) = (0, 0.5_f64.powi(rounds as i32), 0.0);
    // `chance` is that of exactly `cut` rounds on one side, `fewer` that of less.
    while 2 * (cut + 1) < rounds {
        fewer += chance;
        chance *= (rounds - cut) as f64 / (cut + 1) as f64;
        if 1.0 - 2.0 * (fewer + chance) < SURE {
            break;
        }
        cut += 1;
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn ranks_are_those_of_the_tables() {
        // k of the tables for the sign test at 95%, less one.
        let known = [(1, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 1), (12, 2), (15, 3), (20, 5), (25, 7), (100, 39)];
        for (rounds, cut) in known {
            assert_eq!(sorted_out(rounds), cut, "{rounds} rounds");
        }
    }

    #[test]
    fn the_median_is_known_within_some_rounds() {
        let rounds: Vec<f64> = [9, 1, 8, 2, 7, 3, 6, 4, 5].map(f64::from).into();
        assert_eq!(interval(&rounds), Some(Spread { median: 5.0, low: 2.0, high: 8.0 }));
        assert_eq!(interval(&rounds[..3]), Some(Spread { median: 8.0, low: 1.0, high: 9.0 }));
        assert_eq!(interval(&[]), None);
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
