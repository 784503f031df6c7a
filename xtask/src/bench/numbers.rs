//! How figures are written: so many digits as mean something, and never two notations for one thing.

use pod_steer_tests::measures::Spread;

use crate::say;

/// `12,345`, `123`, `12.3`, `1.23`, `0.123`.
pub fn plain(number: f64) -> String {
    let size = number.abs();
    match size {
        _ if !number.is_finite() => "?".to_owned(),
        0.0 => "0".to_owned(),
        1000.0.. => (if number < 0.0 { "-" } else { "" }).to_owned() + &say::thousands(size.round() as u64),
        99.95.. => format!("{number:.0}"),
        9.995.. => format!("{number:.1}"),
        0.9995.. => format!("{number:.2}"),
        0.0005.. => format!("{number:.3}"),
        _ => format!("{number:.0e}"),
    }
}

/// A count has no decimals: `5`, not `5.00`.
pub fn short(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1000.0 { format!("{number}") } else { plain(number) }
}

/// `0.99`, `12.3`, `1,234`.
pub fn ratio(number: f64) -> String {
    if number.abs() < 9.995 { format!("{number:.2}") } else { plain(number) }
}

/// How far the rounds are from their median at most: `±3%`; or where that says too little, the ends: `0.5–4.2`. Nothing
/// if there was one round, or all were alike.
pub fn off(spread: &Spread) -> String {
    let far = (spread.high - spread.median).max(spread.median - spread.low);
    if far == 0.0 {
        String::new()
    } else if far > 0.5 * spread.median.abs() {
        format!("{}–{}", short(spread.low), short(spread.high))
    } else {
        let percent = 100.0 * far / spread.median.abs();
        if percent < 1.0 { format!("±{percent:.1}%") } else { format!("±{percent:.0}%") }
    }
}

/// ` (0.95–1.02)`. Nothing if there was one round, or all were alike.
pub fn range(spread: &Spread, written: impl Fn(f64) -> String) -> String {
    if spread.low == spread.high {
        return String::new();
    }
    format!(" ({}–{})", written(spread.low), written(spread.high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_mean_something() {
        let shown = [0.0, 0.01234, 0.99996, 1.234, 9.996, 12.34, 99.97, 123.4, 1234.5, -1234.5, 0.000012].map(plain);
        let wanted =
            ["0", "0.012", "1.00", "1.23", "10.0", "12.3", "100", "123", "1,235", "-1,235", "1e-5"].map(str::to_owned);
        assert_eq!(shown, wanted);
        assert_eq!([5.0, 0.0, 2.5, 12_000.0].map(short), ["5", "0", "2.50", "12,000"].map(str::to_owned));
        assert_eq!([0.987, 1.0, 12.34].map(ratio), ["0.99", "1.00", "12.3"].map(str::to_owned));
    }

    #[test]
    fn spreads_say_the_worst() {
        let spread = Spread { median: 100.0, low: 90.0, high: 104.0 };
        assert_eq!((off(&spread).as_str(), range(&spread, plain).as_str()), ("±10%", " (90.0–104)"));
        let alike = Spread::one(3.0);
        assert_eq!((off(&alike).as_str(), range(&alike, plain).as_str()), ("", ""));
        assert_eq!(off(&Spread { median: 0.0, low: 0.0, high: 4.0 }), "0–4");
    }
}
