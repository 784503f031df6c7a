//! The two clocks. Durations and deadlines use `CLOCK_BOOTTIME`, which cannot be set and which counts while the machine sleeps. The wall
//! clock is for output, and for times that have to survive a reboot.
#![forbid(unsafe_code)]

use std::{
    fs,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

pub use pod_steer_model::time::{Now, Timed};

/// Largest distance of a stored time from the boot. Beyond it, a difference from now could overflow.
const FARTHEST_MS: i64 = 1 << 62;

/// Milliseconds since the machine booted.
pub fn boot_ms() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

/// Milliseconds since 1970.
pub fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Reads both clocks.
pub fn now() -> Now {
    Now { ms: boot_ms(), wall_ms: wall_ms() }
}

/// The offset between the two clocks, and the id of the boot. Times are stored by the wall clock, together with the anchor of that moment.
/// Within the same boot they are read back exactly, even if the wall clock was set since. After a reboot only the wall clock is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The kernel's id of the boot.
    boot: String,
    /// The wall clock minus the time since boot, in milliseconds.
    offset_ms: i64,
}

impl Anchor {
    /// As it is now.
    pub fn read() -> Self {
        static BOOT: OnceLock<String> = OnceLock::new();
        let boot = BOOT.get_or_init(|| {
            let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
            id.map(|id| id.trim().to_owned()).unwrap_or_default()
        });
        let now = now();
        Self { boot: boot.clone(), offset_ms: now.wall_ms - now.ms }
    }

    /// The wall clock's time of a time since boot.
    pub fn wall_ms(&self, boot_ms: i64) -> i64 {
        boot_ms.saturating_add(self.offset_ms)
    }

    /// The time since this boot of a time by the wall clock that was stored beside `stored`; negative before the boot.
    pub fn boot_ms(&self, wall_ms: i64, stored: Option<&Self>) -> i64 {
        let same_boot = stored.filter(|stored| stored.boot == self.boot && !self.boot.is_empty());
        wall_ms.saturating_sub(same_boot.unwrap_or(self).offset_ms).clamp(-FARTHEST_MS, FARTHEST_MS)
    }
}

/// A value as it is stored: with times by the wall clock, and the anchor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stored<T> {
    #[serde(flatten)]
    value: T,
    /// `None` in values that were stored by a version without anchors.
    #[serde(default)]
    clock: Option<Anchor>,
}

impl<T: Timed> Stored<T> {
    /// Makes a value ready to be stored.
    pub fn new(mut value: T) -> Self {
        let clock = Anchor::read();
        value.times().for_each(|time| *time = clock.wall_ms(*time));
        Self { value, clock: Some(clock) }
    }

    /// The value, with its times in this boot.
    pub fn into_value(mut self) -> T {
        let now = Anchor::read();
        self.value.times().for_each(|time| *time = now.boot_ms(*time, self.clock.as_ref()));
        self.value
    }
}

/// A value for output: its times are by the current wall clock.
pub fn by_wall_clock<T: Timed>(value: T) -> T {
    Stored::new(value).value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(boot: &str, offset_ms: i64) -> Anchor {
        Anchor { boot: boot.to_owned(), offset_ms }
    }

    #[test]
    fn a_stored_time_is_read_back_exactly_within_a_boot() {
        let stored = anchor("a", 1_000_000);
        let at_rest = stored.wall_ms(5_000);
        assert_eq!(at_rest, 1_005_000);
        for step_ms in [-3_600_000, 0, 3_600_000] {
            assert_eq!(anchor("a", 1_000_000 + step_ms).boot_ms(at_rest, Some(&stored)), 5_000, "{step_ms}");
        }
    }

    #[test]
    fn after_a_reboot_the_wall_clock_counts() {
        let stored = anchor("a", 1_000_000);
        let at_rest = stored.wall_ms(500_000);
        // Booted again at the wall clock's 1,400,000: the stored time is 100 s after that.
        assert_eq!(anchor("b", 1_400_000).boot_ms(at_rest, Some(&stored)), 100_000);
        assert_eq!(anchor("b", 1_600_000).boot_ms(at_rest, Some(&stored)), -100_000, "it has passed before the boot");
        assert_eq!(anchor("b", 1_400_000).boot_ms(at_rest, None), 100_000, "stored by a version without anchors");
        assert_eq!(anchor("", 1_400_000).boot_ms(at_rest, Some(&anchor("", 0))), 100_000, "a boot without an id");
    }

    #[test]
    fn the_farthest_future_stays_there() {
        let now = anchor("a", 1_000_000);
        assert_eq!(now.wall_ms(i64::MAX), i64::MAX);
        assert!(now.boot_ms(i64::MAX, None) > i64::MAX / 2);
        for at_ms in [i64::MIN, i64::MAX] {
            let read = now.boot_ms(at_ms, Some(&anchor("a", -at_ms.saturating_add(1))));
            assert!(read.checked_sub(5_000).is_some() && 5_000_i64.checked_sub(read).is_some(), "{read}");
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Deadline {
        name: String,
        at_ms: i64,
    }

    impl Timed for Deadline {
        fn times(&mut self) -> impl Iterator<Item = &mut i64> {
            std::iter::once(&mut self.at_ms)
        }
    }

    #[test]
    fn stored_values_are_read_back() {
        let deadline = Deadline { name: "drain".to_owned(), at_ms: boot_ms() + 30_000 };
        let text = serde_json::to_string(&Stored::new(deadline.clone())).unwrap();
        assert!(text.contains(r#""name":"drain""#) && text.contains("offset_ms"), "{text}");
        assert_eq!(serde_json::from_str::<Stored<Deadline>>(&text).unwrap().into_value(), deadline);
        let shown = by_wall_clock(deadline.clone()).at_ms;
        assert!((shown - wall_ms() - 30_000).abs() < 5_000, "{shown}");
        let old = format!(r#"{{"name":"drain","at_ms":{shown}}}"#);
        let read = serde_json::from_str::<Stored<Deadline>>(&old).unwrap().into_value();
        assert!((read.at_ms - deadline.at_ms).abs() < 5_000, "{read:?}");
    }

    #[test]
    fn the_clocks_run() {
        let (before, anchor) = (now(), Anchor::read());
        assert!(boot_ms() >= before.ms && before.ms > 0 && before.wall_ms > before.ms);
        assert!((anchor.wall_ms(before.ms) - before.wall_ms).abs() < 1000);
        assert!(!anchor.boot.is_empty());
    }
}
