//! From single results to a verdict. Pure.
#![forbid(unsafe_code)]

use crate::world::Health;

/// Counts equal results in a row. A single result need not change the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    health: Health,
    healthy: u32,
    unhealthy: u32,
    /// The last result, and how many like it there were in a row.
    streak: (bool, u32),
}

impl Threshold {
    /// Starts from the known health. `healthy` and `unhealthy` are the results in a row that change it.
    pub fn new(health: Health, healthy: u32, unhealthy: u32) -> Self {
        Self { health, healthy, unhealthy, streak: (false, 0) }
    }

    /// Adds a result and returns the health.
    pub fn take(&mut self, passed: bool) -> Health {
        let (last, count) = self.streak;
        let count = if last == passed { count.saturating_add(1) } else { 1 };
        self.streak = (passed, count);
        let (verdict, needed) =
            if passed { (Health::Healthy, self.healthy) } else { (Health::Unhealthy, self.unhealthy) };
        if count >= needed {
            self.health = verdict;
        }
        self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The health after each of these results (`+` and `-`): `s`tarting, `h`ealthy, `u`nhealthy.
    fn follow(health: Health, healthy: u32, unhealthy: u32, results: &str) -> String {
        let mut threshold = Threshold::new(health, healthy, unhealthy);
        let letter = |health| match health {
            Health::Starting => 's',
            Health::Healthy => 'h',
            Health::Unhealthy => 'u',
            Health::Unchecked => '?',
        };
        results.chars().map(|result| letter(threshold.take(result == '+'))).collect()
    }

    #[test]
    fn it_takes_as_many_in_a_row_as_asked() {
        assert_eq!(follow(Health::Starting, 1, 3, "--+"), "ssh");
        assert_eq!(follow(Health::Starting, 1, 3, "---+--+---"), "ssuhhhhhhu");
        assert_eq!(follow(Health::Starting, 3, 1, "++-+++-"), "ssuuuhu");
        assert_eq!(follow(Health::Starting, 2, 2, "+-+-+--++"), "ssssssuuh");
    }

    #[test]
    fn the_health_stays_until_enough_results_contradict_it() {
        assert_eq!(follow(Health::Healthy, 2, 3, "--+---+"), "hhhhhuu");
        assert_eq!(follow(Health::Unhealthy, 2, 1, "+-++"), "uuuh");
    }
}
