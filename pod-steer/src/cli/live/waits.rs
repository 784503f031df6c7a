//! Why new connections to a service wait.

use crate::{api::types::ServiceStatus, rollout::Order};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Waits {
    /// An operator has paused it, or an operation has.
    Paused,
    /// Its containers are being stopped.
    FallingAsleep,
    /// Its containers are stopped until a client comes.
    Asleep,
    /// Its containers are being started.
    Waking,
    /// They could not be started in time, and clients are refused until they serve.
    Refused,
}

impl Waits {
    pub(super) fn of(status: &ServiceStatus) -> Option<Self> {
        let is_asleep = status.decision.asleep.is_some();
        let is_over = status.pause.as_ref().is_some_and(|pause| pause.over);
        let running = status.operation.as_ref().map(|running| &running.operation.order);
        status.decision.paused.then_some(match running {
            _ if is_asleep && is_over => Self::Refused,
            Some(Order::Idle) => Self::FallingAsleep,
            Some(Order::Wake(_)) => Self::Waking,
            _ if is_asleep => Self::Asleep,
            _ => Self::Paused,
        })
    }

    /// In one word or two.
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::FallingAsleep => "falling asleep",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::Refused => "not waking",
        }
    }

    /// Whether its containers are stopped, or are being stopped or started.
    pub(in crate::cli) fn is_of_sleep(self) -> bool {
        self != Self::Paused
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::live::fixture;

    fn said(decision: Value, over: bool, order: Option<Value>) -> Option<&'static str> {
        let mut status = serde_json::to_value(fixture::live().status).unwrap();
        let web = status["services"].as_array_mut().unwrap().iter_mut().find(|of| of["name"] == "web").unwrap();
        web["decision"] = decision;
        web["pause"] = json!({ "held": 0, "over": over, "ports": [] });
        match order {
            Some(order) => web["operation"]["order"] = order,
            None => web["operation"] = Value::Null,
        }
        Waits::of(&serde_json::from_value(web.clone()).unwrap()).map(Waits::word)
    }

    #[test]
    fn a_service_that_sleeps_is_not_told_as_paused() {
        let (paused, asleep) = (json!({ "paused": true }), json!({ "paused": true, "asleep": {} }));
        assert_eq!(said(json!({}), false, None), None);
        assert_eq!(said(paused.clone(), true, None), Some("paused"));
        assert_eq!(said(paused, false, Some(json!("idle"))), Some("falling asleep"));
        assert_eq!(said(asleep.clone(), false, Some(json!("idle"))), Some("falling asleep"));
        assert_eq!(said(asleep.clone(), false, None), Some("asleep"));
        assert_eq!(said(asleep.clone(), false, Some(json!("wake"))), Some("waking"));
        assert_eq!(said(asleep, true, Some(json!("wake"))), Some("not waking"));
    }
}
