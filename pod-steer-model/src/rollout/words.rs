//! Times, shares and counts in messages.

pub(super) use crate::text::count;

/// A time in milliseconds: `0.4 s`, `12 s`, `3 min 20 s`.
pub(super) fn time(ms: i64) -> String {
    match ms.max(0) {
        ms @ 0..10_000 => format!("{:.1} s", ms as f64 / 1000.0),
        ms @ 10_000..60_000 => format!("{} s", ms / 1000),
        ms => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// Hundredths of a percent: `5 %`, `0.25 %`.
pub(super) fn share(hundredths: u32) -> String {
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}
