//! Bodies of the API's requests, one JSON value a line, in the order in which a service gets them: what is accepted is carried
//! out as the daemon does, on values.

mod service;

use pod_steer::{
    api::types::{BackendRequest, ExecRequest, RegisterRequest, Status},
    fuzzing,
    rollout::{Operation, Order},
};

use crate::{assert_one_line, labels};
pub use service::Service;

/// Most bodies of one input.
const BODIES_MAX: usize = 12;

pub fn run(input: &[u8]) {
    let mut service = Service::new();
    for body in input.split(|byte| *byte == b'\n').take(BODIES_MAX) {
        if let Ok(request) = serde_json::from_slice::<ExecRequest>(body) {
            backend(&request.backend);
        }
        if let Ok(request) = serde_json::from_slice::<RegisterRequest>(body) {
            backend(&request.backend);
        }
        match fuzzing::order(body) {
            Ok(order) => {
                round_trip(&order);
                service.order(order);
            }
            Err(message) => assert_one_line(&message),
        }
        // What the client reads.
        let _ = serde_json::from_slice::<Status>(body);
        if let Ok(operation) = serde_json::from_slice::<Operation>(body) {
            let _ = operation.title();
        }
    }
}

fn backend(request: &BackendRequest) {
    match fuzzing::backend(request) {
        Ok(spec) => labels::check_spec(spec),
        Err(message) => message.lines().for_each(assert_one_line),
    }
}

fn round_trip(order: &Order) {
    let written = serde_json::to_string(order).expect("an order can be written");
    assert_eq!(serde_json::from_str::<Order>(&written).ok().as_ref(), Some(order), "{written}");
    let Order::Shift(shift) = order else { return };
    for network in shift.from.keys().chain(&shift.not_from) {
        assert_eq!(network.to_string().parse().ok(), Some(*network));
    }
}
