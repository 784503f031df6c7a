//! Parses and formats durations. Pure.
#![forbid(unsafe_code)]

use std::{fmt, time::Duration};

use jiff::SignedDuration;

/// Units, the longest first, in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// Longest duration: a year.
const MS_MAX: u128 = 366 * 86_400_000;

/// Why a text is not a duration. The messages follow "is refused: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not numbers with units.
    #[error("it is not a duration; write numbers with units (h, m, s, ms), as in 90s or 1m30s")]
    Syntax,
    /// A number without a unit.
    #[error("it has no unit; write {0}s for seconds, or h, m or ms")]
    Unit(u64),
    /// Negative.
    #[error("it is negative; write a duration such as 30s")]
    Negative,
    /// Not a whole number of milliseconds.
    #[error("it is not a whole number of milliseconds; write for example 500ms")]
    TooFine,
    /// More than a year.
    #[error("it is longer than a year")]
    Long,
}

/// Reads `500ms`, `90s`, `1m30s`, `1.5s`, `2h`; zero too.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    if let Ok(number) = text.parse() {
        return Err(DurationError::Unit(number));
    }
    let signed: SignedDuration = text.parse().map_err(|_| DurationError::Syntax)?;
    let duration = Duration::try_from(signed).map_err(|_| DurationError::Negative)?;
    match duration.as_millis() {
        MS_MAX.. => Err(DurationError::Long),
        _ if !duration.subsec_nanos().is_multiple_of(1_000_000) => Err(DurationError::TooFine),
        _ => Ok(duration),
    }
}

/// A number of milliseconds, as [`parse`] reads it.
pub fn show_ms(ms: u64) -> String {
    Written(Duration::from_millis(ms)).to_string()
}

/// As [`parse`] reads it: `1m30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written(pub Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 {
            return f.write_str("0s");
        }
        for (unit, each) in UNITS {
            if ms >= each {
                write!(f, "{}{unit}", ms / each)?;
                ms %= each;
            }
        }
        Ok(())
    }
}

/// Formats a measured duration, rounded for reading: `0.4 ms`, `12 ms`, `1.2 s`, `1m 40s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took(pub Duration);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        match us {
            0..9_950 => write!(f, "{:.1} ms", us as f64 / 1e3),
            9_950..999_500 => write!(f, "{:.0} ms", us as f64 / 1e3),
            999_500..59_950_000 => write!(f, "{:.1} s", us as f64 / 1e6),
            _ => {
                let s = (us + 500_000) / 1_000_000;
                let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
                let parts = [(h, "h"), (m, "m"), (s, "s")].into_iter().filter(|(number, _)| *number > 0);
                f.write_str(&parts.map(|(number, unit)| format!("{number}{unit}")).collect::<Vec<_>>().join(" "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_values_are_read_back() {
        for (text, ms) in
            [("500ms", 500), ("90s", 90_000), ("1m30s", 90_000), ("2h", 7_200_000), ("1.5s", 1_500), ("0s", 0)]
        {
            let read = parse(text).unwrap();
            assert_eq!(read, Duration::from_millis(ms), "{text}");
            assert_eq!(parse(&Written(read).to_string()), Ok(read), "{text}");
        }
        assert_eq!(Written(Duration::from_secs(90)).to_string(), "1m30s");
    }

    #[test]
    fn each_error_has_its_message() {
        for text in ["", "s", "soon", "1x", "30s1m", "1s30", "1é", "99999999999999999999s"] {
            assert_eq!(parse(text), Err(DurationError::Syntax), "{text}");
        }
        assert_eq!(parse("30"), Err(DurationError::Unit(30)));
        assert_eq!(parse("-5s"), Err(DurationError::Negative));
        assert_eq!(parse("1us"), Err(DurationError::TooFine));
        assert_eq!(parse("9000h"), Err(DurationError::Long));
    }

    #[test]
    fn measured_durations_are_short() {
        for (us, text) in [
            (0, "0.0 ms"),
            (412, "0.4 ms"),
            (9_949, "9.9 ms"),
            (12_345, "12 ms"),
            (999_499, "999 ms"),
            (1_249_000, "1.2 s"),
            (59_950_000, "1m"),
            (100_000_000, "1m 40s"),
            (3_601_000_000, "1h 1s"),
        ] {
            assert_eq!(Took(Duration::from_micros(us)).to_string(), text);
        }
    }
}
