//! Why a socket of a backend gets no new connections. Pure.

use crate::{
    condition::{Condition, Reason},
    world::State,
};

/// The conditions of a backend that keep clients from its sockets.
const KEEP_CLIENTS_AWAY: &[Reason] = &[
    Reason::ImageNotAllowed,
    Reason::UserNotAllowed,
    Reason::NoCgroup,
    Reason::OwnNetwork,
    Reason::NoNetwork,
    Reason::MacvlanNetwork,
    Reason::IpvlanNetwork,
    Reason::UserModeNetwork,
    Reason::BridgeElsewhere,
    Reason::OtherNetworkDevice,
    Reason::NoAddress,
    Reason::NotReachable,
    Reason::SandboxGone,
    Reason::PortNotAllowed,
    Reason::PortOfOtherService,
    Reason::PortInUse,
    Reason::OnDemandConflict,
    Reason::NotListening,
    Reason::OtherAddress,
    Reason::TooManyAddresses,
    Reason::ListenerElsewhere,
    Reason::ListenerOfOtherProcess,
    Reason::CheckFails,
    Reason::EngineCheckFails,
];

/// The reason that holds for all sockets of a backend that are no members of a table.
pub fn without_clients(state: State, is_paused: bool, conditions: &[Condition]) -> String {
    if is_paused {
        return "the service is paused".to_owned();
    }
    if state == State::Drained {
        return "the backend is drained".to_owned();
    }
    let keep_away = conditions.iter().filter(|own| KEEP_CLIENTS_AWAY.contains(&own.reason));
    let messages: Vec<&str> = keep_away.map(|own| own.message.as_str()).collect();
    if !messages.is_empty() {
        return messages.join("; ");
    }
    match state {
        State::Standby => "the version has no share of new connections",
        State::Starting => "the backend is starting, or its health is not known yet",
        State::Unhealthy => "the health check fails",
        State::Paused => "the container is frozen",
        State::Stopping => "the backend was told to stop",
        State::Exited => "the backend has ended",
        State::Created => "the backend has not been started",
        State::NotSteered => "clients cannot be steered to the backend; see `pod-steer status`",
        // Another socket of the backend may be bound to a more exact address, or to another of the declared ports.
        State::Ready | State::Drained | State::NotListening => {
            "the service claims no port that this socket serves better than the backend's others"
        }
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operators_decision_comes_before_a_condition_and_that_before_the_state() {
        let conditions = [
            Condition::without_remedy(Reason::AcceptQueueFull, "the queue is full"),
            Condition::without_remedy(Reason::PortInUse, "port 80 is in use"),
            Condition::without_remedy(Reason::PortNotAllowed, "port 81 is not allowed"),
        ];
        assert_eq!(without_clients(State::Standby, true, &conditions), "the service is paused");
        assert_eq!(without_clients(State::Drained, false, &conditions), "the backend is drained");
        let both = "port 80 is in use; port 81 is not allowed";
        assert_eq!(without_clients(State::NotSteered, false, &conditions), both);
        assert!(without_clients(State::Standby, false, &conditions[..1]).contains("no share"));
        for state in State::ALL {
            assert!(!without_clients(state, false, &[]).is_empty());
        }
    }
}
