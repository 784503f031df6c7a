//! Answers of rtnetlink(7) from two network namespaces: how a container is connected, and what its condition says. A container chooses the
//! names and the number of its devices, their kinds and their addresses.

use pod_steer::{
    fuzzing,
    labels::{self, Spec},
    settings::{GivenOptions, Via},
    world::Network,
};

use crate::{assert_one_line, plan};

/// The input begins with the length of the container's answers; those of the ingress namespace follow.
const LENGTH_BYTES: usize = size_of::<u16>();

pub fn run(input: &[u8]) {
    let Some((length, answers)) = input.split_first_chunk::<LENGTH_BYTES>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(answers.len());
    let (inside, outside) = answers.split_at(length);
    let Some(found) = fuzzing::connection(inside, outside) else { return };
    if let Ok(bridge) = &found {
        assert!(bridge.addresses().count() > 0, "{bridge:?}");
        assert!(bridge.v4.is_none_or(|ip| !ip.is_link_local() && !ip.is_loopback()), "{bridge:?}");
        assert!(bridge.v6.is_none_or(|ip| !ip.is_unicast_link_local() && !ip.is_loopback()), "{bridge:?}");
        assert_one_line(&bridge.name);
    }
    let mut world = plan::world([spec()]);
    for backend in world.backends.values_mut() {
        backend.network = Network::Own;
        assert!(backend.connected(found.clone()), "it was not connected before");
    }
    let plan = plan::check(&mut world);
    assert!(plan.rules.is_empty(), "a namespace of its own is not steered");
    let conditions: Vec<_> = plan.conditions.values().flatten().collect();
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    conditions.iter().for_each(|condition| assert_one_line(&condition.to_string()));
}

fn spec() -> Spec {
    let spec = labels::spec_from_flags("web", "80:8080", "v1", 1, GivenOptions::default()).expect("it is written here");
    // Its condition says how it is connected.
    Spec { via: Via::Socket, ..spec }
}
