//! Orders that are already in force: repeating one succeeds, changes nothing and is not recorded.

use super::{
    Decision, Operation, Order, Outcome, Part, PauseOrder, View, behind,
    check::{check_part, drained_part},
    recreate,
};

/// The answer to an order that has nothing to change; `None` if it has something to change, or is invalid. `history` is
/// the service's, oldest first.
pub fn already(
    order: &Order,
    view: &View,
    decision: &Decision,
    running: Option<&Operation>,
    history: &[Operation],
) -> Option<String> {
    let service = &view.service;
    if view.backends.is_empty() && *decision == Decision::default() {
        return None;
    }
    match order {
        // Another limit on its time is a change.
        Order::Pause(PauseOrder { max_ms: None }) => {
            (decision.paused && decision.pause_until_ms.is_none()).then(|| format!("{service} is already paused"))
        }
        Order::Pause(_) => None,
        Order::Unpause => {
            (!decision.paused).then(|| format!("{service} is not paused; its new connections are served"))
        }
        // Its connections may have to end still.
        Order::Drain(order) if order.drain_timeout_ms.is_some() => None,
        Order::Drain(order) => {
            let part = check_part(view, &order.part()).ok().filter(|part| decision.drained.contains(part))?;
            Some(format!("{} is already drained", view.title(&part)))
        }
        Order::Resume(part) => {
            let part = drained_part(view, decision, part).ok().filter(|part| !decision.drained.contains(part))?;
            let drained: Vec<String> = decision.drained.iter().map(|part| view.title(part)).collect();
            let others = match (&part, drained.as_slice()) {
                (_, []) => "it gets new connections".to_owned(),
                (Part::Service, parts) => format!("these parts of it are: {}", parts.join(", ")),
                (_, parts) => format!("these are: {}", parts.join(", ")),
            };
            Some(format!("{} is not drained; {others}", view.title(&part)))
        }
        Order::Rollback => {
            let is_rollback = |operation: &Operation| {
                operation.order == Order::Rollback
                    && operation.end.as_ref().is_some_and(|end| end.outcome == Outcome::Done)
            };
            (running.is_none() && behind(history).is_none() && history.iter().any(is_rollback))
                .then(|| format!("{service} is already rolled back; no deploy, canary or shift is left to undo"))
        }
        Order::Deploy(order) if order.recreate && recreate::is_alone(view, decision, &order.version) => {
            Some(format!("{} has all connections of {service} already, and no other version runs", order.version))
        }
        Order::Idle => decision.asleep.is_some().then(|| format!("{service} sleeps already")),
        Order::Wake(_) => decision.asleep.is_none().then(|| format!("{service} does not sleep")),
        Order::Deploy(_) | Order::Canary(_) | Order::Shift(_) | Order::Forget => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        super::{DrainOrder, PartOrder, tests::two},
        *,
    };

    #[test]
    fn repeating_an_order_has_nothing_to_change() {
        let calm = Decision::default();
        let drained = BTreeSet::from([Part::Version("v1".to_owned())]);
        let done = Decision { paused: true, drained, revision: 3, ..Decision::default() };
        let v1 = || PartOrder { version: Some("v1".to_owned()), backend: None };
        let drain =
            |PartOrder { version, backend }| Order::Drain(DrainOrder { version, backend, ..DrainOrder::default() });
        let said = |order: Order, decision: &Decision| already(&order, &two(), decision, None, &[]);
        assert_eq!(said(Order::Pause(PauseOrder::default()), &done).unwrap(), "web is already paused");
        assert_eq!(said(Order::Pause(PauseOrder::default()), &calm), None);
        assert!(said(Order::Unpause, &calm).unwrap().contains("is not paused"));
        assert_eq!(said(Order::Unpause, &done), None);
        assert_eq!(said(drain(v1()), &done).unwrap(), "version v1 of web is already drained");
        // Another part is another order.
        assert_eq!(said(drain(PartOrder::default()), &done), None);
        assert!(said(Order::Resume(PartOrder::default()), &done).unwrap().ends_with("version v1 of web"));
        assert!(said(Order::Resume(v1()), &calm).unwrap().contains("is not drained"));
        assert_eq!(said(Order::Resume(v1()), &done), None);
        // A part that does not exist is an error, as is a service that does not.
        assert_eq!(said(Order::Resume(PartOrder { version: Some("v9".to_owned()), backend: None }), &calm), None);
        let unknown = View { service: "nope".to_owned(), ..View::default() };
        assert_eq!(already(&Order::Unpause, &unknown, &calm, None, &[]), None);
        assert_eq!(said(Order::Rollback, &calm), None, "there was never anything to undo");
    }
}
