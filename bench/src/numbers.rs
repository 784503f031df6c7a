//! The notation of figures: only significant digits, and one notation for each kind.

use crate::report::Spread;

use pod_steer_tests::say;

/// A hyphen is shorter, and would be taken for a dash.
const MINUS: &str = "−";

/// `12,345`, `123`, `12.3`, `1.23`, `0.123`.
pub fn plain(number: f64) -> String {
    let size = number.abs();
    match size {
        _ if !number.is_finite() => "?".to_owned(),
        0.0 => "0".to_owned(),
        _ if number < 0.0 => MINUS.to_owned() + &plain(size),
        1000.0.. => say::thousands(size.round() as u64),
        99.95.. => format!("{number:.0}"),
        9.995.. => format!("{number:.1}"),
        0.9995.. => format!("{number:.2}"),
        0.0005.. => format!("{number:.3}"),
        _ => format!("{number:.0e}").replace('-', MINUS),
    }
}

/// A count has no decimals: `5`, not `5.00`.
pub fn short(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1000.0 {
        format!("{}{}", if number < 0.0 { MINUS } else { "" }, number.abs())
    } else {
        plain(number)
    }
}

/// `0.99`, `12.3`, `1,234`.
pub fn ratio(number: f64) -> String {
    if number.abs() < 9.995 { format!("{number:.2}") } else { plain(number) }
}

/// The largest deviation of the rounds from their median: `±3%`, or the extremes where that is clearer: `0.5 to 4.2`. Empty if there was
/// one round, or all were equal.
pub fn off(spread: &Spread, written: impl Fn(f64) -> String) -> String {
    let far = (spread.high - spread.median).max(spread.median - spread.low);
    if far == 0.0 {
        String::new()
    } else if far > 0.5 * spread.median.abs() {
        format!("{} to {}", written(spread.low), written(spread.high))
    } else {
        let percent = 100.0 * far / spread.median.abs();
        if percent < 1.0 { format!("±{percent:.1}%") } else { format!("±{percent:.0}%") }
    }
}

/// `0.95 to 1.02`; `None` if there was one round, or all were equal.
pub fn range(spread: &Spread, written: impl Fn(f64) -> String) -> Option<String> {
    (spread.low != spread.high).then(|| format!("{} to {}", written(spread.low), written(spread.high)))
}

/// Shortens a reason for a table. Text after a colon and a quoted command says how it was tried, not why it failed.
pub fn first_sentence(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let end = [". ", ": \""].into_iter().filter_map(|end| line.find(end)).min();
    line[..end.unwrap_or(line.len())].trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_mean_something() {
        let shown = [0.0, 0.01234, 0.99996, 1.234, 9.996, 12.34, 99.97, 123.4, 1234.5, -1234.5, 0.000012].map(plain);
        let wanted =
            ["0", "0.012", "1.00", "1.23", "10.0", "12.3", "100", "123", "1,235", "−1,235", "1e−5"].map(str::to_owned);
        assert_eq!(shown, wanted);
        assert_eq!([5.0, 0.0, 2.5, 12_000.0].map(short), ["5", "0", "2.50", "12,000"].map(str::to_owned));
        assert_eq!([-5.0, -0.0, -2.5].map(short), ["−5", "0", "−2.50"].map(str::to_owned));
        assert_eq!([0.987, 1.0, 12.34].map(ratio), ["0.99", "1.00", "12.3"].map(str::to_owned));
    }

    #[test]
    fn spreads_say_the_worst() {
        let spread = Spread { median: 100.0, low: 90.0, high: 104.0 };
        assert_eq!((off(&spread, plain).as_str(), range(&spread, plain).as_deref()), ("±10%", Some("90.0 to 104")));
        let alike = Spread::one(3.0);
        assert_eq!((off(&alike, plain).as_str(), range(&alike, plain)), ("", None));
        assert_eq!(off(&Spread { median: 0.0, low: 0.0, high: 4.0 }, short), "0 to 4");
    }

    #[test]
    fn a_reason_is_one_sentence() {
        let long = "its kernel lacks IPVS: \"ipvsadm\" \"--add\": exit status: 2 Can't initialize ipvs";
        assert_eq!(first_sentence(long), "its kernel lacks IPVS");
        assert_eq!(first_sentence("it died. Then\nnothing"), "it died");
        assert_eq!(first_sentence("no nginx in PATH"), "no nginx in PATH");
    }
}
