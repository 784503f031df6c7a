//! Times as values: nothing here reads a clock. Pure.
#![forbid(unsafe_code)]

/// The current time, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the machine booted, for everything that is measured.
    pub ms: i64,
    /// Milliseconds since 1970, for display.
    pub wall_ms: i64,
}

/// A value with times since boot.
pub trait Timed {
    /// All of these times, to be converted.
    fn times(&mut self) -> impl Iterator<Item = &mut i64>;
}
