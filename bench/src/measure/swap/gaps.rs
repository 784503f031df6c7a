//! The arithmetic of pauses, on values.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Just before the client connected.
    pub began: Instant,
    /// When it had been answered.
    pub ended: Instant,
    /// The server that answered.
    pub name: String,
}

/// The longest time between two successive answers that is at least partly within an interval. `None` if there are no two answers.
pub fn longest(answers: &[Answer], from: Instant, to: Instant) -> Option<Duration> {
    let pairs = answers.windows(2).map(|pair| (pair[0].ended, pair[1].ended));
    pairs.filter(|(before, after)| *before < to && *after > from).map(|(before, after)| after - before).max()
}

/// The longest time between two successive answers that came from different servers.
pub fn longest_at_switch(answers: &[Answer]) -> Option<Duration> {
    let pairs = answers.windows(2).filter(|pair| pair[0].name != pair[1].name);
    pairs.map(|pair| pair[1].ended - pair[0].ended).max()
}

/// The new server must have answered every request that began after the end of a swap.
pub fn swapped(answers: &[Answer], ended: Instant, server: &str) -> Result<()> {
    let mut after = answers.iter().filter(|answer| answer.began > ended).peekable();
    ensure!(after.peek().is_some(), "no request was answered after {server} had taken over");
    if let Some(other) = after.find(|answer| answer.name != server) {
        let late = other.began - ended;
        bail!("{} still answered {late:?} after {server} had taken over", other.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(start: Instant, ended_ms: &[(u64, &str)]) -> Vec<Answer> {
        let at = |ms: u64| start + Duration::from_millis(ms);
        let one = |(ms, name): &(u64, &str)| Answer { began: at(ms - 1), ended: at(*ms), name: (*name).into() };
        ended_ms.iter().map(one).collect()
    }

    #[test]
    fn a_pause_counts_where_it_touches_the_stretch() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let answers = answers(start, &[(10, "v1"), (100, "v1"), (110, "v1"), (150, "v2"), (900, "v2")]);
        let longest = |from, to| longest(&answers, at(from), at(to)).map(|gap| gap.as_millis());
        assert_eq!(longest(100, 150), Some(40));
        assert_eq!(longest(99, 150), Some(90), "it began before");
        assert_eq!(longest(100, 151), Some(750), "it ended after");
        assert_eq!(longest(900, 1000), None);
        assert_eq!(longest_at_switch(&answers), Some(Duration::from_millis(40)));
    }

    #[test]
    fn a_swap_is_one_if_nobody_old_answers_after_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let both = answers(start, &[(10, "v1"), (20, "v2"), (30, "v1"), (40, "v2")]);
        assert!(swapped(&both, at(30), "v2").is_ok());
        assert!(swapped(&both, at(20), "v2").unwrap_err().to_string().starts_with("v1 still answered"));
        assert!(swapped(&both, at(50), "v2").is_err(), "nobody asked");
    }
}
