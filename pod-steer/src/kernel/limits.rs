//! Limits of maps and lists. The contract sets them. `POD_STEER_TEST_LIMITS` lets a test lower one, as in
//! `RULES=4,SLOT_TABLES=2`, because no test can fill maps of the usual size. A map that is already pinned keeps its
//! size. No other code reads the variable.

use std::sync::LazyLock;

/// Parsed once.
static CHOSEN: LazyLock<Vec<(String, u32)>> =
    LazyLock::new(|| parse(&std::env::var("POD_STEER_TEST_LIMITS").unwrap_or_default()));

fn parse(list: &str) -> Vec<(String, u32)> {
    let item = |item: &str| {
        let (name, limit) = item.split_once('=')?;
        Some((name.to_owned(), limit.parse().ok()?))
    };
    list.split(',').filter_map(item).collect()
}

/// The limits that a test has set.
pub(super) fn chosen() -> &'static [(String, u32)] {
    &CHOSEN
}

/// The limit in force: the usual one, unless a test has set another.
pub fn limit(name: &str, usual: u32) -> u32 {
    CHOSEN.iter().find(|(chosen, _)| chosen == name).map_or(usual, |(_, limit)| *limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        assert_eq!(parse("RULES=4,SLOT_TABLES=2"), [("RULES".to_owned(), 4), ("SLOT_TABLES".to_owned(), 2)]);
        assert_eq!(parse(""), []);
        assert_eq!(parse("RULES,A=x"), []);
    }
}
