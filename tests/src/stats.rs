//! Statistics on counts and times.

use std::{collections::BTreeMap, time::Duration};

/// The quantile of the normal distribution for the significance level of every judgement: the probability that correct shares are judged
/// wrong is 1 in 1,000,000.
const QUANTILE: f64 = 4.7534;

/// Whether counts agree with expected weights (Pearson's chi-square): chi-square, or why not. A name that was expected and
/// never seen counts as zero; a name that was not expected never agrees.
pub fn chi_square_agrees(counts: &BTreeMap<String, u64>, weights: &[(&str, u64)]) -> Result<f64, String> {
    if let Some(stranger) = counts.keys().find(|name| !weights.iter().any(|(expected, _)| expected == name)) {
        return Err(format!("{stranger} answered and is not among {weights:?}"));
    }
    let total: u64 = counts.values().sum();
    let weight_total: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut chi_square = 0.0;
    for (name, weight) in weights {
        let expected = total as f64 * *weight as f64 / weight_total as f64;
        let seen = counts.get(*name).copied().unwrap_or(0) as f64;
        chi_square += (seen - expected).powi(2) / expected;
    }
    let limit = critical_value(weights.len() - 1);
    if chi_square < limit {
        Ok(chi_square)
    } else {
        Err(format!("chi-square {chi_square:.1} is over {limit:.1}: {counts:?} for weights {weights:?}"))
    }
}

/// The critical value of chi-square by degrees of freedom, by Wilson and Hilferty's approximation. Its error is 1 % from 5 degrees on; below
/// that it errs on the side of agreement.
fn critical_value(freedom: usize) -> f64 {
    let n = freedom as f64;
    let a = 2.0 / (9.0 * n);
    n * (1.0 - a + QUANTILE * a.sqrt()).powi(3)
}

/// `median 0.1 ms, maximum 0.2 ms over 100`, for a figure.
pub fn median_and_maximum(times: &mut [Duration]) -> String {
    times.sort();
    match times {
        [] => "no measurement".into(),
        times => {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let (median, maximum) = (ms(times[times.len() / 2]), ms(times[times.len() - 1]));
            format!("median {median:.3} ms, maximum {maximum:.3} ms over {}", times.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
        counts.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    }

    #[test]
    fn accepts_what_chance_explains_and_nothing_else() {
        let weights = [("a", 1), ("b", 1), ("c", 2)];
        let judged = |seen: &[(&str, u64)]| chi_square_agrees(&counts(seen), &weights);
        assert!(judged(&[("a", 2480), ("b", 2540), ("c", 4980)]).is_ok());
        assert!(judged(&[("a", 2300), ("b", 2700), ("c", 5000)]).is_err());
        assert!(judged(&[("a", 5000), ("c", 5000)]).is_err());
        assert!(judged(&[("a", 2500), ("b", 2500), ("c", 4999), ("d", 1)]).is_err());
    }

    #[test]
    fn critical_values_agree_with_tables() {
        for (freedom, expected) in [(1, 23.928), (3, 30.665), (10, 46.863)] {
            let value = critical_value(freedom);
            assert!((0.99..1.16).contains(&(value / expected)), "{freedom}: {value}");
        }
    }
}
