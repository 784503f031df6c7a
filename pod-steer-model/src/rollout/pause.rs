//! A pause, and its limit.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Decision;
#[cfg(doc)]
use super::Order;
use crate::time::Timed;

/// See [`Order::Pause`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseOrder {
    /// Refuse clients after so many milliseconds, those that wait too.
    #[serde(default)]
    pub max_ms: Option<u64>,
}

impl Decision {
    /// Whether a pause has lasted for as long as its order allowed: its clients are refused.
    pub fn is_pause_over(&self, now_ms: i64) -> bool {
        self.paused && self.pause_until_ms.is_some_and(|until_ms| until_ms <= now_ms)
    }
}

impl Timed for Decision {
    fn times(&mut self) -> impl Iterator<Item = &mut i64> {
        let asleep = self.asleep.iter_mut().map(|asleep| &mut asleep.since_ms);
        self.pause_until_ms.iter_mut().chain(asleep)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Order, already, begin, tests::two},
        *,
    };
    use crate::{rollout::Operation, time::Now};

    fn carry_out(order: Order, decision: &Decision, ms: i64) -> Decision {
        let text = r#"{"id": 1, "service": "web", "who": "", "begun_ms": 0, "order": "unpause", "before": {},
            "phase": {"name": "ended"}, "steps_done": [], "end": null}"#;
        let mut operation = Operation { order, ..serde_json::from_str(text).unwrap() };
        begin(&mut operation, &two(), decision, None, Now { ms, wall_ms: 0 }).decision.unwrap_or(decision.clone())
    }

    #[test]
    fn a_pause_is_over_at_its_limit() {
        let limited = Order::Pause(PauseOrder { max_ms: Some(5_000) });
        let paused = carry_out(limited.clone(), &Decision::default(), 1_000);
        assert_eq!((paused.paused, paused.pause_until_ms), (true, Some(6_000)));
        assert_eq!([5_999, 6_000].map(|now_ms| paused.is_pause_over(now_ms)), [false, true]);
        // Another limit, and none.
        assert_eq!(already(&limited, &two(), &paused, None, &[]), None);
        assert_eq!(carry_out(limited, &paused, 8_000).pause_until_ms, Some(13_000));
        let endless = carry_out(Order::Pause(PauseOrder::default()), &paused, 8_000);
        assert!(endless.paused && endless.pause_until_ms.is_none() && !endless.is_pause_over(i64::MAX));
        assert!(already(&Order::Pause(PauseOrder::default()), &two(), &endless, None, &[]).is_some());
        let ended = carry_out(Order::Unpause, &paused, 8_000);
        assert!(!ended.paused && ended.pause_until_ms.is_none());
        let farthest = Order::Pause(PauseOrder { max_ms: Some(u64::MAX) });
        assert!(!carry_out(farthest, &Decision::default(), 1_000).is_pause_over(i64::MAX - 1));
    }

    #[test]
    fn orders_and_decisions_of_earlier_releases_are_read() {
        let order: Order = serde_json::from_str(r#"{"order": "pause"}"#).unwrap();
        assert_eq!(order, Order::Pause(PauseOrder::default()));
        let decision: Decision = serde_json::from_str(r#"{"revision": 3, "paused": true}"#).unwrap();
        assert!(decision.paused && decision.pause_until_ms.is_none());
    }
}
