//! The end of a look: its time limit, or the client that no longer waits for the answer.

use std::{
    fmt, io,
    time::{Duration, Instant},
};

/// How long a look may take.
pub struct Limits<'a> {
    max: Duration,
    until: Instant,
    has_left: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Limits<'a> {
    /// A look that begins now. `has_left` tells whether nothing waits for the answer any more.
    pub fn new(max: Duration, has_left: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { max, until: Instant::now() + max, has_left }
    }

    /// Whether the look has to end.
    pub fn is_over(&self) -> bool {
        Instant::now() > self.until || (self.has_left)()
    }

    /// An error if the look has to end.
    pub fn check(&self) -> io::Result<()> {
        if self.is_over() {
            let message = format!("the time limit of {} s was reached", self.max.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        Ok(())
    }
}

impl fmt::Debug for Limits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").field("max", &self.max).field("until", &self.until).finish_non_exhaustive()
    }
}

/// Notes about parts of an answer that are missing. There may be one for each of a thousand namespaces.
#[derive(Debug, Default)]
pub struct Unseen {
    lines: Vec<String>,
    more: usize,
}

/// Maximum number of notes that are kept.
const LINES_MAX: usize = 20;

impl Unseen {
    /// Begins with these notes.
    pub fn of(lines: &[String]) -> Self {
        Self { lines: lines.to_vec(), more: 0 }
    }

    /// Adds a note.
    pub fn add(&mut self, line: String) {
        if self.lines.len() < LINES_MAX { self.lines.push(line) } else { self.more += 1 }
    }

    /// The notes, and the number of those that were not kept.
    pub fn into_lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("{} further notes of this kind are not shown", self.more));
        }
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_ends_with_its_time_or_its_client() {
        let (stays, left) = (|| false, || true);
        assert!(!Limits::new(Duration::from_secs(60), &stays).is_over());
        assert!(Limits::new(Duration::from_secs(60), &left).is_over());
        let late =
            Limits { until: Instant::now() - Duration::from_secs(1), ..Limits::new(Duration::from_secs(5), &stays) };
        assert_eq!(late.check().unwrap_err().to_string(), "the time limit of 5 s was reached");
    }

    #[test]
    fn notes_are_limited() {
        let mut unseen = Unseen::default();
        (0..LINES_MAX + 3).for_each(|number| unseen.add(number.to_string()));
        let lines = unseen.into_lines();
        assert_eq!((lines.len(), lines[LINES_MAX].starts_with("3 further")), (LINES_MAX + 1, true));
    }
}
