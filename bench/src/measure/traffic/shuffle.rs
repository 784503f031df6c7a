//! The order of turns.

use std::cell::Cell;

/// Pseudo-random orders, the same in every run, so that no contestant always follows the same other one.
pub struct Shuffle(Cell<u64>);

impl Shuffle {
    /// The first order of a run is the next one.
    pub fn new() -> Self {
        Self(Cell::new(1))
    }

    /// Numbers below `count`, in another order each time.
    pub fn order(&self, count: usize) -> Vec<usize> {
        let mut order: Vec<_> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.random(last + 1));
        }
        order
    }

    fn random(&self, below: usize) -> usize {
        // Knuth's multiplier of a linear congruential generator, whose high bits suffice here.
        let next = self.0.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.set(next);
        (next >> 33) as usize % below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_turn_in_each_order() {
        let shuffle = Shuffle::new();
        let orders: Vec<_> = (0..100).map(|_| shuffle.order(5)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        // Each one is first in about a fifth of them.
        for one in 0..5 {
            assert!((8..=32).contains(&orders.iter().filter(|order| order[0] == one).count()), "{one}");
        }
        assert!(shuffle.order(0).is_empty());
    }
}
